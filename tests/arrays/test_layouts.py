"""Where and how the inputs lie in memory, and in which dtype, changes no bit of the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FLOATS, KINDS, REDUCTIONS, SHAPES, assert_same_results, layouts, problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

INTEGERS = [order + code for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8") for order in "<>"]


class Tagged(np.ndarray):
    """A subclass that a caller may bring."""


class ArrayLike:
    """An object that is an array only on request."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@given(st.data(), SHAPES, st.sampled_from(KINDS), st.sampled_from(FLOATS))
def test_any_layout(data: st.DataObject, shape: tuple[int, ...], kind: str, dtype: str) -> None:
    logits, targets = problem(shape, kind, dtype)
    expected = sx.value_and_grad(logits, targets, reduction="none")
    logits, _ = data.draw(layouts(logits.ndim)).place(logits)
    targets, _ = data.draw(layouts(targets.ndim)).place(targets)
    assert_same_results(sx.value_and_grad(logits, targets, reduction="none"), expected)
    assert_same_results([sx.cross_entropy(logits, targets, reduction="none")], expected[:1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5, 1), (1, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_broadcast_inputs(kind: str, shape: tuple[int, int], dtype: str) -> None:
    logits, targets = problem(shape, kind, dtype)
    logits = np.broadcast_to(logits, (5, 7))
    targets = np.broadcast_to(targets, (5, 7)[: targets.ndim])
    expected = sx.value_and_grad(logits.copy(), targets.copy(), reduction="none")
    assert_same_results(sx.value_and_grad(logits, targets, reduction="none"), expected)


@pytest.mark.parametrize(
    "wrap",
    [np.ndarray.tolist, read_only, ArrayLike, lambda a: a.view(Tagged)],
    ids=["list", "read-only", "__array__", "subclass"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4,), (3, 20)], ids=str)
def test_whatever_becomes_an_array(shape: tuple[int, ...], kind: str, wrap: Callable[[np.ndarray], Any]) -> None:
    logits, targets = problem(shape, kind)
    expected = sx.value_and_grad(logits, targets)
    assert_same_results(sx.value_and_grad(wrap(logits), wrap(targets)), expected)
    assert type(sx.value_and_grad(wrap(logits), wrap(targets))[1]) is np.ndarray


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_memory_mapped_file(tmp_path: Path, dtype: str) -> None:
    logits, labels = problem((30, 10), "labels", dtype)
    logits.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", dtype, "r", shape=logits.shape)
    assert_same_results(sx.value_and_grad(mapped, labels), sx.value_and_grad(logits, labels))


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool", "longlong", "ulonglong"])
def test_integer_logits_are_computed_in_float64(dtype: str) -> None:
    values, labels = problem((6, 20))
    logits = np.abs(values * 5).astype(dtype)
    expected = sx.value_and_grad(logits.astype(np.float64), labels, reduction="none")
    assert_same_results(sx.value_and_grad(logits, labels, reduction="none"), expected)


@pytest.mark.parametrize("dtype", [*INTEGERS, "longlong", "ulonglong"])
@pytest.mark.parametrize("floats", FLOATS)
@pytest.mark.parametrize("shape", [(100,), (6, 20), (2, 3, 100)], ids=str)
def test_labels_of_every_integer_dtype(shape: tuple[int, ...], floats: str, dtype: str) -> None:
    logits, labels = problem(shape, "labels", floats)
    assert_same_results(sx.value_and_grad(logits, labels.astype(dtype)), sx.value_and_grad(logits, labels))


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
@pytest.mark.parametrize("floats", FLOATS)
def test_distributions_of_every_real_dtype(floats: str, dtype: str) -> None:
    logits, values = problem((6, 20), "soft", floats)
    targets = (values * 30).astype(dtype)
    expected = sx.value_and_grad(logits, targets.astype(floats), reduction="none")
    assert_same_results(sx.value_and_grad(logits, targets, reduction="none"), expected)


@pytest.mark.parametrize("true", [2, 255])
@pytest.mark.parametrize("n_classes", [1, 10, 300])
def test_any_byte_but_zero_is_true(n_classes: int, true: int) -> None:
    """As to NumPy, which reads bytes that are not its own as bool."""
    rng = np.random.default_rng(n_classes)
    logits, labels = problem((20, n_classes))
    for shape in ((20, n_classes), (n_classes,)):
        usual = rng.random(shape) < 0.5
        usual[..., 0] = True
        other = (usual * np.uint8(true)).view(np.bool_)
        if usual.ndim == 2:
            assert_same_results(sx.value_and_grad(other, labels), sx.value_and_grad(usual, labels))
            assert_same_results(sx.value_and_grad(logits, other), sx.value_and_grad(logits, usual))
            weights = {"sample_weight": usual[:, -1]}, {"sample_weight": other[:, -1]}
            assert_same_results(*(sx.evaluate(logits, labels, **each) for each in weights))
        masks = ({"where": each, "label_smoothing": 0.1} for each in (usual, other))
        assert_same_results(*(sx.value_and_grad(logits, np.zeros(20, int), **each) for each in masks))


def test_inputs_are_left_as_they_are() -> None:
    for kind in KINDS:
        logits, targets = problem((6, 20), kind)
        before = logits.tobytes(), targets.tobytes()
        sx.value_and_grad(logits, targets)
        sx.cross_entropy(logits, targets)
        assert (logits.tobytes(), targets.tobytes()) == before


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("n_classes", [3, 600])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_gradient_has_the_byte_order_of_the_machine(dtype: str, n_classes: int, reduction: str) -> None:
    logits, labels = problem((20, n_classes), dtype=dtype)
    swapped = logits.astype(logits.dtype.newbyteorder())
    losses, grad = sx.value_and_grad(swapped, labels, reduction=reduction)
    assert grad.dtype.isnative
    assert np.asarray(losses).dtype.isnative
    assert_same_results((losses, grad), sx.value_and_grad(logits, labels, reduction=reduction))


@pytest.mark.parametrize("dtype", FLOATS)
def test_overlapping_windows(dtype: str) -> None:
    """Two axes of rows and that of the classes with the same stride."""
    values = problem((40,), "labels", dtype)[0]
    windows = np.lib.stride_tricks.as_strided(values, (5, 6, 7), 3 * values.strides, writeable=False)
    labels = np.arange(30).reshape(5, 6) % 7
    for x, axis in ((windows, -1), (np.moveaxis(windows, -1, 1), 1)):
        expected = sx.value_and_grad(np.ascontiguousarray(x), labels, axis=axis, reduction="none")
        assert_same_results(sx.value_and_grad(x, labels, axis=axis, reduction="none"), expected)
