"""The reference is right: it agrees with arithmetic of many digits, and with automatic differentiation."""

from typing import Any

import numpy as np
import pytest
from exact import exact
from reference import as_distributions, reference
from support import ALL_KINDS, OPTIONS, optioned, problem

COMBINATIONS = [(), *((name,) for name in OPTIONS), OPTIONS[:-1], OPTIONS]


def by_rows(logits: np.ndarray, targets: Any, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The same from `exact`, of logits (N, C), without the options that are about rows."""
    t = as_distributions(targets, logits.shape)[1]
    where = np.broadcast_to(options.get("where", True), logits.shape)
    rest = {name: value for name, value in options.items() if name not in ("axis", "where")}
    rows = [exact(x, target, where=allowed, **rest) for x, target, allowed in zip(logits, t, where, strict=True)]
    return np.array([float(row.loss) for row in rows]), np.array([[float(g) for g in row.grad] for row in rows])


@pytest.mark.parametrize("names", COMBINATIONS, ids=" + ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("scale", [1e-3, 1, 30])
def test_many_digits(scale: float, kind: str, names: tuple[str, ...]) -> None:
    names = tuple(name for name in names if name not in ("sample_weight", "ignore_index"))
    logits, targets, options = optioned((6, 9), kind, names)
    losses, grads = reference(scale * logits, targets, "none", **options)
    true_losses, true_grads = by_rows(scale * logits, targets, options)
    np.testing.assert_allclose(losses, true_losses, rtol=1e-13)
    np.testing.assert_allclose(grads, true_grads, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("margin", [20, 40, 300])
@pytest.mark.parametrize("options", [{}, {"weight": [0.5, 2, 3, 1]}, {"temperature": 1.25}, {"z_loss": 1e-9}], ids=str)
def test_many_digits_of_confident_rows(options: dict[str, Any], margin: float) -> None:
    logits = np.array([0, margin, -1.5, 2])
    loss, grad = reference(logits, 1, **options, normalizer=1)
    truth = exact(logits, [0, 1, 0, 0], **options)
    assert loss == pytest.approx(float(truth.loss), rel=1e-13, abs=0)
    np.testing.assert_allclose(grad, [float(g) for g in truth.grad], rtol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("names", COMBINATIONS, ids=" + ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_automatic_differentiation(reduction: str, kind: str, names: tuple[str, ...], axis: int) -> None:
    """Of the definition, word for word."""
    torch = pytest.importorskip("torch")
    logits, targets, options = optioned((4, 5, 7), kind, names, axis=axis)
    x = torch.tensor(logits, requires_grad=True)
    soft, t = as_distributions(targets, (4, 5, 7), axis)
    where = np.asarray(options.get("where", True))
    where = torch.tensor(np.broadcast_to(np.moveaxis(where, axis, -1) if where.ndim == 3 else where, t.shape).copy())
    weight, smoothing = torch.tensor(options.get("weight", np.ones(7))), options.get("label_smoothing", 0)
    z = x.moveaxis(axis, -1) / options.get("temperature", 1)
    if "softcap" in options:
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    z = z.masked_fill(~where, -torch.inf)
    lse = z.logsumexp(-1)
    t = torch.tensor(t)
    u = (1 - smoothing) * t + smoothing * t.sum(-1, keepdim=True) * where / where.sum(-1, keepdim=True)
    s = torch.tensor(options.get("sample_weight", np.ones((4, 5))).astype(float))
    if "ignore_index" in options:
        s = s * torch.tensor(targets != options["ignore_index"])
    losses = s * (
        (weight * u * (lse[..., None] - z).masked_fill(~where, 0)).sum(-1) + options.get("z_loss", 0) * lse**2
    )
    loss = losses.sum()
    if reduction == "mean":
        loss = loss / (s.sum() if soft and "weight" not in options else (s * (weight * t).sum(-1)).sum())
    loss.backward()
    expected_loss, expected_grad = reference(logits, targets, reduction, **options)
    assert expected_loss == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(expected_grad, x.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_ignored_rows_and_classes_hold_anything() -> None:
    logits, labels = problem((5, 4))
    labels[2] = -1
    where = np.array([True, False, True, True])
    labels[labels == 1] = 3
    plain = reference(logits, labels, ignore_index=-1, where=where, softcap=3, label_smoothing=0.1, z_loss=1)
    logits[2], logits[:, 1] = np.nan, np.inf
    same = reference(logits, labels, ignore_index=-1, where=where, softcap=3, label_smoothing=0.1, z_loss=1)
    assert same[0] == plain[0]
    np.testing.assert_array_equal(same[1], plain[1])
