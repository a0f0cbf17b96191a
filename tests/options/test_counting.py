"""Which rows count, and how much: sample weights, rows that are ignored, and what the mean divides by."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import reference
from support import FLOATS, HALVES, REDUCTIONS, assert_same_bits, assert_same_results, one_hot, problem, to_axis

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

# Both kernels, a partial group of lanes, rows that go through scratch, and rows in stretches.
SHAPES = [((3, 5), -1), ((70, 10), -1), ((70, 10), 0), ((9, 300), -1), ((5, 9, 600), 1), ((3, 20_000), -1)]
TOLERANCES = {"float32": 2e-6, "float64": 1e-13}


def expected(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, reduction: str, normalizer: float | None
) -> tuple[Any, np.ndarray]:
    """Loss and gradient of rows (N, C), from those of each row by itself."""
    losses, grads = reference(logits, targets, "none")
    losses, grads = weights * losses, weights[:, np.newaxis] * grads
    if reduction == "none":
        return losses, grads
    divisor = 1.0 if reduction == "sum" else weights.sum() if normalizer is None else normalizer
    return losses.sum() / divisor, grads / divisor


@pytest.mark.parametrize(("reduction", "normalizer"), [("mean", None), ("mean", 17.5), ("sum", None), ("none", None)])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_reference(
    dtype: str, kind: str, shape: tuple[int, ...], axis: int, reduction: str, normalizer: float | None
) -> None:
    rows = np.moveaxis(np.empty(shape), axis, -1).shape
    logits, targets = problem(rows, kind, dtype)
    weights = np.random.default_rng(1).random(rows[:-1])
    ignored = None
    if kind == "labels":
        ignored = -100
        targets[np.random.default_rng(2).random(rows[:-1]) < 0.3] = ignored
    counted = np.where(targets == ignored, 0, weights).ravel() if kind == "labels" else weights.ravel()
    labels = np.where(targets == ignored, 0, targets).ravel() if kind == "labels" else targets.reshape(-1, rows[-1])
    loss, grad = expected(logits.reshape(-1, rows[-1]), labels, counted, reduction, normalizer)
    x, t = to_axis(axis, logits, targets)
    options = {"sample_weight": weights, "ignore_index": ignored, "reduction": reduction, "normalizer": normalizer}
    got_loss, got = sx.value_and_grad(x, t, axis=axis, **options)
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(np.ravel(got_loss), np.ravel(loss), rtol=tolerance)
    got = np.moveaxis(got, axis, -1).reshape(grad.shape)
    np.testing.assert_allclose(got, grad, rtol=0, atol=tolerance * np.abs(grad).max())
    assert not got[counted == 0].any()
    assert_same_bits(sx.cross_entropy(x, t, axis=axis, **options), got_loss)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
@pytest.mark.parametrize("ignored", [2, -1, 100_000])
def test_ignored_rows_change_nothing(ignored: int, dtype: str, shape: tuple[int, ...], axis: int) -> None:
    logits, labels = to_axis(axis, *problem(np.moveaxis(np.empty(shape), axis, -1).shape, dtype=dtype))
    chosen = np.random.default_rng(3).random(labels.shape) < 0.4
    labels[labels == ignored] = 1
    labels[chosen] = ignored
    results = []
    for value in (0, np.nan, np.inf):
        x = logits.copy()
        np.moveaxis(x, axis, -1)[chosen] = value
        results.append(sx.value_and_grad(x, labels, axis=axis, ignore_index=ignored, reduction="none"))
        assert not np.moveaxis(results[-1][1], axis, -1)[chosen].any()
        assert not results[-1][0][chosen].any()
    for other in results[1:]:
        assert_same_results(other, results[0])
    kept = sx.value_and_grad(np.moveaxis(logits, axis, -1)[~chosen], labels[~chosen], reduction="none")
    assert_same_results((results[0][0][~chosen], np.moveaxis(results[0][1], axis, -1)[~chosen]), kept)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_of_one_are_no_weights(dtype: str, reduction: str) -> None:
    logits, labels = problem((70, 10), dtype=dtype)
    plain = sx.value_and_grad(logits, labels, reduction=reduction)
    for weights in (np.ones(70), np.ones(70, bool), np.ones(70, ">f2"), np.broadcast_to(np.int8(1), 70)):
        assert_same_results(sx.value_and_grad(logits, labels, sample_weight=weights, reduction=reduction), plain)
    with_one_hot = sx.value_and_grad(logits, one_hot(labels, 10), sample_weight=np.ones(70), reduction=reduction)
    assert_same_results(with_one_hot, plain)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [
        {"ignore_index": 3},
        {"sample_weight": np.zeros(20)},
        {"normalizer": 0},
        {"ignore_index": 3, "sample_weight": np.ones(20)},
    ],
    ids=str,
)
def test_nothing_counts(options: dict[str, Any], dtype: str) -> None:
    logits, labels = problem((20, 10), dtype=dtype)
    labels[:] = 3
    logits[5] = np.nan
    loss, grad = sx.value_and_grad(logits, labels, **options)
    assert loss == 0.0
    assert not grad.any()
    assert sx.cross_entropy(logits, labels, **options) == 0.0


@given(st.sampled_from(["int8", "uint8", "int64", "uint64", ">i2"]), st.sampled_from([-100, -1, 0, 2, 200, 2**63 - 1]))
def test_any_ignore_index_with_any_dtype_of_labels(dtype: str, ignored: int) -> None:
    labels = np.array([0, 1, 2, 3]).astype(dtype)
    logits = np.arange(16.0).reshape(4, 4)
    keep = labels.astype(object) != ignored
    whole = sx.value_and_grad(logits, labels, ignore_index=ignored, reduction="none")
    assert not whole[1][~keep].any()
    part = sx.value_and_grad(logits[keep], labels[keep], reduction="none")
    assert_same_results((whole[0][keep], whole[1][keep]), part)


def test_an_unsigned_label_is_no_negative_one() -> None:
    labels = np.array([0, 2**64 - 1], np.uint64)
    with pytest.raises(ValueError, match=r"targets\[1\] = 18446744073709551615 is not a class"):
        sx.cross_entropy(np.zeros((2, 3)), labels, ignore_index=-1)
