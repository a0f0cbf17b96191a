"""NaN and infinities: what they do to their own row, and that they do nothing to the others."""

from typing import Any

import numpy as np
import pytest
from support import FLOATS, assert_same_bits, one_hot, problem

import softxent as sx

pytestmark = [pytest.mark.usefixtures("level"), pytest.mark.parametrize("dtype", FLOATS)]

NAN, INF = np.nan, np.inf
LOG2 = 0.6931471805599453


@pytest.mark.parametrize(
    ("logits", "label", "loss", "grad"),
    [
        ([NAN, 1, 2], 0, NAN, NAN),
        ([1, NAN, 2], 0, NAN, NAN),
        ([1, 2, NAN], 1, NAN, NAN),
        ([NAN, -INF, -INF], 0, NAN, NAN),
        ([-INF, NAN, -INF], 0, NAN, NAN),
        ([NAN, NAN, NAN], 0, NAN, NAN),
        ([INF, 1, 2], 0, NAN, NAN),
        ([1, INF, 2], 0, NAN, NAN),
        ([INF, INF, 2], 2, NAN, NAN),
        ([INF, -INF, 2], 0, NAN, NAN),
        ([-INF, -INF, -INF], 0, NAN, NAN),
        ([-INF, 0, 0], 0, INF, [-1, 0.5, 0.5]),
        ([-INF, 0, 0], 1, LOG2, [0, -0.5, 0.5]),
        ([0, -INF, 0], 2, LOG2, [0.5, 0, -0.5]),
        ([-INF, -INF, 5], 2, 0, [0, 0, 0]),
        ([NAN], 0, NAN, NAN),
        ([INF], 0, NAN, NAN),
        ([-INF], 0, NAN, NAN),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["labels", "one-hot"])
@pytest.mark.parametrize("padding", [0, 14, 61], ids=lambda n: f"{n} more classes")
def test_a_row(padding: int, kind: str, logits: list[Any], label: int, loss: float, grad: object, dtype: str) -> None:
    row = np.array([*logits, *[-INF] * padding], dtype)
    targets = label if kind == "labels" else one_hot(label, row.size)
    value, gradient = sx.value_and_grad(row, targets)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[: len(logits)], np.broadcast_to(grad, len(logits)), rtol=1e-6)
    np.testing.assert_array_equal(gradient[len(logits) :], NAN if np.isnan(loss) else 0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("n_classes", [1, 3, 17, 100, 1001])
def test_a_bad_row_leaves_the_others_alone(n_classes: int, kind: str, bad: float, dtype: str) -> None:
    logits, targets = problem((7, n_classes), kind, dtype)
    good = sx.value_and_grad(logits, targets, reduction="none")
    others = np.arange(7) != 3
    for position in {0, n_classes // 2, n_classes - 1}:
        spoilt = logits.copy()
        spoilt[3, position] = bad
        losses, grad = sx.value_and_grad(spoilt, targets, reduction="none")
        assert np.isnan(losses[3]) or bad == -INF
        assert np.isnan(grad[3]).all() or bad == -INF
        assert_same_bits(losses[others], good[0][others])
        assert_same_bits(grad[others], good[1][others])


@pytest.mark.parametrize(("bad", "loss"), [(NAN, NAN), (-INF, INF)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_rows", [2, 3000])
def test_the_reduced_loss_shows_a_bad_row(n_rows: int, reduction: str, bad: float, loss: float, dtype: str) -> None:
    logits = np.zeros((n_rows, 3), dtype)
    logits[n_rows // 2, 1] = bad
    np.testing.assert_equal(sx.cross_entropy(logits, np.ones(n_rows, int), reduction=reduction), loss)


@pytest.mark.parametrize("n_classes", [3, 16, 100])
def test_vanishing_probabilities_are_zero_not_nan(n_classes: int, dtype: str) -> None:
    logits = np.full((1, n_classes), -1e6, dtype)
    logits[0, 1] = 0
    loss, grad = sx.value_and_grad(logits, [1])
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)
    loss, grad = sx.value_and_grad(logits, [0])
    assert loss == 1e6
    np.testing.assert_array_equal(grad[0], np.eye(n_classes)[1] - np.eye(n_classes)[0])


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("n_classes", [3, 300])
def test_nothing_of_an_infinite_gap_is_nothing(n_classes: int, n_rows: int, dtype: str) -> None:
    """A target without mass has nothing to share out; a share of all leaves nothing to the label."""
    logits = np.zeros((n_rows, n_classes), dtype)
    logits[:, 1] = -INF
    for smoothing in (0.25, 1):
        loss, grad = sx.value_and_grad(logits, np.zeros_like(logits), label_smoothing=smoothing)
        assert loss == 0
        assert not grad.any()
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, label_smoothing=1, reduction="sum")
    assert loss == INF
    expected = np.full((n_rows, n_classes), 1 / (n_classes - 1) - 1 / n_classes)
    expected[:, 1] = -1 / n_classes
    np.testing.assert_allclose(grad, expected, rtol=0, atol=float(np.finfo(dtype).eps))
