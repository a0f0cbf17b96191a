"""The loss and the gradient of one row in arithmetic of so many digits that nothing need be done about cancellation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mpmath
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DIGITS = 50  # of every result
MOST_DIGITS = 400  # to calculate with: what 50 digits take where a probability is as small as float64 has any
ENLARGED = 500


class Exact(NamedTuple):
    """The results of one row, and what they come from."""

    loss: mpmath.mpf
    grad: list[mpmath.mpf]
    z: list[mpmath.mpf]  # transformed logits
    slope: list[mpmath.mpf]  # of z in the logits
    p: list[mpmath.mpf]  # softmax of z
    lse: mpmath.mpf  # log-sum-exp of z
    u: list[mpmath.mpf]  # the target, smoothed and weighted


def exact(
    logits: npt.ArrayLike,
    target: int | Sequence[float] | Array,
    *,
    weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: npt.ArrayLike | None = None,
    digits: int | None = None,
) -> Exact:
    """Logits (C,) and a label or a distribution (C,): as doubles they are taken to be exact.

    Classes with the same logit, target, weight and mask share their numbers, which are computed once.
    """
    row = np.asarray(logits, np.float64)
    each = np.empty((4, row.size))
    each[0] = row
    each[1] = np.arange(row.size) == target if np.ndim(target) == 0 else target
    each[2] = 1 if weight is None else weight
    each[3] = 1 if where is None else where
    (*columns, mask), places, counts = distinct(each)
    classes, n, allowed = range(counts.size), counts.tolist(), [bool(value) for value in mask]
    if digits is None:
        high = np.unique(columns[0][mask != 0])[-2:]
        digits = DIGITS + min(int((high[-1] - high[0]) / temperature / math.log(10)), MOST_DIGITS - DIGITS)
    with mpmath.workdps(digits):
        mpf = mpmath.mpf
        x, t, w = ([mpf(value) for value in column.tolist()] for column in columns)
        z, slope = x, [mpf(1)] * len(x)
        if temperature != 1:
            z, slope = [value / mpf(temperature) for value in x], [1 / mpf(temperature)] * len(x)
        if softcap is not None:
            cap = mpf(softcap)
            slope = [mpmath.sech(z[c] / cap) ** 2 * slope[c] for c in classes]
            z = [cap * mpmath.tanh(value / cap) for value in z]
        m = max(z[c] for c in classes if allowed[c])
        gap = [m - value for value in z]
        powers = [mpmath.exp(-gap[c]) if allowed[c] else mpf(0) for c in classes]
        total = mpmath.fsum(n[c] * powers[c] for c in classes)
        p, rise = [power / total for power in powers], mpmath.log(total)
        lse = m + rise
        smoothing = mpf(label_smoothing)
        spread = smoothing * mpmath.fsum(n[c] * t[c] for c in classes) / sum(n[c] for c in classes if allowed[c])
        u = [w[c] * ((1 - smoothing) * t[c] + (spread if allowed[c] else 0)) for c in classes]
        mass = mpmath.fsum(n[c] * u[c] for c in classes) + 2 * mpf(z_loss) * lse
        loss = mpmath.fsum(n[c] * u[c] * (rise + gap[c]) for c in classes if u[c]) + z_loss * lse**2
        grad = [slope[c] * (mass * p[c] - u[c]) if allowed[c] else mpf(0) for c in classes]
        grad, z, slope, p, u = ([values[c] for c in places] for values in (grad, z, slope, p, u))
        return Exact(loss, grad, z, slope, p, lse, u)


def distinct(columns: Array) -> tuple[Array, Array, Array]:
    """The distinct columns, which of them each one is, and how often each comes."""
    order = np.lexsort(columns)
    ordered = columns[:, order]
    starts = np.append(True, (ordered[:, 1:] != ordered[:, :-1]).any(axis=0))
    places = np.empty(order.size, np.intp)
    places[order] = np.cumsum(starts) - 1
    return ordered[:, starts], places, np.diff(np.append(np.flatnonzero(starts), order.size))


@dataclass(frozen=True)
class Truth:
    """True numbers, 2^ENLARGED times as large, so that nothing is lost below the smallest subnormal number.

    Each is the sum of two doubles.
    """

    high: Array
    low: Array

    @classmethod
    def of(cls, values: Iterable[mpmath.mpf]) -> "Truth":
        values = list(values)
        known: dict[int, tuple[float, float]] = {}  # by identity: most classes of a long row share their numbers
        for value in values:
            if id(value) not in known:
                large = mpmath.ldexp(value, ENLARGED)
                known[id(value)] = (float(large), float(large - mpmath.mpf(float(large))))
        high, low = np.array([known[id(value)] for value in values]).T
        return cls(high, low)

    @classmethod
    def joined(cls, parts: Iterable["Truth"]) -> "Truth":
        parts = list(parts)
        return cls(np.concatenate([part.high for part in parts]), np.concatenate([part.low for part in parts]))

    def __getitem__(self, index: Any) -> "Truth":
        return Truth(self.high[index], self.low[index])

    @property
    def nearest(self) -> Array:
        return np.ldexp(self.high, -ENLARGED)

    def distance(self, got: Array) -> Array:
        """|got - truth|, 2^ENLARGED times as large."""
        distance: Array = np.abs(np.ldexp(got.astype(np.float64), ENLARGED) - self.high - self.low)
        return distance

    def error_in_ulp(self, got: Array) -> Array:
        """In spacings of the dtype of `got` at the true numbers."""
        with np.errstate(under="ignore"):
            spacing = np.abs(np.spacing(self.nearest.astype(got.dtype))).astype(np.float64)
        error: Array = self.distance(got) / np.ldexp(spacing, ENLARGED)
        return np.where(np.isfinite(got), error, np.inf)


def solve(logits: Array, label: int) -> tuple[Truth, Truth]:
    """The true loss and gradient of one row."""
    row = exact(logits, label)
    return Truth.of([row.loss]), Truth.of(row.grad)


class Family(NamedTuple):
    """The true results of a row of logits alone."""

    softmax: Truth
    log_softmax: Truth
    lse: Truth
    hess: Truth  # the diagonal of the Hessian of the loss of a label


def solve_family(logits: Array) -> Family:
    row = exact(logits, int(np.argmax(logits)))
    logs: dict[int, mpmath.mpf] = {}
    hess: dict[int, mpmath.mpf] = {}
    with mpmath.workdps(MOST_DIGITS):
        for p in row.p:
            if id(p) not in logs:
                logs[id(p)], hess[id(p)] = mpmath.log(p), p * (1 - p)
    p, log_p, h = row.p, [logs[id(p)] for p in row.p], [hess[id(p)] for p in row.p]
    return Family(Truth.of(p), Truth.of(log_p), Truth.of([row.lse]), Truth.of(h))
