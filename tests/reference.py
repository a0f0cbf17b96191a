"""The truth that results are compared with: loss and gradient in float64, without cancellation, with every option."""

from typing import Any

import numpy as np
import numpy.typing as npt


def reference(
    logits: npt.ArrayLike,
    targets: Any,
    reduction: str = "mean",
    *,
    axis: int = -1,
    weight: npt.ArrayLike | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: npt.ArrayLike | None = None,
    normalizer: float | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Any, np.ndarray]:
    """Softmax cross-entropy of logits with C classes along `axis` and its gradient.

    Arguments as of softxent, but for the dtype that all is computed in.
    """
    x = np.moveaxis(np.asarray(logits, dtype), axis, -1)
    is_soft, t = as_distributions(targets, x.shape, axis)
    s = np.ones(x.shape[:-1]) if sample_weight is None else np.asarray(sample_weight, dtype)
    counted = (s != 0) & (ignore_index is None or np.asarray(targets) != ignore_index)
    s = s[counted]
    allowed = np.asarray(True if where is None else where)
    allowed = np.broadcast_to(np.moveaxis(allowed, axis, -1) if allowed.ndim == x.ndim else allowed, x.shape)[counted]
    w = np.ones(x.shape[-1]) if weight is None else np.asarray(weight, dtype)

    # From here on rows that count, one after the other.
    z, slope = transformed(x[counted], temperature, softcap, allowed)
    t = t[counted]
    u = (1 - label_smoothing) * w * t
    if label_smoothing:
        u = u + w * label_smoothing * t.sum(axis=-1, keepdims=True) * allowed / allowed.sum(axis=-1, keepdims=True)
    below = z.max(axis=-1, keepdims=True) - z
    top = np.arange(x.shape[-1]) == z.argmax(axis=-1, keepdims=True)
    e = np.exp(-below)
    # What all classes but the top one have, of the exponentials and of the target: nothing cancels in these sums.
    rest, rest_mass = (np.where(top, 0, a).sum(axis=-1, keepdims=True) for a in (e, u))
    mass = u.sum(axis=-1, keepdims=True)
    lse = z.max(axis=-1, keepdims=True) + np.log1p(rest)
    cost = np.multiply(u, below, where=u != 0, out=np.zeros_like(z))
    row_losses = mass[:, 0] * np.log1p(rest[:, 0]) + cost.sum(axis=-1)
    if z_loss:
        row_losses += z_loss * lse[:, 0] ** 2
    p = e / (1 + rest)
    row_grads = np.where(top & (rest < 1), rest_mass - mass * (rest / (1 + rest)), mass * p - u) + 2 * z_loss * lse * p

    losses, grad = np.zeros(counted.shape, dtype), np.zeros(x.shape, dtype)
    losses[counted] = s * row_losses
    grad[counted] = s[:, np.newaxis] * np.where(allowed, slope * row_grads, 0)
    grad = np.moveaxis(grad, -1, axis)
    if reduction == "none":
        return losses, grad
    divisor = 1.0
    if reduction == "mean":
        divisor = np.sum(s if is_soft and weight is None else s * (w * t).sum(axis=-1))
        divisor = divisor if normalizer is None else normalizer
    return (float(losses.sum() / divisor), grad / divisor) if divisor else (0.0, np.zeros_like(grad))


def as_distributions(targets: Any, shape: tuple[int, ...], axis: int = -1) -> tuple[bool, np.ndarray]:
    """Whether targets of logits (..., C) are more than labels, and what they say as distributions (..., C)."""
    if isinstance(targets, tuple):
        indices, probs = targets
        t = np.zeros(shape)
        np.add.at(t, (*np.indices(indices.shape)[:-1], indices), probs.astype(np.float64))
        return True, t
    t = np.asarray(targets)
    if t.ndim == len(shape):
        return True, np.moveaxis(t, axis, -1).astype(np.float64)
    return False, (t[..., np.newaxis] == np.arange(shape[-1])).astype(np.float64)


def transformed(
    x: np.ndarray, temperature: float = 1.0, softcap: float | None = None, allowed: npt.ArrayLike = True
) -> tuple[np.ndarray, np.ndarray]:
    """Logits as the softmax sees them, -inf where a class is not allowed, and their slope in the ones given."""
    z = np.where(allowed, x, 0) / temperature
    slope = np.full(z.shape, 1 / temperature)
    if softcap is not None:
        tail = np.exp(-2 * np.abs(z / softcap))
        slope *= 4 * tail / (1 + tail) ** 2  # 1 - tanh^2, without the cancellation
        z = softcap * np.tanh(z / softcap)
    return np.where(allowed, z, -np.inf), slope
