"""Any number of leading axes, empty ones included, and what each reduction returns."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import reference
from support import CALLS, FLOATS, GRADIENTS, HALVES, KINDS, REDUCTIONS, SHAPES, assert_same_bits, problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

EMPTY = [(0, 3), (0, 1), (2, 0, 5), (0, 0, 100)]


@given(SHAPES, st.sampled_from(KINDS))
def test_each_reduction(shape: tuple[int, ...], kind: str) -> None:
    logits, targets = problem(shape, kind)
    for reduction in ("mean", "sum"):
        loss, grad = sx.value_and_grad(logits, targets, reduction=reduction)
        true_loss, true_grad = reference(logits, targets, reduction)
        assert loss == pytest.approx(true_loss, rel=1e-13, abs=0)
        np.testing.assert_allclose(grad, true_grad, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), *EMPTY], ids=str)
@pytest.mark.parametrize(("dtype", "result"), [("float32", "float32"), ("float64", "float64"), ("int16", "float64")])
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_types_returned(kind: str, dtype: str, result: str, shape: tuple[int, ...]) -> None:
    logits, targets = problem(shape, kind)
    for reduction in REDUCTIONS:
        loss, grad = sx.value_and_grad(logits.astype(dtype), targets, reduction=reduction)
        for value in (loss, sx.cross_entropy(logits.astype(dtype), targets, reduction=reduction)):
            if reduction == "none":
                assert type(value) is np.ndarray
                assert (value.dtype, value.shape) == (result, shape[:-1])
            else:
                assert type(value) is float
        assert type(grad) is np.ndarray
        assert (grad.dtype, grad.shape) == (result, shape)


def test_an_empty_list_of_labels_fits_no_rows() -> None:
    assert sx.cross_entropy(np.zeros((0, 3)), []) == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("targets", [[0, 0], [[1], [1]], [[0.25], [3]]], ids=str)
def test_a_single_class_is_certain(targets: list[Any], dtype: str) -> None:
    loss, grad = sx.value_and_grad(np.array([[5], [-7]], dtype), targets)
    assert loss == 0.0
    np.testing.assert_array_equal(grad, [[0], [0]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_reductions_agree(kind: str, dtype: str) -> None:
    logits, targets = problem((5, 40, 20), kind, dtype)
    (mean, mean_grad), (total, sum_grad), (losses, none_grad) = (
        sx.value_and_grad(logits, targets, reduction=reduction) for reduction in REDUCTIONS
    )
    assert sx.value_and_grad(logits, targets)[0] == mean  # the default
    assert mean == pytest.approx(total / 200, rel=1e-15, abs=0)
    assert total == pytest.approx(losses.sum(dtype=np.float64), rel=1e-7 if dtype == "float32" else 1e-15, abs=0)
    assert_same_bits(none_grad, sum_grad)
    np.testing.assert_allclose(mean_grad, sum_grad / 200, rtol=0, atol=np.finfo(dtype).eps / 200)


@pytest.mark.parametrize(("shape", "axis"), [*((shape, -1) for shape in EMPTY), ((0, 300), 0), ((2, 0, 5), 1)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_no_rows(name: str, shape: tuple[int, ...], axis: int) -> None:
    for dtype in FLOATS + HALVES:
        arguments = CALLS[name].arguments(shape, dtype, axis)
        for reduction in ("mean", "sum"):
            assert CALLS[name](**arguments, reduction=reduction)[0] == 0.0
            assert sx.cross_entropy(**arguments, reduction=reduction) == 0.0
        losses, *others = CALLS[name](**arguments, reduction="none")
        assert losses.shape == shape[:-1]
        if name in GRADIENTS:
            assert others[0].shape == arguments["logits"].shape
        else:
            assert all(value.shape == shape[:-1] for value in others)
            result = sx.evaluate(**arguments)
            assert np.isnan([result.perplexity, result.accuracy]).all()
