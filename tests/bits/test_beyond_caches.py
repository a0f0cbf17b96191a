"""Results that are stored past the caches, as those are that no cache can hold, are the ones that go through it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import assert_same_results, problem, to_axis

import softxent as sx

# More than STREAM_FROM logits (job.hpp): long rows; columns of whole cache lines or not, in tiles
# and in panels; rows of few classes, up to the most that the narrow kernel and the middle one take.
LONG = [((260, 16_400), -1), ((3, 1_400_003), -1)]
NARROW = [((65_601, 65), -1), ((16_389, 256), -1), ((13_109, 320), -1), ((4_111, 1_024), -1)]
SHAPES = [*LONG, *NARROW, ((65_600, 65), 0), ((65_601, 65), 0), ((8_080, 520), 0), ((8_081, 520), 0)]


@pytest.mark.usefixtures("level", "several_threads")
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_as_in_place(dtype: str, kind: str, shape: tuple[int, ...], axis: int) -> None:
    logits, targets = to_axis(axis, *problem(shape, kind, dtype))
    expected = {}
    for reduction in ("mean", "none"):
        in_place = logits.copy()
        expected[reduction] = sx.value_and_grad(in_place, targets, axis=axis, reduction=reduction, out=in_place)
    for offset, n_threads, reduction in [(0, 1, "mean"), (1, 1, "none"), (13, 2, "mean"), (0, 3, "mean")]:
        memory = np.full(logits.size + 32, np.nan, dtype)
        out = memory[offset : offset + logits.size].reshape(logits.shape)
        options = {"axis": axis, "reduction": reduction, "n_threads": n_threads}
        assert_same_results(sx.value_and_grad(logits, targets, out=out, **options), expected[reduction])
        assert np.isnan(memory[:offset]).all()
        assert np.isnan(memory[offset + logits.size :]).all()


def impossible_label(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    x[5, labels[5]] = -np.inf
    return {}


def light_row(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"sample_weight": np.where(np.arange(len(x)) == 5, 1e-300 if x.dtype == np.float64 else 1e-30, 1)}


def light_class(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    labels[5] = 3
    return {"weight": np.where(np.arange(x.shape[1]) == 3, 1e-290 if x.dtype == np.float64 else 1e-25, 1)}


def gap_beyond_the_range(x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    x[5] = -np.finfo(x.dtype).max
    x[5, 0] = np.finfo(x.dtype).max
    return {}


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("spoil", [impossible_label, light_row, light_class, gap_beyond_the_range])
@pytest.mark.parametrize("n_classes", [101, 131, 1001])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_only_the_wide_kernel_takes(dtype: str, n_classes: int, spoil: Callable[..., dict[str, Any]]) -> None:
    """Their groups are visited row by row, wherever in a cache line a row starts."""
    logits, labels = problem(((1 << 22) // n_classes + 40, n_classes), "labels", dtype)
    options = {**spoil(logits, labels), "reduction": "sum", "n_threads": 1}
    in_place = logits.copy()
    expected = sx.value_and_grad(in_place, labels, out=in_place, **options)
    assert_same_results(sx.value_and_grad(logits, labels, **options), expected)


@pytest.mark.usefixtures("level", "several_threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_last_stretch_of_a_few_vectors(dtype: str) -> None:
    n = 255 * 16_448 + 100
    logits, labels = problem((1, n), "labels", dtype)
    in_place = logits.copy()
    expected = sx.value_and_grad(in_place, labels, out=in_place, n_threads=1)
    p = sx.softmax(logits, n_threads=1)
    for n_threads in (1, 2):
        out = np.empty(n + 32, dtype)[1 : n + 1].reshape(1, n)
        assert_same_results(sx.value_and_grad(logits, labels, out=out, n_threads=n_threads), expected)
        np.testing.assert_array_equal(sx.softmax(logits, out=out, n_threads=n_threads), p)


RESULTS: dict[str, Callable[..., np.ndarray]] = {
    "softmax": sx.softmax,
    "log_softmax": sx.log_softmax,
    "softmax_vjp": lambda x, **options: sx.softmax_vjp(x, x[::-1], **options),
    "hvp": lambda x, **options: sx.hvp(x, np.argmin(x, -1), x[::-1], reduction="sum", **options),
}


@pytest.mark.usefixtures("level", "several_threads")
@pytest.mark.parametrize("shape", [shape for shape, _ in NARROW], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RESULTS)
def test_results_of_few_classes(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    logits, _ = problem(shape, "labels", dtype)
    memory = np.full(logits.size + 32, np.nan, dtype)
    out = memory[13 : 13 + logits.size].reshape(logits.shape)
    RESULTS[name](logits, out=out, n_threads=2)
    # The same from parts that fit into a cache: they are made of the same rows from both ends, for the vectors' sake.
    half = len(logits) // 64
    for start in (0, len(logits) // 2 - half):
        rows = np.r_[start : start + half, len(logits) - start - half : len(logits) - start]
        np.testing.assert_array_equal(out[rows], RESULTS[name](logits[rows]))
    assert np.isnan(memory[:13]).all()
    assert np.isnan(memory[13 + logits.size :]).all()
