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


@pytest.mark.parametrize("weight", [1e-310, 4e-213, 1e-170, 1e200])
@pytest.mark.parametrize("n_rows", [1, 20])
def test_small_weights_hide_no_nan_and_no_infinity(n_rows: int, weight: float) -> None:
    """They are brought into range for a sum, but not so far that they become 0."""
    for logit, reduction in ((math.nan, "mean"), (math.nan, "sum"), (-math.inf, "mean"), (-math.inf, "sum")):
        logits = np.zeros((n_rows, 3))
        logits[0, 0] = logit
        loss = sx.cross_entropy(logits, [0] * n_rows, sample_weight=[weight] * n_rows, reduction=reduction)
        np.testing.assert_array_equal(loss, math.nan if math.isnan(logit) else math.inf)


@pytest.mark.parametrize("weight", [1e7, 1e8, 1e30, 1e300])
def test_a_divisor_of_0_makes_0_of_large_weights(weight: float) -> None:
    logits = np.array([[0.0, 1.0], [2.0, 0.0]])
    for given in (
        {"sample_weight": [weight, -weight]},
        {"sample_weight": [weight, weight], "weight": [0, 1]},
        {"sample_weight": [weight, weight], "normalizer": 0},
    ):
        loss, grad = sx.value_and_grad(logits, [0, 0], **given)
        assert loss == 0
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("n_rows", [1, 20])
def test_a_small_divisor_of_large_weights(n_rows: int) -> None:
    """Gradients that no double holds are infinite, and not NaN."""
    for targets in ([0] * n_rows, np.full((n_rows, 3), [1.0, 0.0, 0.0])):
        loss, grad = sx.value_and_grad(np.zeros((n_rows, 3)), targets, sample_weight=[1e22] * n_rows, normalizer=1e-309)
        assert loss == math.inf
        np.testing.assert_array_equal(grad, [[-math.inf, math.inf, math.inf]] * n_rows)


@pytest.mark.parametrize("n_rows", [1, 20])
def test_rows_of_small_weights_count_under_a_large_divisor(n_rows: int) -> None:
    logits = np.array([[0.0, 1.0, 0.0]] * n_rows)
    result = sx.evaluate(logits, [1] * n_rows, sample_weight=[1e-30] * n_rows, normalizer=1.7e308)
    assert result.loss == 0
    assert result.argmax.tolist() == [1] * n_rows
    assert result.accuracy == 1
    np.testing.assert_allclose(result.lse, math.log(2 + math.e))
    logits[0, 1] = -math.inf
    loss = sx.cross_entropy(logits, [1] * n_rows, sample_weight=[1e-30] * n_rows, normalizer=1.7e308)
    assert loss == math.inf


@pytest.mark.parametrize("temperature", [1e-290, 1e-302, 2.3e-308])
def test_the_mean_of_losses_under_a_temperature_of_next_to_nothing(temperature: float) -> None:
    logits = np.array([[1e-3, 0.0]] * 3)
    loss, grad = sx.value_and_grad(logits, [1] * 3, temperature=temperature)
    assert loss == pytest.approx(1e-3 / temperature)
    np.testing.assert_allclose(grad, [[1 / temperature / 3, -1 / temperature / 3]] * 3)


@pytest.mark.parametrize("n_rows", [1, 20])
def test_gradients_beyond_float32_are_infinite(n_rows: int) -> None:
    """With class weights and smoothing too, whose share of the gradient is of the other sign."""
    logits = np.array([[0.0, 0.0, 0.0]] * n_rows, np.float32)
    _, grad = sx.value_and_grad(
        logits, [0] * n_rows, label_smoothing=0.5, weight=[1e18] * 3, sample_weight=[1e30] * n_rows, reduction="sum"
    )
    np.testing.assert_array_equal(grad, [[-math.inf, math.inf, math.inf]] * n_rows)


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_nan_leaves_no_class_of_its_row_a_gradient(dtype: str, n_classes: int, n_rows: int) -> None:
    logits = np.zeros((n_rows, n_classes), dtype)
    logits[0, 0] = math.nan
    _, grad = sx.value_and_grad(logits, [1] * n_rows)
    assert np.isnan(grad[0]).all()
    assert not np.isnan(grad[1:]).any()


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("masked", [math.inf, -math.inf, math.nan])
def test_what_is_masked_is_not_read_where_a_temperature_leaves_the_range(masked: float, n_rows: int) -> None:
    lowest = np.finfo(np.float32).min
    logits = np.array([[lowest, lowest, masked]] * n_rows, np.float32)
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, temperature=0.5, where=[True, True, False])
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(grad, [[1 / n_rows, -1 / n_rows, 0]] * n_rows, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4"])
def test_a_loss_of_2_is_no_status(dtype: str) -> None:
    """In place, and by the path of arguments that are not taken as they are."""
    logits = np.zeros((500, 2), dtype)
    logits[:, 0] = 1000
    labels = np.zeros(500, int)
    labels[0] = 1
    loss, expected = sx.value_and_grad(logits, labels.tolist(), where=[True, True])
    assert loss == 2.0
    loss, grad = sx.value_and_grad(logits, labels.tolist(), where=[True, True], out=logits)
    assert loss == 2.0
    np.testing.assert_array_equal(grad, expected)


@pytest.mark.parametrize("n_rows", [1, 20])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_no_numbers(number: float, n_rows: int) -> None:
    logits, labels = np.zeros((n_rows, 3), np.float32), np.zeros(n_rows, int)
    weights = np.ones(n_rows)
    weights[0] = number
    for reduction in ("mean", "sum"):
        loss, grad = sx.value_and_grad(logits, labels, sample_weight=weights, reduction=reduction)
        assert not np.isfinite(loss)
        assert not np.isfinite(grad[0]).any() or (number == np.inf and reduction == "mean")


def test_z_loss_beside_weights_of_next_to_nothing() -> None:
    logits, weight = [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0]], [1e-310] * 3
    expected = (np.log(np.exp(logits).sum(axis=1)) ** 2).sum()
    for x, w in ((logits, weight), (np.array(logits), np.array(weight))):
        assert sx.cross_entropy(x, [0, 1], weight=w, z_loss=1.0, reduction="sum") == pytest.approx(expected)
        assert sx.cross_entropy(x, [0, 1], weight=w, z_loss=1.0, normalizer=2) == pytest.approx(expected / 2)
    large = np.array([[1e5, 0, 0]], np.float32)
    assert sx.cross_entropy(large, [0], weight=[1e-300] * 3, z_loss=1.0, reduction="none") == pytest.approx(1e10)


def test_weights_of_classes_and_rows_whose_products_vanish() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    expected = sx.value_and_grad(logits, labels)
    loss, grad = sx.value_and_grad(logits, labels, weight=np.full(4, 1e-310), sample_weight=np.full(5, 1e-310))
    assert loss == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-13)
