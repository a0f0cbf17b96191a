"""What the tests share: logits and targets, calls of every kind, ways to lay arrays out in memory, and comparisons."""

import math
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import as_distributions, reference, transformed

import softxent as sx

ROOT = Path(__file__).resolve().parents[1]  # of the checkout

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")  # the second is known to np.dtype by its name once ml_dtypes is imported
KINDS = ("labels", "one-hot", "soft")
ALL_KINDS = (*KINDS, "pair")
REDUCTIONS = ("mean", "sum", "none")
# "where by row" allows each row classes of its own.
OPTIONS = (
    "weight",
    "sample_weight",
    "ignore_index",
    "label_smoothing",
    "temperature",
    "softcap",
    "z_loss",
    "where",
    "where by row",
)

# Any number of leading axes, empty ones included, and a class axis of up to several vectors.
SHAPES = st.builds(
    lambda leading, n_classes: (*leading, n_classes),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    st.integers(1, 70),
)


def problem(shape: tuple[int, ...], kind: str = "labels", dtype: npt.DTypeLike = "float64") -> tuple[np.ndarray, ...]:
    """Logits from N(0, 3) and targets of a kind; the same ones whenever the shape is the same."""
    rng = np.random.default_rng(shape)
    logits = rng.normal(0, 3, shape).astype(dtype)
    labels = np.asarray(rng.integers(shape[-1], size=shape[:-1]))
    soft = rng.random(shape) + 1e-3
    if kind == "labels":
        return logits, labels
    if kind == "one-hot":
        return logits, one_hot(labels, shape[-1]).astype(dtype)
    return logits, (soft / soft.sum(axis=-1, keepdims=True)).astype(dtype)


def sparse(shape: tuple[int, ...], n_entries: int = 3, dtype: npt.DTypeLike = "float64") -> tuple[np.ndarray, ...]:
    """A pair of indices and probs for each row of logits (..., C), some of the indices more than once."""
    rng = np.random.default_rng((*shape, n_entries))
    where = (*shape[:-1], n_entries)
    return rng.integers(shape[-1], size=where), rng.random(where).astype(dtype)


