"""Labels, one-hot and soft targets mean the same thing, and distributions need not sum to one."""

import numpy as np
import pytest
from reference import reference
from support import FLOATS, assert_accurate, assert_same_bits, problem

import softxent as sx

pytestmark = [pytest.mark.usefixtures("level"), pytest.mark.parametrize("dtype", FLOATS)]

CLASSES = (1, 2, 3, 10, 17, 65, 1000)


@pytest.mark.parametrize("n_classes", CLASSES[:-1])
def test_soft_targets_mix_the_results_of_labels(n_classes: int, dtype: str) -> None:
    logits, targets = problem((9, n_classes), "soft", dtype)
    per_label = [sx.value_and_grad(logits, np.full(9, label), reduction="none") for label in range(n_classes)]
    losses, grad = sx.value_and_grad(logits, targets, reduction="none")
    tolerance = 10 * np.finfo(dtype).eps
    mixed_losses = np.sum([t * loss for t, (loss, _) in zip(targets.T, per_label, strict=True)], axis=0)
    mixed_grads = np.sum([t[:, None] * grad for t, (_, grad) in zip(targets.T, per_label, strict=True)], axis=0)
    np.testing.assert_allclose(losses, mixed_losses, rtol=tolerance)
    np.testing.assert_allclose(grad, mixed_grads, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("mass", [0, 0.25, 7])
def test_a_distribution_need_not_sum_to_one(mass: float, n_classes: int, dtype: str) -> None:
    logits, targets = problem((9, n_classes), "soft", dtype)
    targets *= np.asarray(mass, dtype)
    losses, grad = sx.value_and_grad(logits, targets, reduction="none")
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    total = targets.sum(axis=1, keepdims=True, dtype=np.float64)
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(losses, -(targets * np.log(p)).sum(axis=1), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(grad, total * p - targets, rtol=0, atol=7 * tolerance)


def test_targets_may_be_negative(dtype: str) -> None:
    logits, targets = problem((9, 20), "soft", dtype)
    positive, negative = sx.value_and_grad(logits, targets), sx.value_and_grad(logits, -targets)
    assert negative[0] == -positive[0]
    assert_same_bits(negative[1] + 0, -positive[1] + 0)  # + 0 makes -0.0 and 0.0 alike


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_a_gradient_row_sums_to_zero(kind: str, n_classes: int, dtype: str) -> None:
    _, grad = sx.value_and_grad(*problem((9, n_classes), kind, dtype), reduction="sum")
    np.testing.assert_allclose(grad.sum(axis=1, dtype=np.float64), 0, atol=5 * np.finfo(dtype).eps)


@pytest.mark.parametrize("nowhere", [-1000, -np.inf])
def test_a_class_without_target_costs_nothing(nowhere: float, dtype: str) -> None:
    logits = np.array([[0, nowhere, 0]], dtype)
    loss, grad = sx.value_and_grad(logits, [[0.5, 0, 0.5]])
    assert loss == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_array_equal(grad, 0)


def test_targets_are_read_in_the_precision_of_the_logits(dtype: str) -> None:
    logits, targets = problem((9, 20), "soft", dtype)
    other = "float32" if dtype == "float64" else "float64"
    finer = targets.astype(other) * (1 + 1e-9)
    as_read = finer.astype(dtype)
    losses, grad = sx.value_and_grad(logits, finer, reduction="none")
    assert_accurate(logits, as_read, losses, grad)
    assert_same_bits(grad, sx.value_and_grad(logits, as_read, reduction="none")[1])


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]], ids=str)
def test_a_confident_soft_row_keeps_its_digits_in_any_order(order: list[int], dtype: str) -> None:
    """What the target leaves to the other classes is summed without the 1 of the top class, wherever that stands."""
    logits = np.array([-100, 0, -20], dtype)
    targets = np.array([0, 1, 1e-9], dtype)
    _, grad = sx.value_and_grad(logits[order], targets[order])
    p = np.exp(-20.0)
    expected = np.array([np.exp(-100.0), 1e-9 - p, p - 1e-9])
    np.testing.assert_allclose(grad, expected[order].astype(dtype), rtol=1e-4 if dtype == "float32" else 1e-6)


def test_next_to_no_mass_keeps_its_digits(dtype: str) -> None:
    tiny = 1e-33 if dtype == "float32" else 1e-300
    logits, targets = np.array([0, 1, 2], dtype), np.array([tiny, 0, 0], dtype)
    loss, grad = sx.value_and_grad(logits, targets)
    true_loss, true_grad = reference(logits, np.array([1, 0, 0]))
    mass = float(targets[0])
    assert loss == pytest.approx(mass * true_loss, rel=1e-6)
    np.testing.assert_allclose(grad / mass, true_grad, rtol=2e-6)


def test_a_huge_mass_is_no_more_than_itself(dtype: str) -> None:
    huge = 1e30 if dtype == "float32" else 1e300
    logits, targets = np.array([0, -1, -2], dtype), np.array([huge, huge / 10, 0], dtype)
    _, grad = sx.value_and_grad(logits, targets)
    p = np.exp([0.0, -1, -2]) / np.exp([0.0, -1, -2]).sum()
    np.testing.assert_allclose(grad / huge, p * 1.1 - [1, 0.1, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "pair"])
def test_ties_that_the_target_wants(kind: str, dtype: str) -> None:
    """Within a stretch and in different ones: rows this long are added up in several."""
    places, shares = np.array([7, 9, 30_000, 39_999]), np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.full((2, 40_000), -200, dtype)
    logits[:, places] = 3
    targets = np.zeros_like(logits)
    targets[:, places] = shares
    pair = np.tile(places, (2, 1)), np.tile(shares.astype(dtype), (2, 1))
    losses, grad = sx.value_and_grad(logits, targets if kind == "soft" else pair, reduction="none")
    tolerance = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(losses, [np.log(4)] * 2, rtol=tolerance)
    np.testing.assert_allclose(grad[:, places], np.tile(1 / 4 - shares, (2, 1)), rtol=tolerance)
