"""The loss and the gradient of one row in arithmetic of so many digits that nothing need be done about cancellation."""

from collections.abc import Sequence
from typing import NamedTuple

import mpmath
import numpy as np
import numpy.typing as npt

DIGITS = 400  # 50, after a confident row has lost all that a float64 has in front of them


class Exact(NamedTuple):
    """Of one row, everything in as many digits."""

    loss: mpmath.mpf
    grad: list[mpmath.mpf]
    # What these come from: transformed logits and their slope, their softmax, its log-sum-exp, and the target smoothed
    # and weighted.
    z: list[mpmath.mpf]
    slope: list[mpmath.mpf]
    p: list[mpmath.mpf]
    lse: mpmath.mpf
    u: list[mpmath.mpf]


def exact(
    logits: npt.ArrayLike,
    target: Sequence[float],
    *,
    weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: npt.ArrayLike | None = None,
    digits: int = DIGITS,
) -> Exact:
    """Of logits (C,) and a distribution (C,); what they are, as doubles, is taken to be exact."""
    classes = range(np.size(logits))
    with mpmath.workdps(digits):
        mpf = mpmath.mpf
        x = [mpf(float(value)) for value in np.asarray(logits)]
        t = [mpf(float(value)) for value in target]
        w = [mpf(float(value)) for value in (np.ones(len(x)) if weight is None else np.asarray(weight))]
        allowed = [bool(value) for value in (np.ones(len(x)) if where is None else np.asarray(where))]
        z = [value / mpf(temperature) for value in x]
        slope = [1 / mpf(temperature)] * len(x)
        if softcap is not None:
            cap = mpf(softcap)
            slope = [mpmath.sech(z[c] / cap) ** 2 * slope[c] for c in classes]
            z = [cap * mpmath.tanh(value / cap) for value in z]
        powers = [mpmath.exp(z[c]) if allowed[c] else mpf(0) for c in classes]
        total = mpmath.fsum(powers)
        p, lse = [power / total for power in powers], mpmath.log(total)
        smoothing = mpf(label_smoothing)
        spread = smoothing * mpmath.fsum(t) / sum(allowed)
        u = [w[c] * ((1 - smoothing) * t[c] + (spread if allowed[c] else 0)) for c in classes]
        mass = mpmath.fsum(u) + 2 * mpf(z_loss) * lse
        loss = mpmath.fsum(u[c] * (lse - z[c]) for c in classes if u[c]) + z_loss * lse**2
        grad = [slope[c] * (mass * p[c] - u[c]) if allowed[c] else mpf(0) for c in classes]
        return Exact(loss, grad, z, slope, p, lse, u)


def split(value: mpmath.mpf) -> tuple[float, float]:
    """A double and what it leaves out."""
    return float(value), float(value - mpmath.mpf(float(value)))


def error_in_ulp(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Of numbers that are given as they come from `split`, in spacings of the dtype of `actual` there."""
    high, low = exact[..., 0], exact[..., 1]
    with np.errstate(under="ignore"):
        unit = np.spacing(np.abs(high).astype(actual.dtype)).astype(np.float64)
    return np.abs((actual.astype(np.float64) - high) - low) / unit
