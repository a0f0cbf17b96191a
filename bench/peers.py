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
from typing import Any

import numpy as np
import numpy.typing as npt
from cases import DTYPES, Case, Shape, Task

import softxent as sx
from softxent import _dispatch

Array = npt.NDArray[Any]

LOGIT_SCALE = 3.0
# The largest error allowed in a probability, in a loss (relative to it, where it is above 1) and in an entry of the
# gradient (times the number of rows, which makes it a probability less a target). For the halves, four of their eps.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
# The gradient of many rows may be below the normal numbers: so far apart are its neighbours there.
SMALLEST_SUBNORMAL = {"float16": 2.0**-24}
# Beyond this, what Python costs does not show.
LARGEST_KERNEL_CALL = 10_000
# So many numbers and their exponentials stay in a cache, and a call for each such piece costs next to nothing.
CACHED_NUMBERS = 2**15


@dataclass(frozen=True)
class Problem:
    """Logits and labels of which the mean loss is wanted and, if the task is "grad", its gradient.

    Whoever accepts a buffer for its result gets `out`, so that no contender has luckier memory than another. With
    `keep_nothing`, memory is being watched: whoever can must not hold on to what it has freed.
    """

    task: Task
    logits: Array
    labels: npt.NDArray[np.int64]
    class_axis: int
    out: Array
    n_threads: int
    keep_nothing: bool = False

    @classmethod
    def random(cls, case: Case, keep_nothing: bool = False) -> "Problem":
        rng = np.random.default_rng(0)
        shape = case.shape
        logits = (LOGIT_SCALE * rng.standard_normal(shape.axes)).astype(dtype_of(case.dtype))
        labels = rng.integers(shape.n_classes, size=shape.of_labels)
        out = np.zeros_like(logits)  # touched, so that no first call pays for its pages
        return cls(case.task, logits, labels, shape.class_axis, out, case.threads, keep_nothing)

    @property
    def results(self) -> tuple[str, ...]:
        return ("loss", "gradient") if self.task == "grad" else ("loss",)

    @property
    def at_labels(self) -> tuple[Array, ...]:
        """The index of one logit a row: its label's."""
        index: list[Array] = list(np.indices(self.labels.shape, sparse=True))
        index.insert(self.class_axis, self.labels)
        return tuple(index)


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


@dataclass(frozen=True)
class Entry:
    """A contender ready to run: `call` returns one value for each name in `results`."""

    call: Callable[[], Sequence[Any]]
    results: tuple[str, ...]
    to_numpy: Callable[[Any], Array] = np.asarray
    computed_in: str | None = None  # a dtype, if not that of the logits
    scratch: tuple[Array, ...] = ()  # kept from call to call; neither input nor result


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


def reference(problem: Problem) -> dict[str, Array]:
    """All that a contender may return, computed in float64 with plain NumPy."""
    axis, at_labels, n_rows = problem.class_axis, problem.at_labels, problem.labels.size
    x = problem.logits.astype(np.float64)
    x -= x.max(axis=axis, keepdims=True)
    probabilities = np.exp(x)
    total = probabilities.sum(axis=axis, keepdims=True)
    probabilities /= total
    gradient = probabilities / n_rows
    gradient[at_labels] -= 1 / n_rows
    loss = np.mean(np.log(total.squeeze(axis)) - x[at_labels])
    return {"loss": loss, "gradient": gradient, "probabilities": probabilities, "logits": problem.logits}


def find_error(entry: Entry, problem: Problem, right: Mapping[str, Array]) -> str | None:
    """Run the entry once and say what is wrong with its results, if anything is."""
    dtype = entry.computed_in or problem.logits.dtype.name
    units = {"loss": max(1.0, abs(float(right["loss"]))), "gradient": 1 / problem.labels.size}
    for name, value in zip(entry.results, entry.call(), strict=True):
        got = entry.to_numpy(value)
        if got.shape != right[name].shape:
            return f"wrong {name}: its shape is {got.shape}, not {right[name].shape}"
        unit = units.get(name, 1.0)
        error = float(np.max(np.abs(got.astype(np.float64) - right[name]))) / unit
        allowed = TOLERANCES[dtype] + SMALLEST_SUBNORMAL.get(dtype, 0) / unit
        if not error <= allowed:  # NaN is refused too
            return f"wrong {name}: off by {error:.1e}, allowed {allowed:.0e}"
    return None


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
    x = problem.logits.astype(np.float32)
    entry = enter_softxent(replace(problem, logits=x, out=np.zeros_like(x)))
    return replace(entry, computed_in=None if problem.logits.itemsize < x.itemsize else "float32")


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
    import onnxruntime
    from onnx import helper

    x, out = problem.logits, problem.out
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=problem.class_axis)],
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
    options.enable_cpu_mem_arena = not problem.keep_nothing
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
SOFTXENT_FLOAT32 = Contender("softxent-float32", ("softxent",), enter_softxent_float32)
SOFTXENT_KERNEL = Contender("softxent-kernel", ("softxent",), enter_softxent_kernel)
COPY = Contender("copy", ("numpy",), enter_copy)
READ = Contender("read", ("numpy",), enter_read)
EXPONENTIALS = Contender("exponentials", ("softxent",), enter_exponentials)
SOFTMAX_ONLY = Contender(
    "onnxruntime-softmax-only", ("onnxruntime", "onnx"), enter_onnxruntime_softmax, dtypes=("float32", "float64")
)
PEERS = (
    Contender("numpy", ("numpy",), enter_numpy),
    Contender("scipy", ("scipy",), enter_scipy, dtypes=("float32", "float64", "float16")),
    Contender(
        "scikit-learn",
        ("sklearn",),
        enter_scikit_learn,
        dtypes=("float32", "float64"),
        takes_shape=rows_by_classes,
    ),
    Contender("torch", ("torch",), enter_torch, takes_shape=classes_second),
    Contender("jax", ("jax",), enter_jax),
    SOFTMAX_ONLY,
)


def yardsticks(case: Case) -> list[Contender]:
    """What is timed beside softxent in this case, to judge it by."""
    found = [COPY, EXPONENTIALS]
    if case.task == "forward":
        found.append(READ)
    if case.threads > 1:
        found.append(SOFTXENT_ONE_THREAD)
    if case.dtype != "float32":
        found.append(SOFTXENT_FLOAT32)
    if case.dtype in ("float32", "float64") and case.shape.is_matrix and case.shape.size <= LARGEST_KERNEL_CALL:
        found.append(SOFTXENT_KERNEL)
    return found
