"""The classes may be along any axis: the same bits as along the last, and the other axes as they were."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FLOATS,
    HALVES,
    KINDS,
    REDUCTIONS,
    SHAPES,
    assert_accurate,
    assert_same_bits,
    assert_same_results,
    problem,
    row_by_row,
    to_axis,
    unruly,
)

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = (*FLOATS, *HALVES, ">f8", "int8", "uint32", "bool")


class One:
    """Not an integer, but one on request."""

    def __index__(self) -> int:
        return 1


@pytest.mark.parametrize(
    "shape",
    [(7,), (1, 1), (3, 10), (40, 3), (7, 64), (40, 65), (45, 129), (33, 130), (100, 168), (9, 481), (5, 600),
     (2, 3, 1), (7, 9, 10), (2, 3, 16, 31), (5, 1, 3, 2, 17)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_axis(dtype: str, kind: str, shape: tuple[int, ...]) -> None:
    logits, targets = problem(shape, kind)
    logits = np.abs(logits).astype(dtype)
    for reduction in REDUCTIONS:
        loss, grad = sx.value_and_grad(logits, targets, reduction=reduction)
        for axis in range(-logits.ndim, logits.ndim):
            x, t = to_axis(axis, logits, targets)
            moved_loss, moved_grad = sx.value_and_grad(x, t, axis=axis, reduction=reduction)
            assert_same_results((moved_loss, np.moveaxis(moved_grad, axis, -1)), (loss, grad))
            assert_same_bits(sx.cross_entropy(x, t, axis=axis, reduction=reduction), loss)


@given(st.data(), SHAPES, st.sampled_from(KINDS), st.sampled_from(FLOATS))
def test_against_the_reference(data: st.DataObject, shape: tuple[int, ...], kind: str, dtype: str) -> None:
    logits, targets = problem(shape, kind, dtype)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, t = to_axis(axis, logits, targets)
    losses, grad = sx.value_and_grad(x, t, axis=axis, reduction="none")
    assert (losses.shape, grad.shape) == (shape[:-1], x.shape)
    assert_accurate(logits, targets, losses, np.moveaxis(grad, axis, -1))
    assert_same_bits(sx.cross_entropy(x, t, axis=axis, reduction="none"), losses)


@pytest.mark.parametrize("n_classes", [1, 4, 10, 33, 128, 400])
@pytest.mark.parametrize("kind", ["labels", "distributions"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_rows_of_every_kind(dtype: str, kind: str, n_classes: int) -> None:
    """No mass where a logit is -inf, next to no mass, NaN beside numbers: see `unruly`."""
    logits, targets = unruly((99, n_classes), kind, dtype)
    losses, grad = (result.reshape(3, 33, *result.shape[1:]) for result in row_by_row(logits, targets))
    logits, targets = logits.reshape(3, 33, -1), targets.reshape(3, 33, *targets.shape[1:])
    for axis in range(3):
        x, t = to_axis(axis, logits, targets)
        same_losses, same_grad = sx.value_and_grad(x, t, axis=axis, reduction="none")
        assert_same_results((same_losses, np.moveaxis(same_grad, axis, -1)), (losses, grad))


@pytest.mark.parametrize(
    "axis",
    [np.int8(1), np.uint64(1), np.int64(-2), np.array(1), One()],
    ids=["int8", "uint64", "int64", "array", "index"],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_whatever_is_an_integer(dtype: str, axis: Any) -> None:
    logits, labels = to_axis(1, *problem((4, 5, 6), "labels", dtype))
    assert_same_results(sx.value_and_grad(logits, labels, axis=axis), sx.value_and_grad(logits, labels, axis=1))
    assert sx.cross_entropy(logits, labels, axis=axis) == sx.cross_entropy(logits, labels, axis=1)
