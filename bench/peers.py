"""Who takes part in the benchmark.

A contender is set up by a function from a `Problem` to an `Entry`: a call that does the whole work, and the names of
what it returns. Compiling, converting and allocating what can be kept between calls belong to the set-up, as they would
in a training loop. Each peer is written the fastest way that its own interface offers, and imported only if it takes
part. This file has the losses and their gradients; family.py has the other tasks.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import family
import numpy as np
from cases import DTYPES, LOSS_TASKS, TASKS, Case, Shape, Task
from problems import Entry, Problem

import softxent as sx
from softxent import _dispatch

# Beyond this, what Python costs does not show.
LARGEST_KERNEL_CALL = 10_000
# So many numbers and their exponentials stay in a cache, and a call for each such piece costs next to nothing.
CACHED_NUMBERS = 2**15


@dataclass(frozen=True)
class ByTask:
    """One set-up for the losses and their gradients, another one for the other tasks."""

    of_loss: Callable[[Problem], Entry]
    of_family: Callable[[Problem], Entry]

    def __call__(self, problem: Problem) -> Entry:
        return (self.of_loss if problem.task in LOSS_TASKS else self.of_family)(problem)


def any_shape(shape: Shape) -> bool:
    return True


def rows_by_classes(shape: Shape) -> bool:
    return shape.is_matrix


def classes_second(shape: Shape) -> bool:
    return shape.class_axis == 1


@dataclass(frozen=True)
class Contender:
    name: str
    modules: tuple[str, ...]
    enter: Callable[[Problem], Entry]
    dtypes: Sequence[str] = DTYPES
    takes_shape: Callable[[Shape], bool] = any_shape
    tasks: Sequence[Task] = TASKS

    def refusal(self, case: Case) -> str | None:
        """Why it takes no part in this case, if it does not."""
        if case.dtype not in self.dtypes:
            return f"takes no part: no {case.dtype}"
        if not self.takes_shape(case.shape):
            return f"takes no part: no class axis {case.shape.class_axis} of {len(case.shape.axes)}"
        return None

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.modules)

    def versions(self) -> dict[str, str]:
        return {module: importlib.import_module(module).__version__ for module in self.modules}


def enter_softxent(problem: Problem) -> Entry:
    x, labels, axis, out, n_threads = problem.logits, problem.labels, problem.class_axis, problem.out, problem.n_threads
    calls: dict[Task, Callable[[], Sequence[Any]]]
    if axis == x.ndim - 1:
        calls = {
            "forward": lambda: (sx.cross_entropy(x, labels, n_threads=n_threads),),
            "grad": lambda: sx.value_and_grad(x, labels, out=out, n_threads=n_threads),
        }
    else:
        options: dict[str, Any] = {"axis": axis, "n_threads": n_threads}
        calls = {
            "forward": lambda: (sx.cross_entropy(x, labels, **options),),
            "grad": lambda: sx.value_and_grad(x, labels, out=out, **options),
        }
    return Entry(calls[problem.task], problem.results)


def enter_softxent_float32(problem: Problem) -> Entry:
    """The same logits in float32, to show in one run what another dtype costs."""
    entry = SOFTXENT.enter(problem.in_dtype(np.float32))
    return replace(entry, computed_in=None if problem.logits.itemsize < 4 else "float32")


def enter_softxent_kernel(problem: Problem) -> Entry:
    """The bare compiled call: all that a call costs besides is Python's."""
    kernel, x, labels, n_threads = _dispatch.active.run, problem.logits, problem.labels, problem.n_threads
    out = problem.out if problem.task == "grad" else None

    def call() -> Sequence[Any]:
        loss = kernel(x, labels, -1, None, out, True, n_threads)
        return (loss,) if out is None else (loss, out)

    return Entry(call, problem.results)


def enter_copy(problem: Problem) -> Entry:
    def copy() -> Sequence[Any]:
        np.copyto(problem.out, problem.logits)
        return (problem.out,)

    return Entry(copy, ("logits",))