def optioned(
    shape: tuple[int, ...],
    kind: str = "labels",
    names: Collection[str] = OPTIONS[:-1],
    dtype: npt.DTypeLike = "float64",
    axis: int = -1,
) -> tuple[np.ndarray, Any, dict[str, Any]]:
    """Logits, targets and the named options of a problem of shape (..., C), its classes then along `axis`.

    No row has a target on a class that it is not allowed. Ignored labels only where there are labels.
    """
    rng = np.random.default_rng((len(shape), *shape))
    logits, targets = problem(shape, "soft" if kind == "pair" else kind, dtype)
    if kind == "pair":
        targets = sparse(shape, 3, dtype)
    weight, sample_weight = rng.random(shape[-1]) + 0.1, rng.random(shape[:-1]) + 0.1
    values: dict[str, Any] = {
        "weight": weight.astype(computed_in(logits)),
        "sample_weight": np.asarray(sample_weight.astype(np.float32)),
        "label_smoothing": 0.15,
        "temperature": 1.7,
        "softcap": 5.0,
        "z_loss": 0.03,
    }
    options = {name: values[name] for name in names if name in values}
    if {"where", "where by row"} & set(names):
        allowed = rng.random(shape if "where by row" in names else shape[-1:]) < 0.7
        # An only class that is allowed everywhere spares every row the question.
        allowed[..., shape[-1] // 2] = True
        targets = on_allowed(targets, allowed, shape)
        options["where"] = to_axis(axis, allowed, np.int8(0))[0] if allowed.ndim == len(shape) else allowed
    if "ignore_index" in names and kind == "labels":
        options["ignore_index"] = -100
        ignored = np.asarray(rng.random(shape[:-1]) < 0.2)
        ignored.flat[:1] = False
        targets = np.asarray(np.where(ignored, -100, targets))
    logits, targets = to_axis(axis, logits, targets)
    return logits, targets, {"axis": axis, **options}


class Call(NamedTuple):
    """A function, the kind of its targets and the names of its options."""

    function: Callable[..., Any]
    kind: str
    names: Collection[str] = ()

    def arguments(self, shape: tuple[int, ...], dtype: npt.DTypeLike = "float64", axis: int = -1) -> dict[str, Any]:
        """Of a problem of shape (..., C), its classes then along `axis`."""
        logits, targets, options = optioned(shape, self.kind, self.names, dtype, axis)
        return {"logits": logits, "targets": targets, **options}

    def __call__(self, **arguments: Any) -> tuple[Any, ...]:
        """Loss and gradient, or all arrays that `evaluate` returns."""
        result = self.function(**arguments)
        return tuple(result[:-2] if isinstance(result, sx.Evaluation) else result)


# What holds of every call is tested over these: each kind of target, each option, all of them.
PLAIN = {kind: Call(sx.value_and_grad, kind) for kind in ALL_KINDS}
WITH_ALL = {f"{kind}, all options": Call(sx.value_and_grad, kind, OPTIONS) for kind in ALL_KINDS}
WITH_ONE = {f"labels, {name}": Call(sx.value_and_grad, "labels", (name,)) for name in OPTIONS}
EVALUATIONS = {
    "evaluate": Call(sx.evaluate, "labels"),
    "evaluate, where": Call(sx.evaluate, "labels", OPTIONS[:-1]),
    "evaluate, all options": Call(sx.evaluate, "labels", OPTIONS),
}
GRADIENTS = PLAIN | WITH_ALL | WITH_ONE | {"soft, where": Call(sx.value_and_grad, "soft", OPTIONS[:-1])}
CALLS = GRADIENTS | EVALUATIONS


def each_array(arguments: dict[str, Any], change: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """The arguments, all arrays among them changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(change, value))
        return change(value) if isinstance(value, np.ndarray) else value

    return {name: changed(value) for name, value in arguments.items()}


def on_allowed(targets: Any, allowed: np.ndarray, shape: tuple[int, ...]) -> Any:
    """The targets, nothing of them on classes that are not allowed; labels go to the middle class instead."""
    allowed = np.broadcast_to(allowed, shape)
    if isinstance(targets, tuple):
        indices, probs = targets
        return indices, np.where(np.take_along_axis(allowed, indices, -1), probs, np.zeros((), probs.dtype))
    if targets.ndim == len(shape):
        return np.where(allowed, targets, np.zeros((), targets.dtype))  # NumPy 1.26 has no common dtype with an int
    stays = np.take_along_axis(allowed, targets[..., np.newaxis], -1)[..., 0]
    return np.asarray(np.where(stays, targets, shape[-1] // 2))


def unruly(shape: tuple[int, int], kind: str = "labels", dtype: npt.DTypeLike = "float64") -> tuple[np.ndarray, ...]:
    """Logits and targets of all that a row can be, one kind after the other; the same ones for the same shape."""
    rng = np.random.default_rng(shape)
    rows = np.arange(shape[0])
    least = float(np.finfo("float64" if dtype == "float64" else "float32").smallest_normal)
    normal, some = rng.normal(size=shape), rng.random(shape) < 0.5
    label = rng.integers(shape[1], size=shape[0])
    here, sign = one_hot(label, shape[1]), rng.choice([-1, 1], size=(shape[0], 1))
    below_top = normal < normal.max(axis=1, keepdims=True)
    varieties = [
        normal,
        np.where(here, rng.choice([20, 50, 90, 700], size=here.shape), normal),  # confident rows
        normal * 1e-3,
        normal * 30,
        normal * 1e4,
        np.round(normal),  # ties, at the maximum too
        np.broadcast_to(sign * 0.7, shape),
        np.where(here, 0, np.log(least) + 2 - 40 * rng.random(shape)),  # probabilities down past the smallest number
        np.where(some & below_top, -np.inf, normal),
        np.where(here, np.nan, normal),
        normal + 600 * sign,
        np.where(here, np.inf, normal),
        normal + 5000 * sign,
        np.full(shape, -np.inf),
        normal * 1e30,
        normal * least,
        normal + 1e30 * sign,
    ]
    logits = np.choose(rows[:, None] % len(varieties), varieties)
    soft = rng.random(shape)
    soft /= soft.sum(axis=1, keepdims=True)
    top = one_hot(logits.argmax(axis=1), shape[1])
    distributions = [
        soft,
        np.where(np.isneginf(logits), 0, soft),
        here,
        np.where(some, 0, soft),
        np.zeros(shape),
        np.where(top, 1, 1e-9 * soft),
        7.5 * soft,
        soft * least * 1e8,  # next to no mass
        normal,
        np.where(top, -0.0, soft),
        soft * 1e30,
    ]
    with np.errstate(over="ignore", under="ignore"):
        if kind == "labels":
            return logits.astype(dtype), np.where(rows % 2, top.argmax(axis=1), label)
        return logits.astype(dtype), np.choose(rows[:, None] % len(distributions), distributions).astype(dtype)


def computed_in(logits: np.ndarray) -> np.dtype:
    return np.dtype(np.float32 if logits.dtype.itemsize <= 4 else np.float64)


def row_by_row(
    logits: np.ndarray, targets: np.ndarray, grad_dtype: npt.DTypeLike = None
) -> tuple[np.ndarray, np.ndarray]:
    """Losses and the gradient of their sum, of logits (..., C), from a call for every row.

    Each is contiguous and of the dtype computed in: so few of these are what the wide kernel is for. The gradient is
    rounded afterwards, to the dtype of the logits unless told otherwise.
    """
    dtype = computed_in(logits)
    x, t = logits.astype(dtype, order="C"), targets if targets.ndim < logits.ndim else targets.astype(dtype, order="C")
    losses, grad = np.empty(x.shape[:-1], dtype), np.empty(x.shape, dtype)
    for row in np.ndindex(losses.shape):
        losses[row], _ = sx.value_and_grad(x[row], t[row], reduction="none", out=grad[row])
    return losses, rounded(grad, np.dtype(logits.dtype if grad_dtype is None else grad_dtype))


def rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`x` rounded once. ml_dtypes rounds float64 to bfloat16 twice, on the way through float32."""
    with np.errstate(over="ignore", under="ignore"):
        if x.dtype == np.float64 and dtype.name == "bfloat16":
            single = x.astype(np.float32)
            single = np.where(np.abs(single) > np.abs(x), np.nextafter(single, np.float32(0)), single)
            # Cut off, and the last bit set for what was: no tie where there was none.
            x = (single.view(np.uint32) | ((single != x) & ~np.isnan(x))).view(np.float32)
        return x.astype(dtype)


def one_hot(labels: npt.ArrayLike, n_classes: int) -> np.ndarray:
    return np.asarray(labels)[..., None] == np.arange(n_classes)


@dataclass(frozen=True)
class Layout:
    """How an array lies in memory: the order of its axes, the step along each, the byte order, the alignment."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    swapped: bool
    offset: int

    def place(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A copy of `values`, and all the bytes that it lies among."""
        swapped = self.swapped and values.dtype.kind != "V"  # NumPy cannot swap the bytes of a bfloat16
        dtype = values.dtype.newbyteorder("S" if swapped else "=")
        sides = [values.shape[axis] * abs(self.steps[axis]) for axis in self.order]
        memory = np.full(64 + self.offset + math.prod(sides) * dtype.itemsize + 64, 0xA5, np.uint8)
        spread = np.ndarray(sides, dtype, memory, 64 + self.offset).transpose(tuple(np.argsort(self.order)))
        array = spread[(..., *(slice(None, None, step) for step in self.steps))]
        array[...] = values
        return array, memory


def to_axis(axis: int, logits: np.ndarray, targets: Any) -> tuple[np.ndarray, Any]:
    """The same, their classes, the last axis as they come, along `axis`. Labels and pairs stay as they are."""
    moved = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
    if isinstance(targets, tuple) or targets.ndim < logits.ndim:
        return moved, targets
    return moved, np.ascontiguousarray(np.moveaxis(targets, -1, axis))


def layouts(ndim: int) -> st.SearchStrategy[Layout]:
    return st.builds(
        Layout,
        order=st.permutations(range(ndim)),
        steps=st.tuples(*[st.sampled_from((1, 1, 2, -1, -3))] * ndim),
        swapped=st.booleans(),
        offset=st.sampled_from((0, 1, 4, 8)),
    )


def assert_same_bits(actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """The same numbers of the same sign; one NaN is as good as another."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if actual.tobytes() != expected.tobytes():
        # That says where they differ, of bfloat16 too.
        np.testing.assert_array_equal(actual.astype(np.float64), expected.astype(np.float64))
        numbers = ~np.isnan(actual)
        assert actual[numbers].tobytes() == expected[numbers].tobytes()  # tells -0.0 from 0.0


def assert_same_results(actual: Iterable[npt.ArrayLike], expected: Iterable[npt.ArrayLike]) -> None:
    """Losses and gradients, bit for bit."""
    for one, other in zip(actual, expected, strict=True):
        assert_same_bits(one, other)


def assert_accurate(logits: np.ndarray, targets: np.ndarray, losses: np.ndarray, grad: np.ndarray) -> None:
    """The losses of all rows and the gradient of their sum keep the bounds promised for the dtype of the logits."""
    true_losses, true_grad = reference(logits, targets, "none")
    loss_error, grad_error = np.abs(losses - true_losses), np.abs(grad - true_grad)
    if logits.dtype == np.float32:
        assert np.all(loss_error <= 4 * np.spacing(true_losses.astype(np.float32)))
        assert np.all(grad_error <= 1e-6)
    else:
        assert np.all(loss_error <= 1e-13 * true_losses)
        t = targets if targets.ndim == logits.ndim else 0  # T p - t is as exact as its two terms
        assert np.all(grad_error <= 1e-13 * (np.abs(true_grad) + t))


def assert_matches(
    loss: Any, grad: np.ndarray | None, logits: np.ndarray, targets: Any, reduction: str = "mean", **options: Any
) -> None:
    """Loss and gradient, if there is one, are those of the reference, to within a few roundings.

    A rounding of a transformed logit is one of its exponent, so errors grow with the largest of them; and with the
    terms that a row's results are the differences of, whatever remains of these.
    """
    x = np.moveaxis(logits.astype(np.float64), options["axis"], -1)
    allowed = np.asarray(options.get("where", True))
    allowed = np.moveaxis(allowed, options["axis"], -1) if allowed.ndim == x.ndim else allowed
    temperature, z_loss = options.get("temperature", 1.0), options.get("z_loss", 0.0)
    z, _ = transformed(x, temperature, options.get("softcap"), allowed)
    reach = 1 + np.log(x.shape[-1]) + np.abs(z[np.isfinite(z)]).max(initial=0)
    t = np.abs(as_distributions(targets, x.shape, options["axis"])[1]).sum(axis=-1)
    rows = np.abs(options.get("sample_weight", 1.0)) * np.ones(t.shape)
    mass = t * np.max(options.get("weight", 1.0))
    expected_loss, expected_grad = reference(logits, targets, reduction, **options)
    total = reference(logits, targets, "none", **options)[0].sum() if reduction == "mean" else 0
    share = expected_loss / total if total else 1.0
    roundings = 8 * float(np.finfo(computed_in(logits)).eps) * reach
    loss_terms = rows * (2 * mass + z_loss * reach) * reach
    bound = roundings * share * (loss_terms if reduction == "none" else loss_terms.sum())
    assert np.shape(loss) == np.shape(expected_loss)
    assert np.all(np.abs(loss - expected_loss) <= bound)
    if grad is not None:
        bound = roundings * share * (rows * (mass + 2 * z_loss * reach))[..., np.newaxis] / temperature
        info = ml_dtypes.finfo(grad.dtype)
        bound = np.moveaxis(np.broadcast_to(bound, x.shape), -1, options["axis"])
        bound = bound + float(info.eps) * np.abs(expected_grad) + float(info.smallest_subnormal)
        assert grad.shape == logits.shape
        assert np.all(np.abs(grad.astype(np.float64) - expected_grad) <= bound)


def central_differences(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of `function` at x, good to about 1e-9."""
    directions = np.eye(x.size).reshape(-1, *x.shape) * step
    slopes = [(function(x + d) - function(x - d)) / (2 * step) for d in directions]
    return np.reshape(slopes, x.shape)


def run_python(code: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The code in a Python of its own; it is killed if it hangs."""
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
