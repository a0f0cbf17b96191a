"""Five derivations of the gradient of softmax cross-entropy, each by its own numbers and for its own use."""

import numpy as np
import pytest
from support import central_differences, one_hot, problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_logarithm_and_exponential_cancel() -> None:
    """L = ln(sum of e^f) - f_y has the gradient p, with 1 subtracted at the label."""
    logits = np.log([0.1, 0.3, 0.6])
    loss, grad = sx.value_and_grad(logits, 2)
    assert loss == pytest.approx(-np.log(0.6))
    np.testing.assert_allclose(grad, [0.1, 0.3, -0.4])


@pytest.mark.parametrize(("p_label", "loss"), [(0.9, 0.105), (0.1, 2.303)])
def test_a_good_and_a_bad_prediction(p_label: float, loss: float) -> None:
    assert sx.cross_entropy(np.log([p_label, 1 - p_label]), [1, 0]) == pytest.approx(loss, abs=5e-4)


def test_the_long_way_through_the_probabilities() -> None:
    """dL/dp = -y / p, the Jacobian p_i ([i = j] - p_j) of softmax, and the sum over all paths, give p - y."""
    logits, y = problem((7,), "one-hot")
    p = softmax(logits)
    jacobian = np.diag(p) - np.outer(p, p)
    _, grad = sx.value_and_grad(logits, y)
    np.testing.assert_allclose(grad, jacobian.T @ (-y / p), rtol=0, atol=1e-15)
    np.testing.assert_allclose(grad, p - y, rtol=0, atol=1e-15)


def test_a_linear_classifier() -> None:
    """For f_j = w_j . x_i + b_j and examples summed: dL/dw_j = sum of (p_ij - [j = y_i]) x_i."""
    rng = np.random.default_rng(0)
    x, w, b, y = rng.normal(size=(6, 4)), rng.normal(size=(4, 3)), rng.normal(size=3), rng.integers(3, size=6)
    _, grad = sx.value_and_grad(x @ w + b, y, reduction="sum")
    by_kronecker_delta = [[(p[j] - (j == y[i])) for j in range(3)] for i, p in enumerate(softmax(x @ w + b))]
    np.testing.assert_allclose(grad, by_kronecker_delta, rtol=0, atol=1e-15)
    slopes = (
        central_differences(lambda w: sx.cross_entropy(x @ w + b, y, reduction="sum"), w),
        central_differences(lambda b: sx.cross_entropy(x @ w + b, y, reduction="sum"), b),
        central_differences(lambda x: sx.cross_entropy(x @ w + b, y, reduction="sum"), x),
    )
    for analytic, slope in zip((x.T @ grad, grad.sum(axis=0), grad @ w.T), slopes, strict=True):
        np.testing.assert_allclose(analytic, slope, rtol=0, atol=1e-8)


def test_the_batch_mean_divides_loss_and_gradient() -> None:
    """L = -1/N sum of y ln p has the gradient (p - y) / N."""
    logits, labels = problem((8, 5))
    p, y = softmax(logits), one_hot(labels, 5)
    loss, grad = sx.value_and_grad(logits, labels)
    assert loss == pytest.approx(-np.sum(y * np.log(p)) / 8)
    np.testing.assert_allclose(grad, (p - y) / 8, rtol=0, atol=1e-16)


def test_a_network_with_one_hidden_layer_learns_two_moons() -> None:
    rng = np.random.default_rng(0)
    angle, label = rng.uniform(0, np.pi, 200), np.arange(200) % 2
    centre = np.stack([label, label / 2], axis=1)
    x = centre + np.where(label, -1, 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x += rng.normal(0, 0.1, x.shape)
    w1, b1, w2, b2 = rng.normal(size=(2, 16)), np.zeros(16), rng.normal(size=(16, 2)) / 4, np.zeros(2)
    losses = []
    for _ in range(500):
        hidden = np.tanh(x @ w1 + b1)
        loss, grad = sx.value_and_grad(hidden @ w2 + b2, label)
        losses.append(loss)
        grad_hidden = (grad @ w2.T) * (1 - hidden**2)
        for parameter, slope in (
            (w2, hidden.T @ grad), (b2, grad.sum(axis=0)), (w1, x.T @ grad_hidden), (b1, grad_hidden.sum(axis=0)),
        ):  # fmt: skip
            parameter -= slope
    predicted = np.argmax(np.tanh(x @ w1 + b1) @ w2 + b2, axis=1)
    assert np.mean(predicted == label) > 0.95
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("mass", [1, 0.3, 2.5])
def test_targets_that_are_a_distribution(mass: float) -> None:
    """J = -sum of p_i log q_i has the gradient q sum(p) - p, which is q - p only where p sums to one."""
    logits, p = problem((6,), "soft")
    p *= mass
    q = softmax(logits)
    loss, grad = sx.value_and_grad(logits, p)
    assert loss == pytest.approx(-np.sum(p * np.log(q)))
    np.testing.assert_allclose(grad, q * p.sum() - p, rtol=0, atol=1e-15)
    assert np.allclose(grad, q - p) == (mass == 1)
