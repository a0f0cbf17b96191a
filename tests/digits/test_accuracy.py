"""Losses and gradients are as exact as promised, for every number of classes, at every level."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import reference
from support import FLOATS, KINDS, assert_accurate, assert_same_bits, problem

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

# Around the widths of vectors and blocks, and from the smallest to the size of a vocabulary.
CLASSES = (1, 2, 3, 10, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 1000, 1001, 4097, 200_000)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", CLASSES)
def test_every_number_of_classes(n_classes: int, kind: str, dtype: str) -> None:
    logits, targets = problem((3 if n_classes > 4000 else 20, n_classes), kind, dtype)
    assert_accurate(logits, targets, *sx.value_and_grad(logits, targets, reduction="none"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_many_rows_are_added_in_double(reduction: str, kind: str, dtype: str) -> None:
    logits, targets = problem((30_000, 10), kind, dtype)
    loss, grad = sx.value_and_grad(logits, targets, reduction=reduction)
    true_loss, true_grad = reference(logits, targets, reduction)
    assert loss == pytest.approx(true_loss, rel=1e-7 if dtype == "float32" else 1e-14)
    np.testing.assert_allclose(grad, true_grad, rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [1, 10, 100, 1001])
def test_the_loss_alone_is_the_same_loss(n_classes: int, kind: str, dtype: str) -> None:
    logits, targets = problem((40, n_classes), kind, dtype)
    losses, _ = sx.value_and_grad(logits, targets, reduction="none")
    assert_same_bits(sx.cross_entropy(logits, targets, reduction="none"), losses)
    assert sx.cross_entropy(logits, targets) == sx.value_and_grad(logits, targets)[0]


@given(st.data())
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e4), ("float64", 100)])
def test_any_values(dtype: str, bound: float, data: st.DataObject) -> None:
    width = np.dtype(dtype).itemsize * 8
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    logits = data.draw(hnp.arrays(dtype, shape, elements=st.floats(-bound, bound, width=width)))
    labels = data.draw(hnp.arrays(np.intp, shape[:1], elements=st.integers(0, shape[1] - 1)))
    assert_accurate(logits, labels, *sx.value_and_grad(logits, labels, reduction="none"))
    parts = data.draw(hnp.arrays(np.intp, shape, elements=st.integers(0, 1000)))
    targets = (parts / max(1, parts.sum(axis=1).max())).astype(dtype)
    assert_accurate(logits, targets, *sx.value_and_grad(logits, targets, reduction="none"))


@pytest.mark.parametrize(
    ("dtype", "logits", "loss"),
    [("float32", [0, -30], 9.357622968839737e-14), ("float64", [0, -40], 4.248354255291589e-18)],
)
@pytest.mark.parametrize("targets", [[0], [[1, 0]]], ids=["label", "one-hot"])
def test_a_confident_row_keeps_its_digits(targets: list[Any], dtype: str, logits: list[float], loss: float) -> None:
    value, grad = sx.value_and_grad(np.array([logits], dtype), np.array(targets))
    rel = 1e-6 if dtype == "float32" else 1e-13
    assert value == pytest.approx(loss, rel=rel, abs=0)
    np.testing.assert_allclose(grad, [[-loss, loss]], rtol=rel)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [-1e4, -600, 600, 1e4])
def test_an_offset_common_to_a_row_costs_no_digits(offset: float, dtype: str) -> None:
    logits, labels = problem((50, 100), "labels", dtype)
    logits += np.asarray(offset, dtype)
    assert_accurate(logits, labels, *sx.value_and_grad(logits, labels, reduction="none"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", ["1e30", "max"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_logits_at_the_ends_of_the_range(kind: str, size: str, dtype: str) -> None:
    big = np.finfo(dtype).max if size == "max" else 1e30
    logits = np.array([[big, big, -big], [-big, -big, -big], [big, 0, -big]], dtype)
    targets = np.array([1, 2, 0]) if kind == "labels" else np.eye(3, dtype=dtype)[[1, 2, 0]]
    losses, grad = sx.value_and_grad(logits, targets, reduction="none")
    np.testing.assert_allclose(losses, np.log([2, 3, 1]), rtol=1e-6)
    np.testing.assert_allclose(grad, [[1 / 2, -1 / 2, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]], rtol=1e-6)
