"""Results that are stored past the caches, as those are that no cache can hold, are the ones that go through it."""

from collections.abc import Callable

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
