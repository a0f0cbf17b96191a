"""The truth that results are compared with: loss and gradient in float64, without cancellation."""

import numpy as np
import numpy.typing as npt


def reference(
    logits: npt.ArrayLike, targets: npt.ArrayLike, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """Softmax cross-entropy of logits (..., C) and targets (...) or (..., C), and its gradient."""
    x, t = np.asarray(logits, np.float64), np.asarray(targets)
    classes = np.arange(x.shape[-1])
    if t.ndim < x.ndim:
        t = t[..., None] == classes
    t = t.astype(np.float64)
    below = x.max(axis=-1, keepdims=True) - x
    top = classes == x.argmax(axis=-1, keepdims=True)
    e = np.exp(-below)
    # What all classes but the top one have, of the exponentials and of the target: nothing cancels in these sums.
    rest, rest_mass = (np.where(top, 0, a).sum(axis=-1, keepdims=True) for a in (e, t))
    mass = t.sum(axis=-1, keepdims=True)
    cost = np.multiply(t, below, where=t != 0, out=np.zeros_like(x))
    losses = mass[..., 0] * np.log1p(rest[..., 0]) + cost.sum(axis=-1)
    grad = np.where(top & (rest < 1), rest_mass - mass * (rest / (1 + rest)), mass * (e / (1 + rest)) - t)
    if reduction == "none":
        return losses, grad
    count = max(losses.size, 1) if reduction == "mean" else 1
    return float(losses.sum()) / count, grad / count
