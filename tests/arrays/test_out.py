"""out= takes the gradient wherever it is, even where an input is, and nothing else is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FLOATS, GRADIENTS, HALVES, assert_same_results, each_array, optioned, problem, to_axis

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = FLOATS + HALVES


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((9, 1), -1), ((70, 10), -1), ((70, 10), 0), ((2, 3, 65), -1), ((6, 6, 6, 6), 2), ((5, 40, 9), 1),
     ((4, 1001), -1), ((3, 700), 0), ((3, 40, 600), 1), ((0, 3), -1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", GRADIENTS)
def test_in_place(name: str, shape: tuple[int, ...], axis: int) -> None:
    """test_layouts.py has the same in any layout, and `out` apart from the logits."""
    for dtype in DTYPES:
        arguments = GRADIENTS[name].arguments(shape, dtype, axis)
        expected = GRADIENTS[name](**arguments)
        before = each_array(arguments, np.copy)
        loss, grad = GRADIENTS[name](**arguments, out=arguments["logits"])
        assert grad is arguments.pop("logits")
        assert_same_results((loss, grad), expected)
        for key, value in arguments.items():
            np.testing.assert_equal(value, before[key])


@given(
    st.data(), st.tuples(st.integers(1, 6), st.integers(1, 40)), st.sampled_from(("labels", "soft")),
    st.sampled_from(FLOATS), st.sampled_from((0, 1)),
)  # fmt: skip
def test_out_may_be_a_shifted_view_of_the_logits(
    data: st.DataObject, shape: tuple[int, int], kind: str, dtype: str, axis: int
) -> None:
    values, targets = to_axis(axis, *problem(shape, kind, dtype))
    expected = sx.value_and_grad(values, targets, axis=axis)
    memory = np.zeros(3 * values.size, dtype)
    start = data.draw(st.integers(0, 2 * values.size))
    logits = memory[values.size : 2 * values.size].reshape(values.shape)
    logits[...] = values
    direction = data.draw(st.sampled_from((1, -1)))
    out = memory[start : start + values.size].reshape(values.shape)[::direction, ::direction]
    assert_same_results(sx.value_and_grad(logits, targets, axis=axis, out=out), expected)


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a.T, lambda a: a[...]],
    ids=["rows reversed", "classes reversed", "both reversed", "transposed", "another view"],
)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("side", [5, 40])
@pytest.mark.parametrize("axis", [0, 1])
def test_out_may_be_the_logits_seen_another_way(
    axis: int, side: int, dtype: str, kind: str, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    logits, targets = problem((side, side), kind, dtype)
    expected = sx.value_and_grad(logits, targets, axis=axis)
    out = view(logits)
    assert_same_results(sx.value_and_grad(logits, targets, axis=axis, out=out), expected)


@pytest.mark.parametrize("half", [0, 1])
def test_out_may_lie_in_the_memory_of_logits_of_another_dtype(half: int) -> None:
    logits, labels = problem((6, 20))
    loss, grad = sx.value_and_grad(logits, labels)
    out = logits.view(np.float32).reshape(-1)[half * 120 : half * 120 + 120].reshape(6, 20)
    assert_same_results(sx.value_and_grad(logits, labels, out=out), (loss, grad.astype(np.float32)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "view", [lambda a: a, lambda a: a[::-1], lambda a: a.T], ids=["same", "reversed", "transposed"]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_out_may_be_the_distributions(axis: int, view: Callable[[np.ndarray], np.ndarray], dtype: str) -> None:
    logits, targets = problem((20, 20), "soft", dtype)
    expected = sx.value_and_grad(logits, targets, axis=axis)
    assert_same_results(sx.value_and_grad(logits, targets, axis=axis, out=view(targets)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("first", [0, 50, 110])
def test_out_may_lie_over_the_labels(first: int, dtype: str) -> None:
    logits, labels = problem((6, 20), "labels", dtype)
    expected = sx.value_and_grad(logits, labels)
    out = np.zeros((6, 20), dtype)
    overlapping = out.reshape(-1).view(f"i{out.itemsize}")[first : first + 6]
    overlapping[...] = labels
    assert_same_results(sx.value_and_grad(logits, overlapping, out=out), expected)


@pytest.mark.parametrize("name", ["weight", "where", "where by row", "sample_weight", "indices", "probs"])
@pytest.mark.parametrize("shape", [(6, 20), (3, 300)], ids=str)
@pytest.mark.parametrize("first", [0, 50])
@pytest.mark.parametrize("in_place", [False, True])
def test_out_may_lie_over_an_option(in_place: bool, first: int, shape: tuple[int, int], name: str) -> None:
    kind = "pair" if name in ("indices", "probs") else "labels"
    logits, targets, options = optioned(shape, kind, (name, "label_smoothing"))
    memory = np.zeros(2 * logits.size)

    def over(values: np.ndarray) -> np.ndarray:
        inside = memory[first:].view(values.dtype)[: values.size].reshape(values.shape)
        inside[...] = values
        return inside

    expected = sx.value_and_grad(logits, targets, **options)
    if kind == "pair":
        indices, probs = targets
        targets = (over(indices), probs) if name == "indices" else (indices, over(probs))
    else:
        name = name.removesuffix(" by row")
        options[name] = over(options[name].astype(bool if name == "where" else float))
        expected = sx.value_and_grad(logits, targets, **{**options, name: options[name].copy()})
    out = memory[: logits.size].reshape(shape)
    if in_place:
        # What the option lies over are logits then, finite as it happens.
        logits, kept = out, out.copy()
        expected = sx.value_and_grad(
            kept, tuple(map(np.copy, targets)) if kind == "pair" else targets,
            **{key: np.copy(value) if np.ndim(value) else value for key, value in options.items()},
        )  # fmt: skip
    assert_same_results(sx.value_and_grad(logits, targets, out=out, **options), expected)


def test_logits_and_targets_and_out_may_be_one_array() -> None:
    _, targets = problem((6, 20), "soft")
    expected = sx.value_and_grad(targets, targets)
    assert_same_results(sx.value_and_grad(targets, targets, out=targets), expected)


def test_out_may_be_a_subclass_and_is_returned_as_it_came() -> None:
    class Tagged(np.ndarray):
        pass

    logits, labels = problem((6, 20))
    out = np.zeros((6, 20)).view(Tagged)
    loss, grad = sx.value_and_grad(logits, labels, out=out)
    assert grad is out
    assert_same_results((loss, grad), sx.value_and_grad(logits, labels))


def test_a_subclass_that_lies_about_its_shape() -> None:
    class Liar(np.ndarray):
        shape = property(lambda self: (2, 3))  # type: ignore[assignment]

    memory = np.full((3, 2), 7.0)
    with pytest.raises(ValueError, match=r"out must have the shape of the logits, \(2, 3\), got \(3, 2\)"):
        sx.value_and_grad(np.zeros((2, 3)), [0, 1], out=memory.view(Liar))
    np.testing.assert_array_equal(memory, 7.0)


def test_in_place_where_an_axis_of_length_one_has_another_stride() -> None:
    logits, labels = problem((1, 5, 7), "labels")
    expected = sx.value_and_grad(logits, labels)
    same = np.lib.stride_tricks.as_strided(logits, (1, 5, 7), (8, *logits.strides[1:]))
    assert_same_results(sx.value_and_grad(logits, labels, out=same), expected)


@pytest.mark.parametrize("shape", [(5, 400), (20, 150), (40, 10)], ids=str)
@pytest.mark.parametrize(("dtype", "narrower"), [("float64", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("name", ["nothing", "weight, label_smoothing", "where", "heavy rows"])
def test_a_gradient_of_another_dtype_is_rounded_once(
    name: str, dtype: str, narrower: str, shape: tuple[int, int]
) -> None:
    logits, labels = problem(shape, dtype=dtype)
    heavy = 1e305 if dtype == "float64" else 1e37
    logits[:, ::2] -= np.log(heavy)
    options: dict[str, Any] = {
        "nothing": {},
        "weight, label_smoothing": {"weight": np.arange(1.0, shape[1] + 1), "label_smoothing": 0.1},
        "where": {"where": np.arange(shape[1]) % 3 > 0},
        "heavy rows": {"sample_weight": np.where(np.arange(shape[0]) % 2, heavy, 1)},
    }[name]
    loss, grad = sx.value_and_grad(logits, labels, reduction="none", **options)
    out = np.empty(shape, narrower)
    with np.errstate(over="ignore", under="ignore"):
        expected = grad.astype(narrower)
    assert_same_results(sx.value_and_grad(logits, labels, reduction="none", out=out, **options), (loss, expected))
