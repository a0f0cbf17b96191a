"""How much each row counts, and what the mean divides by: the same numbers that a kernel finds for itself."""

import math
from typing import Any, NamedTuple

import numpy as np

from softxent._inputs import taken_as
from softxent._options import Given


class RowWeights(NamedTuple):
    """The weight of each row and, with weights of classes, that of its target, divided by 2^exponent.

    The sum of the products is what the mean divides by. Rows of weight 0 add nothing to it, whatever their mass is.
    """

    of_rows: np.ndarray
    exponent: int = 0
    mass: Any = None  # None: 1

    def shares(self) -> np.ndarray:
        """What each row adds to the divisor of the mean."""
        if self.mass is None:
            return self.of_rows
        with np.errstate(all="ignore"):
            # Exponents are added: what two of the three factors make may be out of range.
            mantissa, exponent = np.frexp(self.of_rows)
            return np.where(self.of_rows != 0, np.ldexp(mantissa * self.mass, exponent + self.exponent), 0)


def weigh_rows(targets: Any, given: Given, leading: tuple[int, ...], class_axis: int, has_labels: bool) -> RowWeights:
    """How much the rows count. `given` are options beside their logits."""
    row_weight = np.ones(leading)
    if given.sample_weight is not None:
        row_weight[...] = taken_as(given.sample_weight, np.float64)
    if has_labels and given.ignore_index is not None:
        row_weight[np.asarray(targets) == given.ignore_index] = 0
    if targets is None or given.weight is None:
        return RowWeights(row_weight)
    with np.errstate(all="ignore"):
        # A kernel multiplies in the type computed in, and adds up in float64.
        weight = given.weight
        mass: Any
        if has_labels:
            mass = weight[np.where(row_weight != 0, np.asarray(targets), 0)]
        elif isinstance(targets, tuple):
            mass = (weight[targets[0]] * targets[1]).sum(axis=-1, dtype=np.float64)
        else:
            rows = np.moveaxis(np.asarray(targets, weight.dtype), class_axis, -1)
            mass = (rows * weight).sum(axis=-1, dtype=np.float64)
    return RowWeights(row_weight, math.frexp(given.weight_unit or 1)[1] - 1, mass)


def scaled_weights(weights: Any, leading: tuple[int, ...], shift: int) -> np.ndarray:
    """Weights of rows, None for ones, times 2^shift. Finite ones stay finite: their mass may be 0."""
    weights = np.ones(leading) if weights is None else taken_as(weights, np.float64)
    largest = np.where(np.isinf(weights), np.inf, np.finfo(np.float64).max)
    with np.errstate(all="ignore"):
        scaled: np.ndarray = np.clip(np.ldexp(weights, shift), -largest, largest)
    return scaled
