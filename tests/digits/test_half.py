"""float16 and bfloat16: computed in float32, rounded once, and never summed or returned in half precision."""

import math
import os

import ml_dtypes
import numpy as np
import pytest
from support import HALVES, KINDS, assert_same_bits, problem, run_python

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = [np.dtype(name) for name in HALVES]
half = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def every_number(dtype: np.dtype) -> np.ndarray:
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def rounded_once(logits: np.ndarray, targets: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradient, which are those of float32, rounded."""
    losses, grad = sx.value_and_grad(logits, targets, reduction="none")
    expected = sx.value_and_grad(
        logits.astype(np.float32), targets.astype(np.float32) if kind == "soft" else targets, reduction="none"
    )
    assert_same_bits(losses, expected[0])
    assert_same_bits(grad, expected[1].astype(logits.dtype))
    return losses, grad


@half
@pytest.mark.parametrize("n_classes", [1, 2, 8, 9, 16, 17, 64, 1000, 1003])
@pytest.mark.parametrize("kind", KINDS)
def test_every_width(kind: str, n_classes: int, dtype: np.dtype) -> None:
    logits, targets = problem((40, n_classes), kind, dtype)
    losses, _ = rounded_once(logits, targets, kind)
    assert_same_bits(sx.cross_entropy(logits, targets, reduction="none"), losses)


@half
@pytest.mark.parametrize("step", [1, 2], ids=["side by side", "apart"])
def test_every_number_is_read_as_it_is(step: int, dtype: np.dtype) -> None:
    numbers = every_number(dtype)
    with np.errstate(invalid="ignore"):
        exact = numbers.astype(np.float32)
    rows = np.zeros((numbers.size, 2 * step), dtype)[:, ::step]
    rows[:, 0] = numbers
    wide = np.zeros((numbers.size, 2), np.float32)
    wide[:, 0] = exact
    losses = sx.cross_entropy(rows, np.ones(numbers.size, int), reduction="none")
    np.testing.assert_array_equal(losses, sx.cross_entropy(wide, np.ones(numbers.size, int), reduction="none"))


@half
@pytest.mark.parametrize("step", [1, 2], ids=["side by side", "apart"])
@pytest.mark.parametrize("source", ["float32", "float64"])
def test_gradients_are_rounded_to_nearest_even(source: str, step: int, dtype: np.dtype) -> None:
    """Probabilities from 1 down past the smallest subnormal, and halfway cases."""
    rng = np.random.default_rng(0)
    logits = (-rng.random((400, 100)) * 110).astype(source)
    logits[::4] = np.round(logits[::4] * 1024) / 1024
    labels = rng.integers(100, size=400)
    _, expected = sx.value_and_grad(logits, labels, reduction="sum")
    out = np.zeros((400, 100 * step), dtype)[:, ::step]
    sx.value_and_grad(logits, labels, reduction="sum", out=out)
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(out.view(np.uint16), expected.astype(dtype).view(np.uint16))
    # Weights of a distribution reach the gradient of a lone class as they are: T p - t = t_0 (1 - p).
    halfway = (every_number(dtype)[1 : 2**14].astype(source) + every_number(dtype)[: 2**14 - 1].astype(source)) / 2
    flat = np.zeros((halfway.size, 2), source)
    targets = np.zeros_like(flat)
    targets[:, 0] = 2 * halfway
    _, expected = sx.value_and_grad(flat, targets, reduction="sum")
    out = np.empty(flat.shape, dtype)
    sx.value_and_grad(flat, targets, reduction="sum", out=out)
    np.testing.assert_array_equal(out.view(np.uint16), expected.astype(dtype).view(np.uint16))


@half
def test_many_classes_and_many_rows(dtype: np.dtype) -> None:
    n_classes = 131_072
    loss, grad = sx.value_and_grad(np.zeros((1, n_classes), dtype), [7])
    assert loss == pytest.approx(math.log(n_classes), rel=1e-7)
    assert grad[0, 7] == dtype.type(1 / n_classes - 1)
    assert grad[0, 0] == dtype.type(1 / n_classes)
    for n_rows in (60_000, 70_000, 200_000):
        logits = np.zeros((n_rows, 3), dtype)
        labels = np.arange(n_rows) % 3
        loss, grad = sx.value_and_grad(logits, labels)
        assert loss == pytest.approx(math.log(3), rel=1e-7)
        assert grad[0, 0] == dtype.type(np.float32(-2 / 3) / np.float32(n_rows))
        assert sx.cross_entropy(logits, labels, reduction="sum") == pytest.approx(n_rows * math.log(3), rel=1e-7)


@half
def test_dtypes_of_the_results(dtype: np.dtype) -> None:
    logits, labels = problem((4, 5), "labels", dtype)
    losses, grad = sx.value_and_grad(logits, labels, reduction="none")
    assert (losses.dtype, grad.dtype) == (np.float32, dtype)
    assert type(sx.cross_entropy(logits, labels)) is float
    for other in ("float32", "float64"):
        out = np.empty((4, 5), other)
        assert sx.value_and_grad(logits, labels, out=out)[1] is out
        np.testing.assert_array_equal(out.astype(dtype), sx.value_and_grad(logits, labels)[1])
    distributions = np.eye(5, dtype=dtype)[labels]
    for wide in ("float32", "float64"):
        assert_same_bits(
            sx.value_and_grad(logits.astype(wide), distributions)[1], sx.value_and_grad(logits.astype(wide), labels)[1]
        )


def test_two_bytes_of_anything_else_are_refused() -> None:
    with pytest.raises(TypeError, match=r"logits must be float16, bfloat16, float32 or float64, .*, got dtype \|V2"):
        sx.cross_entropy(np.zeros((2, 3), "V2"), [0, 1])
    eighths = np.zeros((2, 3), ml_dtypes.float8_e5m2)
    with pytest.raises(TypeError, match=r"logits must be .*, got dtype float8_e5m2"):
        sx.cross_entropy(eighths, [0, 1])
    with pytest.raises(TypeError, match="targets must be real numbers, got dtype float8_e5m2"):
        sx.cross_entropy(np.zeros((2, 3)), eighths)


def test_the_package_does_not_import_ml_dtypes() -> None:
    code = "import sys, softxent; assert 'ml_dtypes' not in sys.modules"
    assert run_python(code, dict(os.environ)).returncode == 0
