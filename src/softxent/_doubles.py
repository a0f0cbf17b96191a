"""Sums, products and exponentials of float64 arrays that keep what they round off.

A pair `(high, low)` stands for high + low: `high` is the number rounded to float64, `low` what is left. NumPy has no
fused multiply-add, so that products are split by Dekker's method. Functions of pairs work on whole arrays, element by
element; beside infinities and NaN, `low` is NaN: see `settled`. A `Sum` is that of all elements, with an exponent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Pair = tuple[np.ndarray, np.ndarray]

LN2_HI = float.fromhex("0x1.62e42fefap-1")  # 37 bits: products with exponents are exact
LN2_LO = float.fromhex("0x1.cf79abc9e3b3ap-40")
FAR = -2000.0  # an exponential from here on is 0, also in the units of its callers
SPLITTER = 2.0**27 + 1
FARTHEST = 1000  # exponent up to which a divisor is used as it is
HALFWAY = 500  # exponent that others get, so that there is room on either side
HIGH = 900  # exponent of the largest number of a sum: there is room for more of them, and far more for smaller ones
STEPS = 64  # of the table of exponentials, in 1


def _table() -> Pair:
    """The exponentials of multiples of 1 / STEPS from -ln(2) / 2 to ln(2) / 2, from 40 decimal digits."""
    reach = STEPS // 2
    with localcontext(prec=40):
        exact = [(Decimal(i) / STEPS).exp() for i in range(-reach, reach + 1)]
        return np.array([float(x) for x in exact]), np.array([float(x - Decimal(float(x))) for x in exact])


EXP_HIGH, EXP_LOW = _table()


def two_sum(a: np.ndarray, b: np.ndarray | float) -> Pair:
    """a + b, and what it rounds off (Knuth)."""
    total = a + b
    b_taken = total - a
    return total, (a - (total - b_taken)) + (b - b_taken)


def two_product(a: np.ndarray, b: np.ndarray) -> Pair:
    """a b, and what it rounds off (Dekker)."""
    product = a * b
    a_high, b_high = (SPLITTER * x - (SPLITTER * x - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def settled(pair: Pair) -> Pair:
    """The pair with a `low` of 0 where it is no number, as beside an infinity."""
    return pair[0], np.where(np.isfinite(pair[1]), pair[1], 0)


def add(a: Pair, b: Pair) -> Pair:
    """a + b; infinite, with a `low` of 0, if one of them is."""
    total, low = settled(two_sum(a[0], b[0]))
    return settled(two_sum(total, low + (a[1] + b[1])))


def multiply(a: Pair, b: Pair) -> Pair:
    product, low = two_product(a[0], b[0])
    return two_sum(product, low + (a[0] * b[1] + a[1] * b[0]))


def sum_first_axis(pair: Pair) -> Pair:
    """The sum over the first axis, in pairs of neighbours, then of these, and so on."""
    high, low = pair
    while len(high) > 1:
        odd = len(high) % 2
        rest = high[len(high) - odd :], low[len(low) - odd :]
        even, uneven = slice(0, len(high) - odd, 2), slice(1, len(high) - odd, 2)
        sums = add((high[even], low[even]), (high[uneven], low[uneven]))
        high, low = (np.concatenate(parts) for parts in zip(sums, rest, strict=True))
    return high[0], low[0]


def exp(x: Pair) -> tuple[Pair, np.ndarray]:
    """The exponential of x <= 0 as `(pair, n)`, for pair * 2^n, to about 2^-70 of itself.

    With x = n ln 2 + i / STEPS + r it is 2^n e^(i / STEPS) e^r, from a table, and from a power series in r.
    """
    far = x[0] < FAR
    high, low = np.where(far, FAR, x[0]), np.where(far, 0, x[1])
    n = np.rint(high / math.log(2))
    r = two_sum(high, -n * LN2_HI)
    i = np.rint(r[0] * STEPS)
    r = two_sum(r[0] - i / STEPS, r[1] + (low - n * LN2_LO))
    square = two_product(r[0], r[0])
    series = 1 / 6 + r[0] * (1 / 24 + r[0] * (1 / 120 + r[0] * (1 / 720 + r[0] / 5040)))
    y = two_sum(r[0], square[0] / 2)
    y = two_sum(y[0], y[1] + (r[1] + square[1] / 2 + r[0] * r[1] + square[0] * r[0] * series))
    place = i.astype(np.intp) + STEPS // 2
    base = EXP_HIGH[place], EXP_LOW[place]
    return add(base, multiply(base, y)), n.astype(np.int32)


def split_for_sum(values: np.ndarray) -> Pair:
    """`values` as high + low, such that the sums of `high` along the last axis are exact, in any order.

    All of `high` are multiples of one power of two (Rump, Ogita and Oishi, *Accurate floating-point summation*, 2008).
    """
    bound = np.abs(values).sum(axis=-1, keepdims=True)
    anchor = np.ldexp(1.5, np.frexp(bound)[1] + 1)
    high = values + anchor
    high -= anchor
    return high, values - high


def exact_sum(values: np.ndarray) -> list[float]:
    """A few numbers whose exact sum is that of `values`, so that sums of parts can be rounded once: `math.fsum`."""
    rest = np.ravel(values)
    parts: list[float] = []
    while rest.size and rest.any():
        high, low = split_for_sum(rest)
        if not np.isfinite(low).all():
            return [*parts, float(rest.sum())]
        parts.append(float(high.sum()))
        rest = low[low != 0]
    return parts


class Sum(NamedTuple):
    """The sum of `parts`, times 2^exponent: it is not rounded and does not leave the range before it is divided.

    Only what is 2^1900 times smaller than the largest number may lose digits.
    """

    parts: np.ndarray
    exponent: int = 0

    @classmethod
    def of(cls, values: ArrayLike, exponent: int = 0, factors: ArrayLike | None = None) -> Sum:
        """The sum of values * factors * 2^exponent. Where a value is 0, so is the product, whatever the factor is."""
        with np.errstate(all="ignore"):
            (x, n), (y, more) = (
                np.frexp(np.asarray(1.0 if each is None else each, np.float64)) for each in (values, factors)
            )
            products, exponents = np.where(x == 0, 0, x * y), n + more
            counted = exponents[np.isfinite(products) & (products != 0)]
            moved = int(counted.max()) - HIGH if counted.size else 0
            return cls(np.array(exact_sum(np.ldexp(products, exponents - moved))), exponent + moved)

    @classmethod
    def merged(cls, sums: Iterable[Sum]) -> Sum:
        counted = [part for part in sums if part.parts.size]
        largest = max((part.exponent for part in counted), default=0)
        with np.errstate(all="ignore"):
            parts = [np.ldexp(part.parts, part.exponent - largest) for part in counted]
        return cls.of(np.concatenate([np.zeros(0), *parts]), largest)

    def shift(self, exponent: int = 0) -> int:
        """The power of two that brings the sum, divided by 2^exponent, into range as a divisor; 0 if it is, or is NaN.

        Weights that add up to it are multiplied by the same. Then they, and their products, are in range too.
        """
        total = math.fsum(self.parts)
        size = math.frexp(total)[1] + self.exponent - exponent
        is_near = abs(size) <= FARTHEST or total == 0 or not math.isfinite(total)
        return 0 if is_near else int(math.copysign(HALFWAY, size)) - size

    def rounded(self, shift: int = 0) -> float:
        """The sum times 2^shift, as one number."""
        with np.errstate(all="ignore"):
            return float(np.ldexp(math.fsum(self.parts), self.exponent + shift))

    def over(self, divisor: Sum) -> float:
        """The mean; 0 if the divisor is."""
        (above, up), (below, down) = (math.frexp(math.fsum(total.parts)) for total in (self, divisor))
        with np.errstate(all="ignore"):
            quotient = above / below if below else 0.0
            return float(np.ldexp(quotient, self.exponent + up - divisor.exponent - down))


ONE = Sum(np.ones(1))
