"""Who takes part in the benchmark, and whether what each one computes is right.

A contender is set up by a function from a `Problem` to an `Entry`: a call that does the whole work, and the names of
what it returns. Compiling, converting and allocating what can be kept between calls belong to the set-up, as they would
in a training loop. Each peer is written the fastest way that its own interface offers, and imported only if it takes
part. Every result is the mean over the rows.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

import softxent as sx

Task = Literal["grad", "forward"]
Array = npt.NDArray[Any]

TASKS: tuple[Task, ...] = get_args(Task)
LOGIT_SCALE = 3.0
# The largest error allowed in a probability, in a loss (relative to it, where it is above 1) and in an entry of the
# gradient (times the number of rows, which makes it a probability less a target).
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Problem:
    """Logits and labels of which the mean loss is wanted and, if the task is "grad", its gradient.

    Whoever accepts a buffer for its result gets `out`, so that no contender has luckier memory than another.
    """

    task: Task
    logits: Array
    labels: npt.NDArray[np.int64]
    out: Array
    n_threads: int

    @classmethod
    def random(cls, task: Task, shape: tuple[int, int], dtype: str, n_threads: int) -> "Problem":
        rng = np.random.default_rng(0)
        logits = (LOGIT_SCALE * rng.standard_normal(shape)).astype(dtype)
        labels = rng.integers(shape[1], size=shape[0])
        return cls(task, logits, labels, np.zeros_like(logits), n_threads)

    @property
    def results(self) -> tuple[str, ...]:
        return ("loss", "gradient") if self.task == "grad" else ("loss",)


@dataclass(frozen=True)
class Entry:
    """A contender ready to run: `call` returns one value for each name in `results`."""

    call: Callable[[], Sequence[Any]]
    results: tuple[str, ...]
    to_numpy: Callable[[Any], Array] = np.asarray


@dataclass(frozen=True)
class Contender:
    name: str
    modules: tuple[str, ...]
    enter: Callable[[Problem], Entry]

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def versions(self) -> dict[str, str]:
        return {module: importlib.import_module(module).__version__ for module in self.modules}


def reference(problem: Problem) -> dict[str, Array]:
    """All that a contender may return, computed in float64 with plain NumPy."""
    rows = np.arange(len(problem.logits))
    x = problem.logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    probabilities = np.exp(x)
    total = probabilities.sum(axis=1, keepdims=True)
    probabilities /= total
    gradient = probabilities / len(rows)
    gradient[rows, problem.labels] -= 1 / len(rows)
    loss = np.mean(np.log(total[:, 0]) - x[rows, problem.labels])
    return {"loss": loss, "gradient": gradient, "probabilities": probabilities, "logits": problem.logits}


def find_error(entry: Entry, right: Mapping[str, Array]) -> str | None:
    """Run the entry once and say what is wrong with its results, if anything is."""
    tolerance = TOLERANCES[right["logits"].dtype.name]
    units = {"loss": max(1.0, abs(float(right["loss"]))), "gradient": 1 / len(right["logits"])}
    for name, value in zip(entry.results, entry.call(), strict=True):
        got = entry.to_numpy(value)
        if got.shape != right[name].shape:
            return f"wrong {name}: its shape is {got.shape}, not {right[name].shape}"
        error = float(np.max(np.abs(got - right[name]))) / units.get(name, 1.0)
        if not error <= tolerance:  # NaN is refused too
            return f"wrong {name}: off by {error:.1e}, allowed {tolerance:.0e}"
    return None


def enter_softxent(problem: Problem) -> Entry:
    x, labels, out, n_threads = problem.logits, problem.labels, problem.out, problem.n_threads
    calls: dict[Task, Callable[[], Sequence[Any]]] = {
        "forward": lambda: (sx.cross_entropy(x, labels, n_threads=n_threads),),
        "grad": lambda: sx.value_and_grad(x, labels, out=out, n_threads=n_threads),
    }
    return Entry(calls[problem.task], problem.results)


def enter_copy(problem: Problem) -> Entry:
    def copy() -> Sequence[Any]:
        np.copyto(problem.out, problem.logits)
        return (problem.out,)

    return Entry(copy, ("logits",))


def enter_numpy(problem: Problem) -> Entry:
    x, labels, out = problem.logits, problem.labels, problem.out
    rows = np.arange(len(x))
    peak, total = np.empty((2, len(x), 1), x.dtype)

    def forward() -> Sequence[Any]:
        np.max(x, axis=1, keepdims=True, out=peak)
        np.subtract(x, peak, out=out)
        at_label = out[rows, labels]
        np.exp(out, out=out)
        np.sum(out, axis=1, keepdims=True, out=total)
        return (np.mean(np.log(total[:, 0]) - at_label, dtype=np.float64),)

    def grad() -> Sequence[Any]:
        (loss,) = forward()
        np.multiply(total, len(x), out=total)
        np.divide(out, total, out=out)
        out[rows, labels] -= 1 / len(x)
        return loss, out

    return Entry(grad if problem.task == "grad" else forward, problem.results)


def enter_scipy(problem: Problem) -> Entry:
    from scipy.special import log_softmax, logsumexp

    x, labels = problem.logits, problem.labels
    rows = np.arange(len(x))

    def forward() -> Sequence[Any]:
        return (np.mean(logsumexp(x, axis=1) - x[rows, labels], dtype=np.float64),)

    def grad() -> Sequence[Any]:
        log_p = log_softmax(x, axis=1)
        loss = -np.mean(log_p[rows, labels], dtype=np.float64)
        gradient = np.exp(log_p, out=log_p)
        gradient[rows, labels] -= 1
        gradient /= len(x)
        return loss, gradient

    return Entry(grad if problem.task == "grad" else forward, problem.results)


def enter_scikit_learn(problem: Problem) -> Entry:
    from sklearn._loss.loss import HalfMultinomialLoss  # private: it may move or change

    x, out, n_threads = problem.logits, problem.out, problem.n_threads
    criterion = HalfMultinomialLoss(n_classes=x.shape[1])
    labels = problem.labels.astype(x.dtype)
    losses = np.empty(len(x), x.dtype)
    # Weights of 1/N give the mean and its gradient without another pass.
    weights = np.full(len(x), 1 / len(x), x.dtype)

    def forward() -> Sequence[Any]:
        criterion.loss(labels, x, weights, losses, n_threads)
        return (np.sum(losses, dtype=np.float64),)

    def grad() -> Sequence[Any]:
        criterion.loss_gradient(labels, x, weights, losses, out, n_threads)
        return np.sum(losses, dtype=np.float64), out

    return Entry(grad if problem.task == "grad" else forward, problem.results)


def enter_torch(problem: Problem) -> Entry:
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(problem.n_threads)
    x = torch.from_numpy(problem.logits).requires_grad_(problem.task == "grad")
    labels = torch.from_numpy(problem.labels)

    def forward() -> Sequence[Any]:
        with torch.no_grad():
            return (cross_entropy(x, labels),)

    def grad() -> Sequence[Any]:
        loss = cross_entropy(x, labels)
        return loss, *torch.autograd.grad(loss, x)

    call = grad if problem.task == "grad" else forward
    return Entry(call, problem.results, to_numpy=lambda tensor: tensor.detach().numpy())


def enter_jax(problem: Problem) -> Entry:
    import jax
    import jax.numpy as jnp

    x, labels = jnp.asarray(problem.logits), jnp.asarray(problem.labels, dtype=np.int32)

    def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
        # Compiles to faster code than picking from log_softmax, or than multiplying with one-hot labels.
        at_label = jnp.take_along_axis(x, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(x, axis=1) - at_label)

    compiled = jax.jit(jax.value_and_grad(loss) if problem.task == "grad" else lambda *inputs: (loss(*inputs),))
    return Entry(lambda: [value.block_until_ready() for value in compiled(x, labels)], problem.results)


def enter_onnxruntime_softmax(problem: Problem) -> Entry:
    """The probabilities alone: the runtime has no cross-entropy, and computes no gradient."""
    import onnxruntime
    from onnx import helper

    x, out = problem.logits, problem.out
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)],
        "softmax",
        [helper.make_tensor_value_info("logits", element, x.shape)],
        [helper.make_tensor_value_info("probabilities", element, x.shape)],
    )
    opset = helper.make_opsetid("", 13)
    # The oldest format that holds this opset: an installed runtime may be older than the installed onnx.
    model = helper.make_model(graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset]))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.n_threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Binding spares the copies into and out of the runtime's own tensors.
    binding = session.io_binding()
    binding.bind_input("logits", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output("probabilities", "cpu", 0, x.dtype.type, x.shape, out.ctypes.data)

    def softmax() -> Sequence[Any]:
        session.run_with_iobinding(binding)
        return (out,)

    return Entry(softmax, ("probabilities",))


SOFTXENT = Contender("softxent", ("softxent",), enter_softxent)
# Runs beside the others if they have several threads, to show in one run what the further threads bring.
SOFTXENT_ONE_THREAD = Contender(
    "softxent-1-thread", ("softxent",), lambda problem: enter_softxent(replace(problem, n_threads=1))
)
COPY = Contender("copy", ("numpy",), enter_copy)
PEERS = (
    Contender("numpy", ("numpy",), enter_numpy),
    Contender("scipy", ("scipy",), enter_scipy),
    Contender("scikit-learn", ("sklearn",), enter_scikit_learn),
    Contender("torch", ("torch",), enter_torch),
    Contender("jax", ("jax",), enter_jax),
    Contender("onnxruntime-softmax-only", ("onnxruntime", "onnx"), enter_onnxruntime_softmax),
)
