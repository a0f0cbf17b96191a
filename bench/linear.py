"""How fast is the linear head, next to its bare products of matrices and to PyTorch and scikit-learn?

Times the mean loss of labelled inputs with its gradients, of inputs and weights beside PyTorch, of weights and bias
beside scikit-learn, all contenders in one process for each number of threads, in rounds as `measure.py` tells. "bare
products" are the three that make the logits and both gradients, of all rows at once, by NumPy. Losses are compared
first, and a wrong one gets no time. `--memory` looks at what a call takes beyond its results instead. The threads are
those of each library and of BLAS; the header says which BLAS kernels NumPy runs.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import memory
import numpy as np
from measure import figures_of, time_in_rounds
from peers import SOFTXENT
from problems import dtype_of

import softxent as sx
from bench import list_of, thread_count, worker

SECONDS = 20.0
TORCH, SCIKIT_LEARN = "torch", "sklearn"
Calls = dict[str, Callable[[], Sequence[Any]]]


@dataclass(frozen=True)
class Head:
    """Rows x inputs x classes, beside which library."""

    n_rows: int
    n_inputs: int
    n_classes: int
    dtype: str = "float32"
    peer: str = TORCH
    threads: int = 1

    @property
    def title(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.n_rows} x {self.n_inputs} x {self.n_classes}  {self.dtype}  {threads}"


HEADS = (
    Head(2048, 512, 32000),
    Head(1024, 64, 50257),
    Head(1024, 512, 32000, "bfloat16"),
    Head(1797, 64, 10, "float64", SCIKIT_LEARN),
    Head(200_000, 50, 10, "float64", SCIKIT_LEARN),
    Head(3000, 100, 300, "float64", SCIKIT_LEARN),
)


def calls_of(head: Head) -> Calls:
    """The contenders that are installed, each returning its loss first."""
    rng = np.random.default_rng(0)
    dtype = dtype_of(head.dtype)
    x = rng.standard_normal((head.n_rows, head.n_inputs), np.float32).astype(dtype)
    w = (0.05 * rng.standard_normal((head.n_classes, head.n_inputs), np.float32)).astype(dtype)
    y = rng.integers(head.n_classes, size=head.n_rows)
    if importlib.util.find_spec(head.peer) is None:
        return calls_beside_torch(head, x, w, y, with_torch=False)
    return calls_beside_scikit_learn(head, x, w, y) if head.peer == SCIKIT_LEARN else calls_beside_torch(head, x, w, y)


def calls_beside_torch(head: Head, x: np.ndarray, w: np.ndarray, y: np.ndarray, with_torch: bool = True) -> Calls:
    out = (np.zeros_like(x), np.zeros_like(w), None)

    def softxent() -> Sequence[Any]:
        loss, _ = sx.linear_value_and_grad(x, w, y, out=out, n_threads=head.threads)
        return (loss,)

    def forward() -> Sequence[Any]:
        return (sx.linear_cross_entropy(x, w, y, n_threads=head.threads),)

    calls: Calls = {SOFTXENT.name: softxent, "softxent, loss only": forward}
    if x.itemsize > 2:
        logits = np.zeros((len(x), len(w)), x.dtype)

        def bare() -> Sequence[Any]:
            np.matmul(x, w.T, out=logits)
            np.matmul(logits.T, x, out=out[1])
            np.matmul(logits, w, out=out[0])
            return ()

        calls["bare products"] = bare
    return {**calls, **(calls_of_torch(head, x, w, y) if with_torch else {})}


def calls_of_torch(head: Head, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> Calls:
    import torch
    from torch.nn import functional

    import softxent.torch

    torch.set_num_threads(head.threads)

    def tensor(array: np.ndarray) -> Any:
        bits = array.view(np.int16) if head.dtype == "bfloat16" else array
        return torch.from_numpy(bits).view(getattr(torch, head.dtype)).requires_grad_()

    inputs, weight, labels = tensor(x), tensor(w), torch.from_numpy(y)

    def backward(loss: Any) -> Sequence[Any]:
        return float(loss.detach()), *torch.autograd.grad(loss, (inputs, weight))

    def unfused() -> Sequence[Any]:
        return backward(functional.cross_entropy(functional.linear(inputs, weight), labels))

    def chunked() -> Sequence[Any]:
        options = torch.nn.LinearCrossEntropyOptions()  # without them it is the unfused one
        return backward(functional.linear_cross_entropy(inputs, weight, labels, options=options))

    return {
        "softxent.torch": lambda: backward(softxent.torch.linear_cross_entropy(inputs, weight, labels)),
        "torch, linear and cross_entropy": unfused,
        "torch, linear_cross_entropy": chunked,
    }


def calls_beside_scikit_learn(head: Head, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> Calls:
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss  # private: it may move or change

    theirs = LinearModelLoss(HalfMultinomialLoss(n_classes=head.n_classes), fit_intercept=True)
    n_threads, labels = head.threads, y.astype(x.dtype)
    coef = np.zeros((head.n_classes, head.n_inputs + 1), x.dtype, order="F")
    coef[:, :-1] = w
    flat, direction = coef.ravel(order="F"), np.sin(np.arange(coef.size, dtype=x.dtype))
    ours: dict[str, Any] = {"linear_bias": coef[:, -1], "n_threads": n_threads}
    v = direction.reshape(coef.shape, order="F")
    probs = sx.softmax(x @ w.T)
    product = theirs.gradient_hessian_product(flat, x, labels, n_threads=n_threads)[1]

    def softxent() -> Sequence[Any]:
        loss, _ = sx.linear_value_and_grad(x, coef[:, :-1], y, wrt=("linear_weight", "linear_bias"), **ours)
        return (loss,)

    def softxent_product() -> Sequence[Any]:
        return ((sx.linear_hvp(x, None, y, v[:, :-1], bias_vector=v[:, -1], probs=probs, **ours)[0] * w).sum(),)

    def their_product() -> Sequence[Any]:
        return ((product(direction).reshape(coef.shape, order="F")[:, :-1] * w).sum(),)

    return {
        SOFTXENT.name: softxent,
        "sklearn, loss_gradient": lambda: theirs.loss_gradient(flat, x, labels, n_threads=n_threads)[:1],
        "softxent, Hessian product": softxent_product,
        "sklearn, Hessian product": their_product,
    }


def wrong_ones(calls: Calls) -> dict[str, str]:
    """Contenders whose number is not that of softxent, which comes first, and both numbers."""
    of_product = {name: call()[0] for name, call in calls.items() if "product" in name and "bare" not in name}
    of_loss = {name: call()[0] for name, call in calls.items() if "product" not in name}
    found: dict[str, str] = {}
    for values in (of_product, of_loss):
        right = float(next(iter(values.values()), np.nan))
        for name, value in values.items():
            if not np.isclose(value, right, rtol=2e-2, atol=0):
                found[name] = f"wrong: {float(value):.4f} for {right:.4f}"
    return found


def blas() -> str:
    """The kernels of the BLAS that NumPy runs, as threadpoolctl tells."""
    import threadpoolctl

    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    return ", ".join(f"{info['internal_api']} {info['version']}, {info.get('architecture')}" for info in found[:1])


def measure_times(head: Head, seconds: float) -> str:
    calls = calls_of(head)
    wrong = wrong_ones(calls)
    rounds = time_in_rounds({name: call for name, call in calls.items() if name not in wrong}, seconds)
    figures = {name: figures_of(name, rounds) for name in rounds}
    lines = [f"\n{head.title}"]
    for name, found in figures.items():
        ratio = f"{found.to_softxent:8.2f}  ({found.lower:.2f} to {found.upper:.2f})"
        lines.append(f"{name:>32}{1e3 * found.seconds:12.3f} ms{ratio}")
    lines += [f"{name:>32}  {numbers}" for name, numbers in wrong.items()]
    return "\n".join(lines)


def measure_memory(head: Head, name: str) -> int:
    return memory.beyond_results(calls_of(head)[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=list_of(head), default=HEADS, help="such as 2048x512x32000,1024x64x50257")
    parser.add_argument("--threads", type=list_of(thread_count), default=[1], metavar="A,B,...")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="bytes beyond the results instead of times")
    args = parser.parse_args()
    with worker(1) as pool:
        print(f"BLAS of NumPy: {pool.submit(blas).result()}")
    for threads in args.threads:
        for each in args.heads:
            case = replace(each, threads=threads)
            if args.memory:
                print_memory(case)
            else:
                with worker(threads) as pool:
                    print(pool.submit(measure_times, case, args.seconds).result(), flush=True)


def print_memory(case: Head) -> None:
    """Each contender in a fresh process."""
    logits = case.n_rows * case.n_classes * dtype_of(case.dtype).itemsize
    print(f"\n{case.title}: logits of {logits / memory.MIB:.0f} MiB")
    for name in calls_of(replace(case, n_rows=4)):
        with worker(case.threads, memory.ENVIRONMENT) as pool:
            used = pool.submit(measure_memory, case, name).result()
        print(f"{name:>32}{used / memory.MIB:12.1f} MiB", flush=True)


def head(text: str) -> Head:
    """One of HEADS, or another one beside PyTorch, in float32."""
    sizes = [int(part) for part in text.split("x")]
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x inputs x classes, such as 2048x512x32000")
    known = [each for each in HEADS if (each.n_rows, each.n_inputs, each.n_classes) == tuple(sizes)]
    n_rows, n_inputs, n_classes = sizes
    return known[0] if known else Head(n_rows, n_inputs, n_classes)


if __name__ == "__main__":
    main()
