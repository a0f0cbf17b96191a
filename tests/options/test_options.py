"""What each option means, by itself and with the others, in both kernels, and what it leaves as it was.

Which rows count, and how much, has tests of its own in test_counting.py.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    OPTIONS,
    REDUCTIONS,
    assert_matches,
    assert_same_bits,
    assert_same_results,
    on_allowed,
    one_hot,
    optioned,
    problem,
    sparse,
    to_axis,
)

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = FLOATS + HALVES

# The narrow kernel, with and without a partial group of lanes, and along another axis; the wide one, its rows by way of
# scratch; the middle one, for options that it takes.
SHAPES = [
    ((70, 10), -1),
    ((70, 10), 0),
    ((5, 40, 9), 1),
    ((9, 300), -1),
    ((3, 700), 0),
    ((2, 3, 4, 5), 2),
    ((7,), 0),
]
TWO_SHAPES = [((45, 10), -1), ((5, 3, 300), 1)]

# All of them, and those that do something to a row besides.
EVERY, WITHIN_A_ROW = OPTIONS[:-1], ("weight", "label_smoothing", "temperature", "softcap", "z_loss", "where")
COMBINATIONS = [
    *((name,) for name in OPTIONS if name not in ("sample_weight", "ignore_index")),
    ("temperature", "softcap"),
    ("weight", "label_smoothing"),
    ("label_smoothing", "where by row"),
    ("weight", "z_loss", "ignore_index"),
    WITHIN_A_ROW,
    EVERY,
    OPTIONS,
]


def check(logits: np.ndarray, targets: Any, options: dict[str, Any]) -> None:
    """Every reduction, with and without the gradient, against the reference."""
    for reduction in REDUCTIONS:
        loss, grad = sx.value_and_grad(logits, targets, reduction=reduction, **options)
        assert_matches(loss, grad, logits, targets, reduction, **options)
        assert_same_bits(sx.cross_entropy(logits, targets, reduction=reduction, **options), loss)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("names", COMBINATIONS, ids=" + ".join)
def test_reference(names: tuple[str, ...], kind: str, shape: tuple[int, ...], axis: int) -> None:
    for dtype in FLOATS:
        check(*optioned(shape, kind, names, dtype, axis))


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "soft", "pair"])
@pytest.mark.parametrize("dtype", HALVES)
def test_halves(dtype: str, kind: str, shape: tuple[int, ...], axis: int) -> None:
    for names in (("weight",), ("softcap",), EVERY, OPTIONS):
        check(*optioned(shape, kind, names, dtype, axis))


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
def test_rows_in_stretches(dtype: str, kind: str) -> None:
    for names in (("label_smoothing", "z_loss"), EVERY, OPTIONS):
        check(*optioned((3, 20_000), kind, names, dtype))


# The same target in several ways


@pytest.mark.parametrize("names", [(), *COMBINATIONS], ids=" + ".join)
@pytest.mark.parametrize(("shape", "axis"), TWO_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_is_a_one_hot_row_is_a_pair_of_one(
    dtype: str, shape: tuple[int, ...], axis: int, names: tuple[str, ...]
) -> None:
    names = tuple(name for name in names if name != "ignore_index")
    logits, labels, options = optioned(shape, "labels", names, dtype, axis)
    hot = np.moveaxis(one_hot(labels, shape[-1]), -1, axis)
    column = labels[..., np.newaxis]
    empty = np.zeros_like(column)
    pairs = [
        (column, np.ones(column.shape, dtype)),
        (np.concatenate([empty, column], -1).astype("i2"), np.concatenate([empty, empty + 1], -1)),
    ]
    # Only the target of a label is then smoothed without being built: the last digits may differ.
    by_sums = {"weight", "label_smoothing"}.issubset(names) and "where" not in names
    for reduction in REDUCTIONS:
        options["reduction"] = reduction
        expected = sx.value_and_grad(logits, labels, **options)
        for targets in (hot, *pairs):
            if by_sums:
                assert_near(sx.value_and_grad(logits, targets, **options), expected)
                continue
            assert_same_results(sx.value_and_grad(logits, targets, **options), expected)
            assert_same_bits(sx.cross_entropy(logits, targets, **options), expected[0])


def assert_near(actual: Any, expected: Any) -> None:
    """A few roundings of the largest number apart."""
    for one, other in zip(actual, expected, strict=True):
        numbers = np.asarray(other, np.float64)
        tolerance = 8 * float(ml_dtypes.finfo(other.dtype).eps) if isinstance(other, np.ndarray) else 1e-6
        tolerance *= np.abs(numbers, where=np.isfinite(numbers), out=np.zeros_like(numbers)).max()
        np.testing.assert_allclose(np.asarray(one, np.float64), numbers, rtol=0, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
@pytest.mark.parametrize("n_classes", [10, 400, 20_001])
@pytest.mark.parametrize("dtype", FLOATS)
def test_smoothing_by_weights_is_that_of_one_hot_rows(dtype: str, n_classes: int, temperature: float) -> None:
    """Also where 0 meets infinity, and with logits that a temperature takes out of range."""
    rng = np.random.default_rng(2)
    weight = rng.integers(4, size=n_classes) / 4
    logits = rng.normal(0, 3, (12, n_classes)).astype(dtype)
    labels = rng.integers(n_classes, size=12)
    labels[8:] = logits[8:].argmax(axis=1)
    logits[1:3, weight == 0] = -np.inf
    logits[3, weight != 0] -= 40
    logits[4:6] = 2
    logits[9, rng.integers(n_classes)] = np.nan
    logits[10:] *= float(np.finfo(dtype).max) / 30
    hot = one_hot(labels, n_classes)
    options: Any = {"weight": weight, "label_smoothing": 0.1, "temperature": temperature, "reduction": "none"}
    for i in range(12):
        for rows in (slice(i, i + 1), [i] * 9):
            result = sx.value_and_grad(logits[rows], labels[rows], **options)
            assert_near(result, sx.value_and_grad(logits[rows], hot[rows], **options))
            assert_same_bits(sx.cross_entropy(logits[rows], labels[rows], **options), result[0])


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("n_entries", [0, 1, 2, 17, 40])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pairs_of_any_length(dtype: str, n_entries: int, shape: tuple[int, ...], axis: int) -> None:
    """Indices beyond the classes there are come more than once, and add up."""
    logits, _ = problem(shape, dtype=dtype)
    logits = to_axis(axis, logits, np.int8(0))[0]
    check(logits, sparse(shape, n_entries, dtype), {"axis": axis})
    check(logits, sparse(shape, n_entries, dtype), {"axis": axis, "label_smoothing": 0.2, "z_loss": 0.1})


@pytest.mark.parametrize("n_classes", [3, 400])
@pytest.mark.parametrize("dtype", FLOATS)
def test_two_labels_mixed(dtype: str, n_classes: int) -> None:
    """MixUp: the loss of the pair is the mixture of those of its labels."""
    logits, labels = problem((30, n_classes), dtype=dtype)
    other, share = labels[::-1].copy(), np.linspace(0, 1, 30)
    pair = np.stack([labels, other], -1), np.stack([share, 1 - share], -1)
    losses, grad = sx.value_and_grad(logits, pair, reduction="none")
    (one, grad_one), (two, grad_two) = (sx.value_and_grad(logits, y, reduction="none") for y in (labels, other))
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(losses, share * one + (1 - share) * two, rtol=tolerance, atol=tolerance)
    mixed = share[:, np.newaxis] * grad_one + (1 - share)[:, np.newaxis] * grad_two
    np.testing.assert_allclose(grad, mixed, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 2, 3), (2, 2, 2)], ids=str)
def test_only_a_tuple_is_a_pair(shape: tuple[int, ...]) -> None:
    """A list of two is an array, whatever is in it; so is a tuple of anything but two arrays."""
    logits, targets = problem((2, *shape), "soft")
    expected = sx.value_and_grad(logits, targets)
    assert_same_results(sx.value_and_grad(logits, [targets[0], targets[1]]), expected)
    assert_same_results(sx.value_and_grad(logits, (targets[0].tolist(), targets[1].tolist())), expected)
    assert_same_results(sx.value_and_grad(logits[:, 0, 0, 0], (0, 1)), sx.value_and_grad(logits[:, 0, 0, 0], [0, 1]))


# What is not looked at


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_hold_anything(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    logits, labels, options = optioned(shape, "labels", OPTIONS, dtype, axis)
    if not labels.ndim:
        labels[...] = -100
    ignored = labels == -100
    results = []
    for value in (0, np.nan, np.inf, -np.inf, np.finfo("float16").max):
        x, changed = logits.copy(), {name: np.copy(value) for name, value in options.items()} | options
        np.moveaxis(x, axis, -1)[ignored] = value
        changed["where"] = options["where"].copy()
        np.moveaxis(changed["where"], axis, -1)[ignored] = bool(value == 0)
        changed["sample_weight"] = np.where(ignored, value, options["sample_weight"])
        for reduction in REDUCTIONS:
            loss, grad = sx.value_and_grad(x, labels, reduction=reduction, **changed)
            assert not np.moveaxis(grad, axis, -1)[ignored].any()
            assert not np.asarray(loss)[ignored].any() if reduction == "none" else np.isfinite(loss)
            results.append((loss, grad))
    for index, result in enumerate(results[3:]):
        assert_same_results(result, results[index % 3])


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_rows_of_no_weight_hold_anything(kind: str, shape: tuple[int, ...], axis: int) -> None:
    for dtype in DTYPES:
        logits, targets, options = optioned(shape, kind, OPTIONS, dtype, axis)
        chosen = np.asarray(np.random.default_rng(7).random(shape[:-1]) < 0.4)
        options["sample_weight"] = np.where(chosen, 0, options["sample_weight"])
        results = []
        for value in (0, np.nan, np.inf, -np.inf):
            x, where = logits.copy(), options["where"].copy()
            np.moveaxis(x, axis, -1)[chosen] = value
            np.moveaxis(where, axis, -1)[chosen] = bool(value == 0)
            for reduction in REDUCTIONS:
                loss, grad = sx.value_and_grad(x, targets, reduction=reduction, **{**options, "where": where})
                assert_matches(loss, grad, logits, targets, reduction, **options)
                assert not np.moveaxis(grad, axis, -1)[chosen].any()
                results.append((loss, grad))
        for index, result in enumerate(results[3:]):
            assert_same_results(result, results[index % 3])


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_classes_not_allowed_hold_anything(kind: str, shape: tuple[int, ...], axis: int, by_row: bool) -> None:
    for dtype, names in (("float32", EVERY), ("float64", ("where",)), ("bfloat16", EVERY)):
        logits, targets, options = optioned(shape, kind, OPTIONS if by_row else names, dtype, axis)
        where = options["where"]
        masked = np.broadcast_to(~where, np.moveaxis(logits, axis, -1).shape) if where.ndim == 1 else ~where
        masked = np.moveaxis(masked, -1, axis) if where.ndim == 1 else masked
        results = []
        for value in (0, np.nan, np.inf, -np.inf, 3e4):
            x = logits.copy()
            x[masked] = value
            results.append(sx.value_and_grad(x, targets, **options))
            assert not results[-1][1][masked].any()
            assert_same_bits(sx.cross_entropy(x, targets, **options), results[-1][0])
        for other in results[1:]:
            assert_same_results(other, results[0])
        assert np.isfinite(results[0][0])


@pytest.mark.parametrize(("shape", "axis"), TWO_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_fewer_classes(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    """Classes that are not allowed might as well not be there; smoothing spreads over those that are."""
    logits, labels, options = optioned(shape, "labels", EVERY, dtype, axis)
    where = options.pop("where")
    loss, grad = sx.value_and_grad(logits, labels, where=where, **options)
    kept = np.flatnonzero(where)
    options["weight"] = options["weight"][kept]
    renamed = np.where(labels < 0, labels, np.searchsorted(kept, labels))
    few_loss, few_grad = sx.value_and_grad(np.take(logits, kept, axis), renamed, **options)
    tolerance = 20 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(few_loss, rel=tolerance)
    np.testing.assert_allclose(np.take(grad, kept, axis), few_grad, rtol=0, atol=tolerance * np.abs(few_grad).max())


@pytest.mark.parametrize(("shape", "axis"), TWO_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "one-hot", "pair"])
@pytest.mark.parametrize("smoothing", [0, 0.25])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_target_that_is_not_allowed(
    dtype: str, smoothing: float, kind: str, shape: tuple[int, ...], axis: int
) -> None:
    """Its loss is infinite, its gradient is not, and no other row sees any of it."""
    logits, labels = problem(shape, dtype=dtype)
    where = np.arange(shape[-1]) % 3 != 1
    labels = on_allowed(labels, where, shape)
    inside, wrong = labels.copy(), np.zeros(labels.shape, bool)
    wrong.flat[::4] = True
    labels[wrong] = 1
    if kind == "one-hot":
        targets, allowed_targets = one_hot(labels, shape[-1]), one_hot(inside, shape[-1])
    elif kind == "pair":
        targets, allowed_targets = ((y[..., np.newaxis], np.ones((*y.shape, 1))) for y in (labels, inside))
    else:
        targets, allowed_targets = labels, inside
    x, t = to_axis(axis, logits, targets)
    options: dict[str, Any] = {"axis": axis, "where": where, "label_smoothing": smoothing}
    losses, grad = sx.value_and_grad(x, t, reduction="none", **options)
    np.testing.assert_array_equal(losses[wrong], np.inf)
    others = sx.value_and_grad(x, to_axis(axis, logits, allowed_targets)[1], reduction="none", **options)
    assert_same_bits(losses[~wrong], others[0][~wrong])
    grad, other_grad = np.moveaxis(grad, axis, -1), np.moveaxis(others[1], axis, -1)
    assert_same_bits(grad[~wrong], other_grad[~wrong])
    assert not grad[..., ~where].any()
    _, expected = reference(x, t, "none", **options)
    np.testing.assert_allclose(grad, np.moveaxis(expected, axis, -1), rtol=0, atol=8 * np.finfo(dtype).eps)
    assert sx.cross_entropy(x, t, **options) == np.inf
    # No weight, no cost.
    weight = np.ones(shape[-1])
    weight[1] = 0
    loss, grad = sx.value_and_grad(x, t, weight=weight, **options)
    assert np.isfinite(loss)
    assert_matches(loss, grad, x, t, weight=weight, **options)
    # Nor where smoothing leaves nothing of the target.
    options["label_smoothing"] = 1
    loss, grad = sx.value_and_grad(x, t, **options)
    assert np.isfinite(loss)
    assert_matches(loss, grad, x, t, **options)


@pytest.mark.parametrize("n_classes", [4, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_class_allowed(dtype: str, n_classes: int) -> None:
    """Like a row of nothing but -inf: NaN, and no other row is."""
    logits, labels = problem((20, n_classes), dtype=dtype)
    where = np.ones(logits.shape, bool)
    where[3] = False
    for smoothing in (0, 0.1):
        losses, grad = sx.value_and_grad(logits, labels, where=where, label_smoothing=smoothing, reduction="none")
        assert np.isnan(losses[3])
        np.testing.assert_array_equal(np.isnan(losses), np.arange(20) == 3)
        assert np.isfinite(np.delete(grad, 3, axis=0)).all()
        assert not grad[3].any()


# Infinities, and the ends of what an option may be


@pytest.mark.parametrize("n_classes", [5, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_of_minus_infinity(dtype: str, n_classes: int) -> None:
    """It costs nothing without a target. Smoothing gives it one, unless it is not allowed; softcap makes it finite."""
    logits, labels = problem((20, n_classes), dtype=dtype)
    logits[:, 1] = -np.inf
    labels[labels == 1] = 0
    where = np.arange(n_classes) != 1
    plain: list[dict[str, Any]] = [{}, {"temperature": 2}, {"z_loss": 0.1}, {"softcap": 3}]
    for options in [*plain, {"where": where, "label_smoothing": 0.1}, {"softcap": 3, "label_smoothing": 0.1}]:
        loss, grad = sx.value_and_grad(logits, labels, **options)
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()
        assert "softcap" in options or not grad[:, 1].any()
        assert_matches(loss, grad, logits, labels, axis=-1, **options)
    losses, grad = sx.value_and_grad(logits, labels, label_smoothing=0.1, reduction="none")
    np.testing.assert_array_equal(losses, np.inf)
    np.testing.assert_allclose(grad[:, 1], -0.1 / n_classes, rtol=1e-6)
    weight = where.astype(float)
    assert np.isfinite(sx.cross_entropy(logits, labels, label_smoothing=0.1, weight=weight))


@pytest.mark.parametrize("n_classes", [5, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softcap_takes_infinities(dtype: str, n_classes: int) -> None:
    """They are as far from 0 as a logit gets, and no slope is left there."""
    logits, labels = problem((20, n_classes), dtype=dtype)
    logits[3, 1], logits[4, 2] = np.inf, -np.inf
    most = logits.copy()
    most[3, 1], most[4, 2] = 1e6, -1e6
    capped = sx.value_and_grad(logits, labels, softcap=8)
    assert_same_results(capped, sx.value_and_grad(most, labels, softcap=8))
    assert capped[1][3, 1] == 0
    assert capped[1][4, 2] == 0


@pytest.mark.parametrize("n_classes", [5, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [(name,) for name in WITHIN_A_ROW] + [EVERY], ids=" + ".join)
def test_a_bad_row_leaves_the_others_alone(names: tuple[str, ...], dtype: str, n_classes: int) -> None:
    for kind in ALL_KINDS:
        logits, targets, options = optioned((20, n_classes), kind, names, dtype)
        logits[:, n_classes // 2] += np.asarray(1, dtype)
        options["reduction"] = "none"
        good = sx.value_and_grad(logits, targets, **options)
        row = int(np.argmax(targets != -100)) if kind == "labels" else 3
        spoilt = logits.copy()
        spoilt[row, n_classes // 2] = np.nan
        losses, grad = sx.value_and_grad(spoilt, targets, **options)
        assert np.isnan(losses[row])
        allowed = np.broadcast_to(options.get("where", True), logits.shape)[row]
        assert np.isnan(grad[row][allowed]).all()
        assert not grad[row][~allowed].any()
        others = np.arange(20) != row
        assert_same_results((losses[others], grad[others]), [result[others] for result in good])


@pytest.mark.parametrize("n_classes", [4, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_huge_logits(dtype: str, n_classes: int) -> None:
    """The square of a log-sum-exp may be infinite, but counts for nothing without a z-loss."""
    logits, labels = problem((20, n_classes), dtype=dtype)
    logits += np.asarray(1e37 if dtype == "float32" else 1e200, dtype)
    plain = sx.value_and_grad(logits, labels)
    assert np.isfinite(plain[0])
    assert_same_results(sx.value_and_grad(logits, labels, z_loss=0.0), plain)
    loss, grad = sx.value_and_grad(logits, labels, z_loss=1e-4)
    _, expected = reference(np.zeros_like(logits), labels)
    if dtype == "float64":
        assert loss == np.inf
    assert np.isfinite(grad).all()
    top = float(logits[0, 0])
    np.testing.assert_allclose(grad, 2e-4 * top / n_classes / 20 + expected, rtol=1e-5)


@pytest.mark.parametrize("n_classes", [6, 300])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-3},
        {"temperature": 1e5},
        {"temperature": 1e-30},
        {"temperature": 1e30},
        {"softcap": 1e-3},
        {"softcap": 1e6},
        {"softcap": 30, "temperature": 0.01},
        {"z_loss": 1e3},
        {"z_loss": 1e-30},
        {"label_smoothing": 1},
        {"label_smoothing": 1e-12},
        {"label_smoothing": 1, "z_loss": 2, "temperature": 0.5},
    ],
    ids=str,
)
def test_extreme_values(options: dict[str, Any], dtype: str, n_classes: int) -> None:
    for kind in ALL_KINDS:
        logits, targets, axis = optioned((20, n_classes), kind, (), dtype)
        check(logits, targets, {**axis, **options})


# Not temperature in float64: the gradient of the reference would be subnormal too.
@pytest.mark.parametrize(
    ("name", "dtype"), [("softcap", "float32"), ("softcap", "float64"), ("temperature", "float32")]
)
@pytest.mark.parametrize("n_classes", [6, 300])
def test_the_largest_number_that_a_dtype_has(n_classes: int, dtype: str, name: str) -> None:
    logits, labels, axis = optioned((20, n_classes), "labels", (), dtype)
    check(logits, labels, {**axis, name: float(np.finfo(dtype).max)})


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_many_rows_of_a_transform(dtype: str, name: str) -> None:
    """Every logit from one end of what tanh is about to the other."""
    logits = np.linspace(-60, 60, 4000).reshape(400, 10).astype(dtype)
    check(logits, np.arange(400) % 10, {"axis": -1, name: 3.0})
    check(logits[:, ::-1] * np.asarray(1e-3, dtype), np.arange(400) % 10, {"axis": -1, name: 3.0})


# What changes nothing


DEFAULTS: dict[str, Any] = {"label_smoothing": 0, "temperature": 1, "z_loss": 0, "softcap": None, "weight": None}


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_defaults_given(dtype: str, kind: str, shape: tuple[int, ...], axis: int) -> None:
    logits, targets, options = optioned(shape, kind, (), dtype, axis)
    for reduction in REDUCTIONS:
        options["reduction"] = reduction
        plain = sx.value_and_grad(logits, targets, **options)
        assert_same_results(sx.value_and_grad(logits, targets, **options, **DEFAULTS, where=None), plain)
        assert_same_bits(sx.cross_entropy(logits, targets, **options, **DEFAULTS, where=None), plain[0])
        for where in (np.ones(shape[-1], bool), np.ones(logits.shape, bool)):
            assert_same_results(sx.value_and_grad(logits, targets, **options, where=where), plain)
        # With weights the mean divides by the total of distributions, which need not be one.
        if reduction != "mean" or kind in ("labels", "one-hot"):
            assert_same_results(sx.value_and_grad(logits, targets, **options, weight=np.ones(shape[-1])), plain)


@pytest.mark.parametrize(("shape", "axis"), TWO_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_allowed_and_weights_of_one_with_smoothing(
    dtype: str, kind: str, shape: tuple[int, ...], axis: int
) -> None:
    logits, targets, options = optioned(shape, kind, ("label_smoothing",), dtype, axis)
    plain = sx.value_and_grad(logits, targets, reduction="sum", **options)
    tolerance = 8 * float(np.finfo(dtype).eps)
    for same in (
        {"where": np.ones(shape[-1], bool)},
        {"where": np.ones(logits.shape, bool)},
        {"weight": [1] * shape[-1]},
    ):
        loss, grad = sx.value_and_grad(logits, targets, reduction="sum", **options, **same)
        assert loss == pytest.approx(plain[0], rel=tolerance)
        np.testing.assert_allclose(grad, plain[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_weight_common_to_all_classes(dtype: str) -> None:
    logits, labels = problem((30, 12), dtype=dtype)
    plain = sx.value_and_grad(logits, labels, reduction="sum")
    for factor in (4, -0.5, 0):
        loss, grad = sx.value_and_grad(logits, labels, weight=np.full(12, factor), reduction="sum")
        assert loss == factor * plain[0]
        np.testing.assert_array_equal(grad, factor * plain[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n_classes", [4, 300])
def test_the_weight_of_a_class_is_for_its_labels_alone(n_classes: int, bad: float) -> None:
    logits, labels = problem((20, n_classes))
    labels[labels == 0] = 1
    labels[::3] = -1
    weight = np.ones(n_classes)
    plain = sx.value_and_grad(logits, labels, ignore_index=-1)
    weight[0] = bad
    assert_same_results(sx.value_and_grad(logits, labels, ignore_index=-1, weight=weight), plain)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_smoothing_does_not_enter_the_denominator(kind: str, dtype: str) -> None:
    for names in ((), ("weight",), ("weight", "sample_weight", "where")):
        logits, targets, options = optioned((30, 12), kind, names, dtype)
        ratios = [
            sx.cross_entropy(logits, targets, **options, label_smoothing=smoothing, reduction="sum")
            / sx.cross_entropy(logits, targets, **options, label_smoothing=smoothing)
            for smoothing in (0, 0.3, 1)
        ]
        assert ratios[1:] == pytest.approx(ratios[:1] * 2, rel=1e-14)


@pytest.mark.parametrize("n_classes", [5, 300])
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_counts(dtype: str, kind: str, n_classes: int) -> None:
    logits, targets, options = optioned((20, n_classes), kind, ("z_loss", "label_smoothing"), dtype)
    for nothing in ({"weight": np.zeros(n_classes)}, {"normalizer": 0}, {"sample_weight": np.zeros(20)}):
        loss, grad = sx.value_and_grad(logits, targets, **options, **nothing)
        assert loss == 0.0
        assert not grad.any()
        assert sx.cross_entropy(logits, targets, **options, **nothing) == 0.0


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("n_rows", [1, 20])
def test_an_only_class(n_rows: int, kind: str) -> None:
    for dtype in FLOATS:
        check(*optioned((n_rows, 1), kind, EVERY, dtype))


# How options come


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("n_classes", [10, 400])
def test_whatever_becomes_a_number(n_classes: int, kind: str) -> None:
    """Whatever becomes an array is in test_layouts.py."""
    logits, targets, options = optioned((20, n_classes), kind, EVERY, "float32")
    expected = sx.value_and_grad(logits, targets, **options)
    scalars = {name: value for name, value in options.items() if np.ndim(value) == 0 and name != "axis"}
    for become in (np.float64, np.array):
        same = {name: become(value) for name, value in scalars.items() if name != "ignore_index"}
        same["ignore_index"] = np.int16(-100) if kind == "labels" else None
        assert_same_results(sx.value_and_grad(logits, targets, **{**options, **same}), expected)


@pytest.mark.parametrize("dtype", ["bool", "int8", ">i4", "uint64", "float16", "bfloat16", ">f4", "float64"])
@pytest.mark.parametrize("floats", DTYPES)
@pytest.mark.parametrize("n_classes", [12, 400])
def test_weights_of_every_real_dtype(n_classes: int, floats: str, dtype: str) -> None:
    logits, labels = problem((20, n_classes), dtype=floats)
    weight = (np.arange(n_classes) % 3).astype(dtype)
    expected = sx.value_and_grad(logits, labels, weight=weight.astype(np.float64), label_smoothing=0.1)
    assert_same_results(sx.value_and_grad(logits, labels, weight=weight, label_smoothing=0.1), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", ">i2", "uint16", "int32", ">u4", "int64", "uint64", ">i8"])
@pytest.mark.parametrize("probs_dtype", ["bool", "int8", "float16", "bfloat16", ">f4", "float64"])
@pytest.mark.parametrize("floats", FLOATS)
def test_pairs_of_every_dtype(floats: str, probs_dtype: str, dtype: str) -> None:
    logits, _ = problem((20, 12), dtype=floats)
    indices, probs = sparse((20, 12))
    probs = (probs * 2).astype("int8").astype(probs_dtype)
    expected = sx.value_and_grad(logits, (indices, probs.astype(floats)))
    assert_same_results(sx.value_and_grad(logits, (indices.astype(dtype), probs)), expected)


# All of it together

SIZES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70)),
    st.tuples(st.integers(1, 9), st.integers(150, 600)),
    st.tuples(st.integers(1, 12)),
)
NUMBERS: dict[str, st.SearchStrategy[float]] = {
    "label_smoothing": st.sampled_from([0, 1e-6, 0.1, 0.5, 1]),
    "temperature": st.floats(0.2, 5),
    "softcap": st.floats(0.5, 50),
    "z_loss": st.sampled_from([0, 1e-4, 0.1, 1]),
    "normalizer": st.sampled_from([0, 0.5, 1000]),
}


def check_any_combination(data: st.DataObject) -> None:
    """Weights and targets are multiples of 1/8, the same number in every dtype."""
    shape, kind = data.draw(SIZES), data.draw(st.sampled_from(ALL_KINDS))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    dtype, out_dtype = data.draw(st.tuples(*[st.sampled_from(DTYPES)] * 2))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    names = data.draw(st.sets(st.sampled_from([*OPTIONS, "normalizer"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))

    def eighths(size: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 17, size) / 8 * (rng.random(size) < 0.9)

    logits = (rng.normal(0, data.draw(st.sampled_from([0.01, 1, 5, 30])), shape)).astype(dtype)
    if kind == "soft":
        targets: Any = eighths(shape)
    elif kind == "pair":
        entries = (*shape[:-1], data.draw(st.integers(0, 5)))
        targets = rng.integers(shape[-1], size=entries), eighths(entries)
    else:
        targets = np.asarray(rng.integers(shape[-1], size=shape[:-1]))
        targets = one_hot(targets, shape[-1]) if kind == "one-hot" else targets
    options: dict[str, Any] = {name: data.draw(draw) for name, draw in NUMBERS.items() if name in names}
    if reduction != "mean":
        options.pop("normalizer", None)
    arrays: dict[str, np.ndarray] = {}
    if {"where", "where by row"} & names:
        arrays["where"] = rng.random(shape if "where by row" in names else shape[-1:]) < rng.random()
        arrays["where"][..., shape[-1] // 2] = True
        targets = on_allowed(targets, arrays["where"], shape)
    if "ignore_index" in names and kind == "labels":
        options["ignore_index"] = int(rng.integers(-1, shape[-1]))
        targets = np.asarray(np.where(rng.random(targets.shape) < 0.3, options["ignore_index"], targets))
    if "weight" in names:
        arrays["weight"] = eighths(shape[-1:]).astype(data.draw(st.sampled_from(DTYPES)))
    if "sample_weight" in names:
        arrays["sample_weight"] = np.asarray(eighths(shape[:-1])).astype(data.draw(st.sampled_from(DTYPES)))
    logits, targets = to_axis(axis, logits, targets)
    if "where by row" in names:
        arrays["where"] = to_axis(axis, arrays["where"], np.int8(0))[0]
    options |= {"axis": axis, **arrays}
    x = logits.copy()
    out = x if data.draw(st.booleans()) else np.zeros(logits.shape, out_dtype)
    loss, grad = sx.value_and_grad(x, targets, reduction=reduction, out=out, **options)
    assert grad is out
    assert_matches(loss, grad, logits, targets, reduction, **options)
    assert_same_bits(sx.cross_entropy(logits, targets, reduction=reduction, **options), loss)


@settings(max_examples=500)
@given(st.data())
def test_any_combination(data: st.DataObject) -> None:
    check_any_combination(data)


@pytest.mark.nightly
@settings(max_examples=20_000)
@given(st.data())
def test_very_many_combinations(data: st.DataObject) -> None:
    check_any_combination(data)


@pytest.mark.parametrize("shape", [(1, 400), (20, 3), (20, 400)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_impossible_class_of_weight_0_adds_nothing(dtype: str, shape: tuple[int, int]) -> None:
    """Smoothing gives it a share of 0, though its logit is -inf."""
    logits, labels = np.random.default_rng(0).normal(size=shape).astype(dtype), np.zeros(shape[0], int)
    weight = np.arange(shape[1]) % 3 / 2 + (np.arange(shape[1]) == 0)
    weight[-1], logits[:, -1] = 0, -np.inf
    options: dict[str, Any] = {"weight": weight, "label_smoothing": 0.1, "reduction": "none"}
    losses, grad = sx.value_and_grad(logits, labels, **options)
    logits[:, -1] = -80  # its exponential is too small to be seen in the sum
    expected = sx.value_and_grad(logits, labels, **options)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-30)
