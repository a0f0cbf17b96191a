"""The gradient is the slope of the loss, for every kind of target and every reduction."""

import numpy as np
import pytest
from support import KINDS, REDUCTIONS, central_differences, problem

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
