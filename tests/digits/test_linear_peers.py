"""The linear head beside PyTorch's float64 autograd and scikit-learn's linear models, where they are installed."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from support import KINDS, one_hot

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

N, D, C = 24, 5, 7
RNG = np.random.default_rng(17)
X, W, B, V = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), 100 * RNG.normal(size=C), RNG.normal(size=(C, D))
LABELS = RNG.integers(C, size=N)
SOFT = RNG.dirichlet(np.ones(C), size=N)
TARGETS = {"labels": LABELS, "one-hot": one_hot(LABELS, C).astype(float), "soft": SOFT}
CLASS_WEIGHT = RNG.random(C) + 0.5


def close(actual: object, expected: Any, rtol: float = 1e-11) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max(initial=1e-300))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_autograd_of_pytorch(kind: str, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    for weighted, smoothing in product((False, True), (0.0, 0.1)):
        if weighted and kind != "labels":
            continue  # its mean has another divisor: docs/migrating.md
        x, w, b = (torch.tensor(array, requires_grad=True) for array in (X, W, B))
        theirs = functional.cross_entropy(
            functional.linear(x, w, b), torch.tensor(TARGETS[kind]), reduction=reduction, label_smoothing=smoothing,
            weight=torch.tensor(CLASS_WEIGHT) if weighted else None,
        )  # fmt: skip
        theirs.sum().backward()
        loss, grads = sx.linear_value_and_grad(
            X, W, TARGETS[kind], linear_bias=B, reduction=reduction, label_smoothing=smoothing,
            weight=CLASS_WEIGHT if weighted else None, memory=2000,
        )  # fmt: skip
        close(loss, theirs.detach())
        for one, other in zip(grads, (x, w, b), strict=True):
            close(one, other.grad)


def test_options_by_autograd() -> None:
    """Temperature, softcap, mask and z-loss, as compositions."""
    torch = pytest.importorskip("torch")
    x, w, b = (torch.tensor(array, requires_grad=True) for array in (X, W, B / 100))
    allowed = np.arange(C) != (LABELS[:, np.newaxis] + 1) % C
    weight = RNG.random(N)
    z = 5 * torch.tanh(torch.nn.functional.linear(x, w, b) / 1.3 / 5)
    z = z.masked_fill(torch.tensor(~allowed), -torch.inf)
    lse = torch.logsumexp(z, -1)
    theirs = (torch.tensor(weight) * (lse - z[torch.arange(N), torch.tensor(LABELS)] + 0.1 * lse**2)).sum() / 11
    theirs.backward()
    loss, grads = sx.linear_value_and_grad(
        X, W, LABELS, linear_bias=B / 100, temperature=1.3, softcap=5, where=allowed, z_loss=0.1, sample_weight=weight,
        normalizer=11, memory=1,
    )  # fmt: skip
    close(loss, theirs.detach())
    for one, other in zip(grads, (x, w, b), strict=True):
        close(one, other.grad)


def test_linear_cross_entropy_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    chunked = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if chunked is None:
        pytest.skip("this PyTorch has none")
    padded = np.where(np.arange(N) % 5, LABELS, -100)
    for reduction, dtype in product(("mean", "sum"), (np.float32, np.float64)):
        x, w, b = (torch.tensor(array.astype(dtype), requires_grad=True) for array in (X, W, B / 100))
        theirs = chunked(x, w, torch.tensor(padded), linear_bias=b, reduction=reduction, ignore_index=-100)
        theirs.backward()
        loss, grads = sx.linear_value_and_grad(
            *(array.detach().numpy() for array in (x, w)), padded, linear_bias=b.detach().numpy(),
            reduction=reduction, ignore_index=-100,
        )  # fmt: skip
        rtol = 1e-11 if dtype == np.float64 else 2e-5
        close(loss, theirs.detach(), rtol)
        for one, other in zip(grads, (x, w, b), strict=True):
            close(one, other.grad, rtol)


def test_linear_model_loss_of_scikit_learn() -> None:
    """Value, gradient and Hessian product, in its layout of coefficients, without penalty."""
    pytest.importorskip("sklearn")
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    theirs = LinearModelLoss(HalfMultinomialLoss(n_classes=C), fit_intercept=True)
    sample_weight = RNG.random(N)
    coef = np.asfortranarray(np.concatenate([W, B[:, np.newaxis] / 100], axis=1))
    direction = np.asfortranarray(RNG.normal(size=coef.shape))
    flat, labels = coef.ravel(order="F"), LABELS.astype(float)
    value, gradient = theirs.loss_gradient(flat, X, labels, sample_weight=sample_weight)
    _, product_of = theirs.gradient_hessian_product(flat, X, labels, sample_weight=sample_weight)
    ours = np.empty_like(coef)
    loss, _ = sx.linear_value_and_grad(
        X, coef[:, :-1], LABELS, linear_bias=coef[:, -1], sample_weight=sample_weight,
        out=(None, ours[:, :-1], ours[:, -1]),
    )  # fmt: skip
    close(loss, value)
    close(ours.ravel(order="F"), gradient)
    of_weight, of_bias = sx.linear_hvp(
        X, coef[:, :-1], LABELS, direction[:, :-1], linear_bias=coef[:, -1], bias_vector=direction[:, -1],
        sample_weight=sample_weight,
    )  # fmt: skip
    product = np.concatenate([of_weight, of_bias[:, np.newaxis]], axis=1)
    close(product.ravel(order="F"), product_of(direction.ravel(order="F")))


@pytest.mark.parametrize("method", ["L-BFGS-B", "Newton-CG"])
def test_the_same_coefficients_as_scikit_learn(method: str) -> None:
    """The gradient is a new array in each call: a buffer that is used again makes Newton-CG stop after one step."""
    pytest.importorskip("sklearn")
    from scipy.optimize import minimize
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    y = rng.integers(3, size=150)
    x = rng.normal(size=(150, 4)) + np.eye(3, 4)[y]
    model = LogisticRegression(C=1, tol=1e-10, max_iter=1000).fit(x, y)

    def value_and_grad(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(3, 5)
        loss, grads = sx.linear_value_and_grad(
            x, w[:, :4], y, linear_bias=w[:, 4], wrt=("linear_weight", "linear_bias"), reduction="sum"
        )
        grad = np.concatenate([grads.linear_weight + w[:, :4], grads.linear_bias[:, np.newaxis]], axis=1)
        return loss + 0.5 * float(np.sum(w[:, :4] ** 2)), grad.ravel()

    def hessian_product(flat: np.ndarray, direction: np.ndarray) -> np.ndarray:
        w, v = flat.reshape(3, 5), direction.reshape(3, 5)
        of_weight, of_bias = sx.linear_hvp(
            x, w[:, :4], y, v[:, :4], linear_bias=w[:, 4], bias_vector=v[:, 4], reduction="sum"
        )
        return np.concatenate([of_weight + v[:, :4], of_bias[:, np.newaxis]], axis=1).ravel()

    more = {"hessp": hessian_product} if method == "Newton-CG" else {"options": {"gtol": 1e-9, "ftol": 0}}
    fit = minimize(value_and_grad, np.zeros(15), jac=True, method=method, **more).x.reshape(3, 5)
    np.testing.assert_allclose(fit[:, :4], model.coef_, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fit[:, 4] - fit[:, 4].mean(), model.intercept_ - model.intercept_.mean(), atol=1e-5)
