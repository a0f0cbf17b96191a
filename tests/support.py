"""What the tests share: logits and targets, ways to lay them out in memory, and comparisons."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes  # noqa: F401
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import reference

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")  # the second is known to np.dtype by its name once ml_dtypes is imported
KINDS = ("labels", "one-hot", "soft")
REDUCTIONS = ("mean", "sum", "none")

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
        dtype = values.dtype.newbyteorder("S" if self.swapped else "=")
        sides = [values.shape[axis] * abs(self.steps[axis]) for axis in self.order]
        memory = np.full(64 + self.offset + math.prod(sides) * dtype.itemsize + 64, 0xA5, np.uint8)
        spread = np.ndarray(sides, dtype, memory, 64 + self.offset).transpose(tuple(np.argsort(self.order)))
        array = spread[(..., *(slice(None, None, step) for step in self.steps))]
        array[...] = values
        return array, memory


def layouts(ndim: int) -> st.SearchStrategy[Layout]:
    return st.builds(
        Layout,
        order=st.permutations(range(ndim)),
        steps=st.tuples(*[st.sampled_from((1, 1, 2, -1, -3))] * ndim),
        swapped=st.booleans(),
        offset=st.sampled_from((0, 1, 4, 8)),
    )


def assert_same_bits(actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)  # says where they differ; the next line tells -0.0 from 0.0
    assert actual.tobytes() == expected.tobytes()


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
