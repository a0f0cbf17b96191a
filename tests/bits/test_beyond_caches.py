"""Gradients that are stored past the caches, as those are that no cache can hold, are the ones that go through it."""

import numpy as np
import pytest
from support import assert_same_results, problem, to_axis

import softxent as sx

# More than STREAM_FROM logits (plan.pxi): long rows; columns of whole cache lines or not, in tiles
# and in panels; rows of few classes.
LONG = [((260, 16_400), -1), ((3, 1_400_003), -1)]
SHAPES = [*LONG, ((65_600, 65), 0), ((65_601, 65), 0), ((8_080, 520), 0), ((8_081, 520), 0), ((65_601, 65), -1)]


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