def enter_read(problem: Problem) -> Entry:
    """The maximum of all logits, of the bits of halves: NumPy converts those one by one."""
    numbers = problem.logits.view(np.int16) if problem.logits.itemsize == 2 else problem.logits

    def read() -> Sequence[Any]:
        numbers.max()
        return ()

    return Entry(read, ())


def enter_exponentials(problem: Problem) -> Entry:
    """As many exponentials as there are logits, by softxent's own exp, of numbers that stay in the cache."""
    computed_in = np.float64 if problem.logits.itemsize == 8 else np.float32
    x = np.zeros(min(problem.logits.size, CACHED_NUMBERS), computed_in)
    x[:] = problem.logits.ravel()[: x.size]
    m, out, exp = float(x.max()), np.empty_like(x), _dispatch.active.exp_of
    pieces, rest = divmod(problem.logits.size, x.size)

    def exponentials() -> Sequence[Any]:
        for _ in range(pieces):
            exp(x, m, out)
        if rest:
            exp(x[:rest], m, out[:rest])
        return ()

    return Entry(exponentials, ())


def enter_numpy(problem: Problem) -> Entry:
    x, at_labels, axis, out = problem.logits, problem.at_labels, problem.class_axis, problem.out
    n_rows = problem.labels.size
    # Of halves NumPy is quickest, and exact enough, in a float32 copy.
    converted = x.itemsize < 4
    work = np.empty(x.shape, np.float32) if converted else out
    source = work if converted else x
    peak = np.empty_like(work.max(axis=axis, keepdims=True))
    total = np.empty_like(peak)

    def forward() -> Sequence[Any]:
        if converted:
            np.copyto(work, x)
        np.max(source, axis=axis, keepdims=True, out=peak)
        np.subtract(source, peak, out=work)
        at_label = work[at_labels]
        np.exp(work, out=work)
        np.sum(work, axis=axis, keepdims=True, out=total)
        return (np.mean(np.log(total.squeeze(axis)) - at_label, dtype=np.float64),)

    def grad() -> Sequence[Any]:
        (loss,) = forward()
        np.multiply(total, n_rows, out=total)
        np.divide(work, total, out=work)
        work[at_labels] -= 1 / n_rows
        if converted:
            np.copyto(out, work, casting="same_kind")
        return loss, out

    if problem.task == "grad":
        return Entry(grad, problem.results, scratch=(peak, total, work)[: 2 + converted])
    return Entry(forward, problem.results, scratch=(peak, total, work))


def enter_scipy(problem: Problem) -> Entry:
    from scipy.special import log_softmax, logsumexp

    x, at_labels, axis = problem.logits, problem.at_labels, problem.class_axis
    # In float16 many rows are infinitely many.
    factor = np.result_type(x, np.float32).type(1 / problem.labels.size)

    def forward() -> Sequence[Any]:
        return (np.mean(logsumexp(x, axis=axis) - x[at_labels], dtype=np.float64),)

    def grad() -> Sequence[Any]:
        log_p = log_softmax(x, axis=axis)
        loss = -np.mean(log_p[at_labels], dtype=np.float64)
        gradient = np.exp(log_p, out=log_p)
        gradient[at_labels] -= 1
        gradient *= factor
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

    return Entry(grad if problem.task == "grad" else forward, problem.results, scratch=(losses, weights))


def enter_torch(problem: Problem) -> Entry:
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(problem.n_threads)
    bits = problem.logits.view(np.int16) if problem.logits.dtype.name == "bfloat16" else problem.logits
    x = torch.from_numpy(bits).view(getattr(torch, problem.logits.dtype.name)).requires_grad_(problem.task == "grad")
    labels = torch.from_numpy(problem.labels)

    def forward() -> Sequence[Any]:
        with torch.no_grad():
            return (cross_entropy(x, labels),)

    def grad() -> Sequence[Any]:
        loss = cross_entropy(x, labels)
        return loss, *torch.autograd.grad(loss, x)

    call = grad if problem.task == "grad" else forward
    return Entry(call, problem.results, to_numpy=lambda tensor: tensor.detach().double().numpy())


