"""The classes may be along any axis: the same bits as along the last, and the other axes as they were."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    CALLS,
    FLOATS,
    HALVES,
    KINDS,
    REDUCTIONS,
    SHAPES,
    assert_accurate,
    assert_same_bits,
    assert_same_results,
    problem,
    rounded,
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


@pytest.mark.parametrize("shape", [(150, 300), (3, 45, 601), (2, 5, 3, 1025), (6, 20_001)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_many_classes(name: str, shape: tuple[int, ...]) -> None:
    """Rows that are visited in panels: several and single ones, on one thread and on two."""
    call = CALLS[name]
    for dtype in (*FLOATS, *HALVES):
        arguments = call.arguments(shape, dtype)
        expected = call(**arguments, n_threads=1)
        for axis, n_threads in product(range(len(shape) - 1), (1, 2)):
            moved = call(**call.arguments(shape, dtype, axis), n_threads=n_threads)
            if call.function is sx.value_and_grad:
                moved = moved[0], np.moveaxis(moved[1], axis, -1)
            assert_same_results(moved, expected)


@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_many_classes_in_other_orders(dtype: str) -> None:
    """Logits and gradient that lie in memory in one order each, the gradient in any dtype."""
    logits, labels = problem((6, 40, 301), "labels", dtype)
    expected = sx.value_and_grad(logits.astype(np.float64 if dtype == "float64" else np.float32), labels)
    for places, of_grad in product(permutations(range(3)), repeat=2):
        x = np.ascontiguousarray(logits.transpose(places)).transpose(np.argsort(places))
        for out_dtype in (*FLOATS, *HALVES):
            out = np.empty([logits.shape[i] for i in of_grad], out_dtype).transpose(np.argsort(of_grad))
            loss, grad = sx.value_and_grad(x, labels, out=out)
            assert_same_results((loss, grad), (expected[0], rounded(expected[1], out.dtype)))


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


@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_a_temperature_that_takes_rows_out_of_range(dtype: str) -> None:
    logits, targets = unruly((99, 400), "labels", dtype)
    options = {"temperature": 1e-300 if dtype == "float64" else 1e-20, "reduction": "none"}
    expected = sx.value_and_grad(logits, targets, **options)
    for x in (logits, np.asfortranarray(logits)):
        assert_same_results(sx.value_and_grad(x, targets, **options), expected)
        assert_same_results((sx.cross_entropy(x, targets, **options),), expected[:1])


@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_ignored_rows_among_many_classes(dtype: str) -> None:
    logits, labels = problem((90, 400), "labels", dtype)
    labels[::3] = -100
    expected = sx.value_and_grad(logits, labels, ignore_index=-100)
    x = np.asfortranarray(logits)
    x[::3] = np.nan
    loss, grad = sx.value_and_grad(x, labels, ignore_index=-100, out=x)
    assert_same_results((loss, grad), expected)
    assert not grad[::3].any()


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
