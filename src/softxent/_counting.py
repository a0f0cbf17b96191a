"""How much each row counts, and what the mean divides by: the same numbers that a kernel finds for itself."""

import math
from typing import Any

import numpy as np

from softxent._inputs import taken_as
from softxent._options import Given


def weigh_rows(
    targets: Any, given: Given, leading: tuple[int, ...], class_axis: int, has_labels: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each row, and that times the class weight of its target. Their sum is what the mean divides by.

    `given` are options beside their logits. Without targets, or without class weights, the two are the same.
    """
    row_weight = np.ones(leading)
    if given.sample_weight is not None:
        row_weight[...] = taken_as(given.sample_weight, np.float64)
    if has_labels and given.ignore_index is not None:
        row_weight[np.asarray(targets) == given.ignore_index] = 0
    if targets is None or given.weight is None:
        return row_weight, row_weight
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
        # Exponents are added: what two of the three factors make may be out of range. The unit is a power of two.
        mantissa, exponent = np.frexp(row_weight)
        share = np.ldexp(mantissa * mass, exponent + math.frexp(given.weight_unit or 1)[1] - 1)
        return row_weight, np.where(row_weight != 0, share, 0)
