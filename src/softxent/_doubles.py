"""Sums, products and exponentials of float64 arrays that keep what they round off.

A pair `(high, low)` stands for high + low: `high` is the number rounded to float64, `low` what is left. NumPy has no
fused multiply-add, so that products are split by Dekker's method. All functions work on whole arrays, element by
element. Infinities and NaN stay as they are, with a `low` of 0.
"""

from __future__ import annotations

import math

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]

LN2_HI = float.fromhex("0x1.62e42fefap-1")  # 37 bits: products with exponents are exact
LN2_LO = float.fromhex("0x1.cf79abc9e3b3ap-40")
FAR = -2000.0  # an exponential from here on is 0, also in the units of its callers
SPLITTER = 2.0**27 + 1
HALVINGS = 6  # of the argument of an exponential, before its power series


def two_sum(a: np.ndarray, b: np.ndarray | float) -> Pair:
    """a + b, and what it rounds off (Knuth)."""
    total = a + b
    b_taken = total - a
    low = (a - (total - b_taken)) + (b - b_taken)
    return total, np.where(np.isfinite(low), low, 0)


def two_product(a: np.ndarray, b: np.ndarray) -> Pair:
    """a b, and what it rounds off (Dekker)."""
    product = a * b
    a_high, b_high = (SPLITTER * x - (SPLITTER * x - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    low = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, np.where(np.isfinite(low), low, 0)


def add(a: Pair, b: Pair) -> Pair:
    total, low = two_sum(a[0], b[0])
    return two_sum(total, low + (a[1] + b[1]))


def multiply(a: Pair, b: Pair) -> Pair:
    product, low = two_product(a[0], b[0])
    low = low + (a[0] * b[1] + a[1] * b[0])
    return two_sum(product, np.where(np.isfinite(low), low, 0))


def exp(x: Pair) -> tuple[Pair, np.ndarray]:
    """The exponential of x <= 0 as `(pair, n)`, for pair * 2^n, to about 2^-70 of itself.

    With x = n ln 2 + r it is 2^n e^r, and e^r - 1 comes from a power series of r / 2^6 and six times (1 + y)^2 - 1.
    """
    far = x[0] < FAR
    high, low = np.where(far, FAR, x[0]), np.where(far, 0, x[1])
    n = np.rint(high / math.log(2))
    r = two_sum(high, -n * LN2_HI)
    r = two_sum(r[0], r[1] + (low - n * LN2_LO))
    r = (r[0] / 2**HALVINGS, r[1] / 2**HALVINGS)
    square = two_product(r[0], r[0])
    series = 1 / 6 + r[0] * (1 / 24 + r[0] * (1 / 120 + r[0] * (1 / 720 + r[0] / 5040)))
    y = two_sum(r[0], square[0] / 2)
    y = two_sum(y[0], y[1] + (r[1] + square[1] / 2 + r[0] * r[1] + square[0] * r[0] * series))
    for _ in range(HALVINGS):
        y = add((2 * y[0], 2 * y[1]), multiply(y, y))
    return add((np.ones_like(y[0]), np.zeros_like(y[0])), y), n.astype(np.int32)


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
