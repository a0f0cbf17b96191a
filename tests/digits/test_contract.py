"""The numerical contract of docs/numerics.md: a row's loss within 2 ulp, every entry of its gradient within 4 ulp."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from contract import DTYPES, GRAD_ULP, LOSS_ULP, Row, cases
from exact import Array, Truth, solve

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

CASES = {(dtype, case.name): case.rows for dtype in DTYPES for case in cases(dtype)}
every_case = pytest.mark.parametrize(("dtype", "name"), CASES)


@cache
def solved(dtype: str, name: str) -> list[tuple[Row, Truth, Truth]]:
    return [(row, *solve(*row)) for row in CASES[dtype, name]]


def alone(logits: Array, label: int) -> tuple[Array, Array]:
    """The losses and gradients of a row, by itself."""
    loss, grad = sx.value_and_grad(logits, label, reduction="none")
    return loss[None], grad[None]


def among_others(logits: Array, label: int, axis: int = 1, n_rows: int = 9) -> tuple[Array, Array]:
    """The same of so many rows that the narrow kernel takes them, each with the classes moved on by some more."""
    shifts = np.arange(n_rows)[:, None] * (1 + logits.size // n_rows)
    places = (np.arange(logits.size) + shifts) % logits.size  # of each class in each row
    rows = np.empty((n_rows, logits.size), logits.dtype)
    np.put_along_axis(rows, places, logits[None], 1)
    x = np.ascontiguousarray(rows if axis == 1 else rows.T)
    losses, grad = sx.value_and_grad(x, places[:, label], axis=axis, reduction="none")
    return losses, np.take_along_axis(np.moveaxis(grad, axis, 1), places, 1)


def along_axis_0(logits: Array, label: int) -> tuple[Array, Array]:
    return among_others(logits, label, axis=0, n_rows=3)


@pytest.mark.parametrize("way", [alone, among_others, along_axis_0])
@every_case
def test_a_label(dtype: str, name: str, way: Callable[[Array, int], tuple[Array, Array]]) -> None:
    smallest = np.finfo(dtype).smallest_subnormal
    for (logits, label), true_loss, true_grad in solved(dtype, name):
        if way is alone or logits.size <= 1000:
            losses, grads = way(logits, label)
            assert true_loss.error_in_ulp(losses).max() <= LOSS_ULP
            assert true_grad.error_in_ulp(grads).max() <= GRAD_ULP
            # Nothing vanishes but what is below the smallest subnormal number.
            assert np.all((grads != 0) | (np.abs(true_grad.nearest) < smallest))
            # Rows sum to zero to within the rounding of their largest entry, and of entries that are subnormal.
            totals = np.abs(np.sum(grads, axis=1, dtype=np.longdouble))
            assert np.all(totals <= 4 * np.spacing(np.abs(grads).max()) + logits.size * float(smallest))


@every_case
def test_a_one_hot_row_is_its_label(dtype: str, name: str) -> None:
    for logits, label in CASES[dtype, name]:
        if logits.size < 100_000:
            for reduction in ("none", "mean"):
                loss, grad = sx.value_and_grad(logits, label, reduction=reduction)
                same_loss, same_grad = sx.value_and_grad(logits, np.arange(logits.size) == label, reduction=reduction)
                assert same_loss == loss
                np.testing.assert_array_equal(same_grad, grad)


@pytest.mark.parametrize("n_classes", [3, 7, 10, 49, 130, 1000])
def test_equal_logits_share_exactly(n_classes: int) -> None:
    """In float64 the division by the sum is rounded once, so that the gradient is w / C as NumPy has it."""
    weights = np.random.default_rng(n_classes).random(40)
    labels = np.zeros(40, np.intp)
    _, grad = sx.value_and_grad(np.zeros((40, n_classes)), labels, sample_weight=weights, reduction="sum")
    np.testing.assert_array_equal(grad[:, 1:], np.broadcast_to(weights[:, None] / n_classes, (40, n_classes - 1)))
