"""The gradient is the slope of the loss, for every kind of target, every reduction and every option."""

import numpy as np
import pytest
from support import ALL_KINDS, KINDS, OPTIONS, REDUCTIONS, central_differences, optioned, problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("shape", [(5,), (1, 1), (4, 3), (2, 3, 17)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", [*KINDS, "unnormalised"])
def test_gradient_is_the_slope_of_the_loss(kind: str, reduction: str, shape: tuple[int, ...]) -> None:
    logits, targets = problem(shape, kind)
    if kind == "unnormalised":
        targets = 3 * targets
    _, grad = sx.value_and_grad(logits, targets, reduction=reduction)
    slopes = central_differences(lambda x: np.sum(sx.cross_entropy(x, targets, reduction=reduction)), logits)
    np.testing.assert_allclose(grad, slopes, rtol=0, atol=1e-8)


@pytest.mark.parametrize("names", [*((name,) for name in OPTIONS), OPTIONS[:-1], OPTIONS], ids=" + ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((9, 4), -1), ((2, 3, 7), 1)], ids=str)
def test_with_options(shape: tuple[int, ...], axis: int, kind: str, names: tuple[str, ...]) -> None:
    logits, targets, options = optioned(shape, kind, names, axis=axis)
    _, grad = sx.value_and_grad(logits, targets, **options)
    slopes = central_differences(lambda x: sx.cross_entropy(x, targets, **options), logits)
    np.testing.assert_allclose(grad, slopes, rtol=0, atol=1e-8)
