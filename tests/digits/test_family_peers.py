"""The softmax family and the second derivative agree with SciPy, PyTorch, scikit-learn and JAX, where installed."""

from typing import Any

import numpy as np
import pytest
from support import problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

SHAPES = [((20, 10), -1), ((3, 11, 9), 1), ((5, 300), -1), ((3, 70), 0), ((7,), 0)]
of_shapes = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
of_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def tolerance(dtype: str) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}


@of_shapes
@of_dtypes
def test_scipy(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    special = pytest.importorskip("scipy.special")
    logits, _ = problem(shape, dtype=dtype)
    for name in ("softmax", "log_softmax", "logsumexp"):
        theirs = getattr(special, name)(logits, axis=axis)
        np.testing.assert_allclose(getattr(sx, name)(logits, axis=axis), theirs, **tolerance(dtype))
    theirs = special.logsumexp(logits, axis=axis, keepdims=True)
    np.testing.assert_allclose(sx.logsumexp(logits, axis=axis, keepdims=True), theirs, **tolerance(dtype))


@pytest.mark.parametrize("row", [[-np.inf] * 3, [0, np.inf, 1], [0, -np.inf, 1], [np.nan, 0, 1]], ids=str)
def test_infinities_of_scipy(row: list[float]) -> None:
    special = pytest.importorskip("scipy.special")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(sx.logsumexp([row]), np.asarray(special.logsumexp([row], axis=1)))
        np.testing.assert_allclose(sx.softmax([row]), special.softmax([row], axis=1), rtol=1e-14)


@of_shapes
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}], ids=str)
def test_torch_twice(shape: tuple[int, ...], axis: int, options: dict[str, Any]) -> None:
    """Vector-Jacobian products by autograd, and products with the Hessian and its diagonal by autograd twice."""
    torch = pytest.importorskip("torch")
    logits, _ = problem(shape)
    labels = np.random.default_rng(0).integers(shape[axis], size=tuple(np.delete(shape, axis)))
    vectors = np.cos(logits)
    x, v, y = torch.tensor(logits, requires_grad=True), torch.tensor(vectors), torch.tensor(labels)
    for name in ("softmax", "log_softmax"):
        (theirs,) = torch.autograd.grad(getattr(torch, name)(x, axis), x, v)
        actual = getattr(sx, f"{name}_vjp")(logits, vectors, axis=axis)
        np.testing.assert_allclose(actual, theirs, rtol=1e-12, atol=1e-14)
    n_classes = shape[axis]
    of_rows = torch.movedim(x, axis, -1).reshape(-1, n_classes)
    loss = torch.nn.functional.cross_entropy(of_rows, y.reshape(-1), **options)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (product,) = torch.autograd.grad(grad, x, v, retain_graph=True)
    if torch.isnan(loss):
        return  # of no rows
    np.testing.assert_allclose(sx.hvp(logits, labels, vectors, axis=axis, **options), product, rtol=1e-10, atol=1e-14)
    hess = sx.value_grad_and_hess(logits, labels, axis=axis, **options)[2]
    for index in list(np.ndindex(*shape))[:: max(1, x.numel() // 12)]:
        (row,) = torch.autograd.grad(grad[index], x, retain_graph=True)
        np.testing.assert_allclose(hess[index], row[index], rtol=1e-10, atol=1e-14)


def test_scikit_learn() -> None:
    loss = pytest.importorskip("sklearn._loss.loss").HalfMultinomialLoss(n_classes=7)
    logits, labels = problem((50, 7))
    weights = np.random.default_rng(0).random(50) + 0.5
    theirs = loss.gradient_hessian(labels.astype(float), np.ascontiguousarray(logits), weights)
    _, grad, hess = sx.value_grad_and_hess(logits, labels, sample_weight=weights, reduction="none")
    np.testing.assert_allclose(grad, theirs[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(hess, theirs[1], rtol=1e-10, atol=1e-14)


@of_shapes
def test_jax(shape: tuple[int, ...], axis: int) -> None:
    jax = pytest.importorskip("jax")
    logits, _ = problem(shape, dtype="float32")
    vectors = np.cos(logits)
    for name in ("softmax", "log_softmax"):
        theirs, vjp = jax.vjp(lambda x, name=name: getattr(jax.nn, name)(x, axis=axis), logits)
        np.testing.assert_allclose(getattr(sx, name)(logits, axis=axis), theirs, **tolerance("float32"))
        np.testing.assert_allclose(
            getattr(sx, f"{name}_vjp")(logits, vectors, axis=axis), vjp(vectors)[0], rtol=1e-4, atol=1e-5
        )
    theirs = jax.nn.logsumexp(logits, axis=axis)
    np.testing.assert_allclose(sx.logsumexp(logits, axis=axis), theirs, **tolerance("float32"))