def enter_jax(problem: Problem) -> Entry:
    import jax
    import jax.numpy as jnp

    x, labels = jnp.asarray(problem.logits), jnp.asarray(problem.labels, dtype=np.int32)
    axis = problem.class_axis

    def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
        # Compiles to faster code than picking from log_softmax, or than multiplying with one-hot labels.
        at_label = jnp.take_along_axis(x, jnp.expand_dims(labels, axis), axis=axis).squeeze(axis)
        return jnp.mean(jax.nn.logsumexp(x, axis=axis) - at_label)

    compiled = jax.jit(jax.value_and_grad(loss) if problem.task == "grad" else lambda *inputs: (loss(*inputs),))
    return Entry(lambda: [value.block_until_ready() for value in compiled(x, labels)], problem.results)


def enter_onnxruntime_softmax(problem: Problem) -> Entry:
    """The probabilities alone: the runtime has no cross-entropy, and computes no gradient."""
    return family.enter_onnxruntime(replace(problem, task="softmax"))


SINGLE_AND_DOUBLE = ("float32", "float64")
SOFTXENT = Contender("softxent", ("softxent",), ByTask(enter_softxent, family.enter_softxent))
# Runs beside the others if they have several threads, to show in one run what the further threads bring.
SOFTXENT_ONE_THREAD = Contender(
    "softxent-1-thread", ("softxent",), lambda problem: SOFTXENT.enter(replace(problem, n_threads=1))
)
SOFTXENT_FLOAT32 = Contender("softxent-float32", ("softxent",), enter_softxent_float32)
SOFTXENT_KERNEL = Contender("softxent-kernel", ("softxent",), enter_softxent_kernel, tasks=LOSS_TASKS)
COPY = Contender("copy", ("numpy",), enter_copy)
READ = Contender("read", ("numpy",), enter_read)
EXPONENTIALS = Contender("exponentials", ("softxent",), enter_exponentials)
SOFTMAX_ONLY = Contender(
    "onnxruntime-softmax-only",
    ("onnxruntime", "onnx"),
    enter_onnxruntime_softmax,
    dtypes=SINGLE_AND_DOUBLE,
    tasks=LOSS_TASKS,
)
PEERS = (
    Contender("numpy", ("numpy",), ByTask(enter_numpy, family.enter_numpy)),
    Contender(
        "scipy",
        ("scipy",),
        ByTask(enter_scipy, family.enter_scipy),
        dtypes=("float32", "float64", "float16"),
        tasks=(*LOSS_TASKS, "softmax", "log_softmax", "logsumexp"),
    ),
    Contender(
        "scikit-learn",
        ("sklearn",),
        ByTask(enter_scikit_learn, family.enter_scikit_learn),
        dtypes=SINGLE_AND_DOUBLE,
        takes_shape=rows_by_classes,
        tasks=(*LOSS_TASKS, "hess"),
    ),
    Contender(
        "torch",
        ("torch",),
        ByTask(enter_torch, family.enter_torch),
        takes_shape=classes_second,
        tasks=tuple(task for task in TASKS if task != "hess"),
    ),
    Contender("jax", ("jax",), ByTask(enter_jax, family.enter_jax)),
    Contender(
        "onnxruntime",
        ("onnxruntime", "onnx"),
        family.enter_onnxruntime,
        dtypes=SINGLE_AND_DOUBLE,
        tasks=("softmax", "log_softmax", "logsumexp"),
    ),
    SOFTMAX_ONLY,
)


def yardsticks(case: Case) -> list[Contender]:
    """What is timed beside softxent in this case, to judge it by."""
    found = [COPY, EXPONENTIALS]
    if case.task in ("forward", "logsumexp"):
        found.append(READ)
    if case.threads > 1:
        found.append(SOFTXENT_ONE_THREAD)
    if case.dtype != "float32":
        found.append(SOFTXENT_FLOAT32)
    small = case.shape.is_matrix and case.shape.size <= LARGEST_KERNEL_CALL
    if case.dtype in SINGLE_AND_DOUBLE and small and case.task in SOFTXENT_KERNEL.tasks:
        found.append(SOFTXENT_KERNEL)
    return found
