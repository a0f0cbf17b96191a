"""Where and how arrays lie in memory, and in which dtype, changes no bit of the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    CALLS,
    FLOATS,
    HALVES,
    REDUCTIONS,
    SHAPES,
    assert_same_bits,
    assert_same_results,
    computed_in,
    each_array,
    layouts,
    problem,
    rounded,
)

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = FLOATS + HALVES
INTEGERS = [order + code for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8") for order in "<>"]
every_call = pytest.mark.parametrize("name", CALLS)


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


@settings(max_examples=300)
@given(
    st.data(), st.sampled_from(list(CALLS)), SHAPES | st.sampled_from([(9, 300), (3, 700), (2, 3, 150), (5, 6, 300)]),
    st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(REDUCTIONS),
    st.sampled_from(("fresh", "out", "in place")),
)  # fmt: skip
def test_any_layout(
    data: st.DataObject, name: str, shape: tuple[int, ...], dtype: str, out_dtype: str, reduction: str, way: str
) -> None:
    """Of every array, inputs whose elements stand for several included; and nothing but the gradient is written.

    What is expected is computed from contiguous arrays, in float32 where the logits are halves, and rounded at the end.
    """
    call = CALLS[name]
    if call.function is sx.evaluate:
        way = "fresh"
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    arguments = call.arguments(shape, dtype, axis) | {"reduction": reduction}
    logits = arguments["logits"]

    def one_for_all(array: np.ndarray) -> np.ndarray:
        if way == "in place" and array is logits:
            return array
        chosen = data.draw(st.tuples(*[st.sampled_from((slice(None), slice(None), slice(0, 1)))] * array.ndim))
        return np.broadcast_to(array[chosen], array.shape)

    def placed(array: np.ndarray) -> np.ndarray:
        compact = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
        return np.broadcast_to(data.draw(layouts(array.ndim)).place(compact)[0], array.shape)

    arguments = each_array(arguments, one_for_all)
    values = arguments["logits"]
    plain = each_array(arguments, lambda array: np.array(array, order="C"))
    plain["logits"] = plain["logits"].astype(computed_in(logits))
    loss, *others = call(**plain)
    given_arrays = each_array(arguments, placed)
    if way == "fresh":
        result = call(**given_arrays)
        if call.function is sx.value_and_grad:
            others = [rounded(others[0], logits.dtype)]
            assert_same_bits(sx.cross_entropy(**given_arrays), loss)
        assert_same_results(result, [loss, *others])
    else:
        before = values if way == "in place" else np.full(logits.shape, 7, out_dtype)
        out, memory = data.draw(layouts(len(shape))).place(before)
        untouched = memory.copy()
        if way == "in place":
            given_arrays["logits"] = out
        same_loss, grad = call(**given_arrays, out=out)
        assert grad is out
        assert_same_results((same_loss, out.astype(before.dtype)), (loss, rounded(others[0], before.dtype)))
        out[...] = before
        assert_same_bits(memory, untouched)
    for key, value in arguments.items():
        for same, array in zip(as_tuple(given_arrays[key]), as_tuple(value), strict=True):
            np.testing.assert_array_equal(same, array)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(
    "wrap",
    [np.ndarray.tolist, read_only, ArrayLike, lambda a: a.view(Tagged)],
    ids=["list", "read-only", "__array__", "subclass"],
)
@pytest.mark.parametrize(("shape", "axis"), [((4,), 0), ((20, 10), -1), ((3, 20), 0), ((2, 400), -1)], ids=str)
@every_call
def test_whatever_becomes_an_array(
    name: str, shape: tuple[int, ...], axis: int, wrap: Callable[[np.ndarray], Any]
) -> None:
    call = CALLS[name]
    arguments = call.arguments(shape, "float64", axis)
    wrapped = each_array(arguments, wrap)
    if isinstance(wrapped["targets"], tuple):
        wrapped["targets"] = tuple(map(np.asarray, wrapped["targets"]))  # two arrays, or it is no pair
    result = call(**wrapped)
    assert_same_results(result, call(**arguments))
    assert all(type(value) in (np.ndarray, float) for value in result)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_memory_mapped_file(tmp_path: Path, dtype: str) -> None:
    logits, labels = problem((30, 10), "labels", dtype)
    logits.tofile(tmp_path / "logits")
    mapped = np.memmap(tmp_path / "logits", dtype, "r", shape=logits.shape)
    assert_same_results(sx.value_and_grad(mapped, labels), sx.value_and_grad(logits, labels))


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool", "longlong", "ulonglong"])
@every_call
def test_integer_logits_are_computed_in_float64(name: str, dtype: str) -> None:
    call = CALLS[name]
    arguments = call.arguments((20, 12))
    logits = np.abs(arguments.pop("logits") * 5).astype(dtype)
    expected = call(logits=logits.astype(np.float64), **arguments)
    assert_same_results(call(logits=logits, **arguments), expected)


@pytest.mark.parametrize("dtype", [*INTEGERS, "longlong", "ulonglong"])
@pytest.mark.parametrize("name", ["labels", "labels, weight", "evaluate"])
def test_labels_of_every_integer_dtype(name: str, dtype: str) -> None:
    call = CALLS[name]
    for floats in FLOATS:
        for shape in ((100,), (6, 20), (2, 3, 100)):
            arguments = call.arguments(shape, floats)
            expected = call(**arguments)
            arguments["targets"] = arguments["targets"].astype(dtype)
            assert_same_results(call(**arguments), expected)


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


@pytest.mark.parametrize("dtype", FLOATS)
def test_overlapping_windows(dtype: str) -> None:
    """Two axes of rows and that of the classes with the same stride."""
    values = problem((40,), "labels", dtype)[0]
    windows = np.lib.stride_tricks.as_strided(values, (5, 6, 7), 3 * values.strides, writeable=False)
    labels = np.arange(30).reshape(5, 6) % 7
    for x, axis in ((windows, -1), (np.moveaxis(windows, -1, 1), 1)):
        expected = sx.value_and_grad(np.ascontiguousarray(x), labels, axis=axis, reduction="none")
        assert_same_results(sx.value_and_grad(x, labels, axis=axis, reduction="none"), expected)
