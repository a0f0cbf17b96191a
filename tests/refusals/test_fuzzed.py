"""Calls that once misbehaved, as fuzz.py found them."""

import math
from typing import Any

import numpy as np
import pytest

import softxent as sx
from softxent import _loss

pytestmark = pytest.mark.usefixtures("level")


@pytest.mark.parametrize("n_classes", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_argmax_of_nans_is_no_class(dtype: str, n_classes: int) -> None:
    assert sx.evaluate(np.full((2, n_classes), np.nan, dtype), [0, 0]).argmax.tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["label_smoothing", "temperature", "softcap", "z_loss", "normalizer"])
@pytest.mark.parametrize("value", [10**400, np.complex128(1), np.str_("1"), np.void(b"1"), np.array("1")], ids=repr)
def test_numbers_that_are_none(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        sx.cross_entropy(np.zeros((2, 3)), [0, 1], **{name: value})


@pytest.mark.parametrize("dtype", ["l", "q", "L", "Q"])
@pytest.mark.parametrize("step", [1, 2, -1])
def test_indices_of_any_integer_of_64_bits(step: int, dtype: str) -> None:
    indices = np.zeros((6, 1), dtype)[::step]
    loss = sx.cross_entropy(np.zeros((len(indices), 3)), (indices, np.ones(indices.shape)))
    assert loss == pytest.approx(math.log(3))


def test_pairs_that_are_contiguous_but_not_aligned() -> None:
    memory = np.zeros(200, np.uint8)
    logits, indices, probs = (
        np.zeros((4, 3)),
        np.ndarray((4, 2), np.int64, memory, 4),
        np.ndarray((4, 2), float, memory, 100),
    )
    probs[...] = 0.5
    assert sx.cross_entropy(logits, (indices, probs)) == pytest.approx(math.log(3))


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_pairs_of_nothing_have_indices_too(shape: tuple[int, int]) -> None:
    with pytest.raises(TypeError, match="targets as a pair must be a tuple"):
        sx.cross_entropy(np.zeros((shape[0], 3)), (np.zeros(shape), np.zeros(shape)))


def test_pairs_of_nothing_overlap_nothing() -> None:
    """Strides of an array without elements say nothing about where it is."""
    memory = np.zeros(4000)
    logits, out = memory[:1000].reshape(100, 10), np.zeros((100, 10))
    nothing = np.ndarray((100, 0), np.float64, out, 800, (-8, 8))
    targets = (np.zeros((100, 0), np.intp), nothing)
    assert _loss._kernels.run(logits, targets, -1, None, out, True, 1) == 0.0  # and not a status
    loss, grad = sx.value_and_grad(logits, targets, out=out)
    assert loss == 0
    assert grad is out
    assert not out.any()
