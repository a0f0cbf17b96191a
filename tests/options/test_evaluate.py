"""What `evaluate` says of each row besides the loss, and what it makes of the whole."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from reference import reference, transformed
from support import (
    FLOATS,
    HALVES,
    OPTIONS,
    REDUCTIONS,
    assert_same_bits,
    assert_same_results,
    computed_in,
    one_hot,
    optioned,
    problem,
    to_axis,
)

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = FLOATS + HALVES
SHAPES = [((70, 10), -1), ((70, 10), 0), ((5, 40, 9), 1), ((9, 300), -1), ((3, 700), 0), ((7,), 0)]
COMBINATIONS = [(), ("temperature",), ("softcap",), ("where",), OPTIONS[:-1], OPTIONS]
OF_ROWS = ("log_prob", "lse", "argmax", "correct", "entropy", "row_weight", "confidence", "rank")
FIELDS = ("loss", *OF_ROWS, "normalizer", "reduction")
NOTHING = (0, 0, -1, False, 0, 0, 0, -1)  # what rows that do not count have


def rows_of(logits: np.ndarray, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (..., C) as the softmax sees them, in float64, and their probabilities."""
    x = np.moveaxis(logits.astype(np.float64), options["axis"], -1)
    where = np.asarray(options.get("where", True))
    where = np.moveaxis(where, options["axis"], -1) if where.ndim == x.ndim else where
    z, _ = transformed(x, options.get("temperature", 1.0), options.get("softcap"), where)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return z, e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: " + ".join(names) or "nothing")
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((1, 20_000), -1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_row(dtype: str, shape: tuple[int, ...], axis: int, names: tuple[str, ...]) -> None:
    logits, labels, options = optioned(shape, "labels", names, dtype, axis)
    result = sx.evaluate(logits, labels, **options)
    z, p = rows_of(logits, options)
    counted = np.asarray(labels != -100)
    inside = np.where(counted, labels, 0)
    allowed = one_hot(inside, shape[-1]) & np.isfinite(z)
    number = computed_in(logits)
    tolerance = 8 * float(np.finfo(number).eps) * (1 + np.log(shape[-1]) + np.abs(z[np.isfinite(z)]).max())
    losses, _ = reference(z, np.where(allowed.any(axis=-1), inside, z.argmax(axis=-1)), "none")
    expected = {
        "log_prob": -losses,
        "lse": z.max(axis=-1) + np.log(np.exp(z - z.max(axis=-1, keepdims=True)).sum(axis=-1)),
        "entropy": reference(z, p, "none")[0],
    }
    for name, values in expected.items():
        actual = getattr(result, name)
        assert (actual.dtype, actual.shape) == (number, shape[:-1])
        np.testing.assert_allclose(actual, np.where(counted, values, 0), rtol=0, atol=tolerance)
        assert not np.asarray(actual)[~counted].any()
    assert (result.argmax.dtype, result.argmax.shape) == (np.int64, shape[:-1])
    np.testing.assert_array_equal(result.argmax[~counted], -1)
    chosen = np.take_along_axis(z, np.maximum(result.argmax, 0)[..., np.newaxis], -1)[..., 0]
    assert np.all((chosen >= z.max(axis=-1) - tolerance)[counted])
    assert (result.correct.dtype, result.correct.shape) == (np.bool_, shape[:-1])
    np.testing.assert_array_equal(result.correct, counted & (result.argmax == labels))
    assert (result.row_weight.dtype, result.row_weight.shape) == (np.float64, shape[:-1])
    np.testing.assert_array_equal(result.row_weight, np.where(counted, options.get("sample_weight", 1), 0))


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: " + ".join(names) or "nothing")
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_the_loss_is_the_loss(shape: tuple[int, ...], axis: int, names: tuple[str, ...]) -> None:
    for dtype in DTYPES:
        logits, labels, options = optioned(shape, "labels", names, dtype, axis)
        for reduction in REDUCTIONS:
            result = sx.evaluate(logits, labels, reduction=reduction, **options)
            assert_same_bits(result.loss, sx.cross_entropy(logits, labels, reduction=reduction, **options))
            assert type(result.loss) is (np.ndarray if reduction == "none" else float)


@pytest.mark.parametrize("shape", [(4, 3), (3,)], ids=str)
def test_a_named_tuple(shape: tuple[int, ...]) -> None:
    result = sx.evaluate(*problem(shape))
    assert isinstance(result, sx.Evaluation)
    assert result._fields == FIELDS
    assert all(type(value) is np.ndarray for value in result[1:-2])
    assert (type(result.normalizer), result.reduction) == (float, "mean")


def test_what_it_prints() -> None:
    logits, labels = np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]), [2, 1]
    assert repr(sx.evaluate(logits, labels)) == "<Evaluation: loss=1.40671, perplexity=4.08248, accuracy=0.5, rows=2>"
    per_row = sx.evaluate(logits, labels, reduction="none")
    assert str(per_row) == "<Evaluation: loss=one a row, perplexity=4.08248, accuracy=0.5, rows=2>"
    assert repr(sx.evaluate(np.zeros((0, 3)), [])) == "<Evaluation: loss=0, perplexity=nan, accuracy=nan, rows=0>"


def test_comparisons_are_bools() -> None:
    """Equal are the same numbers in the same places, NaN among them."""
    logits, labels = problem((4, 3))
    logits[1] = np.nan
    result, same = (sx.evaluate(logits, labels, reduction="none") for _ in range(2))
    assert (result == same) is True
    assert (result != same) is False
    others = [
        sx.evaluate(logits, labels),
        result._replace(argmax=result.argmax + 1),
        tuple(result),
        result.loss[0],
        None,
    ]
    for other in others:
        assert (result == other) is False
        assert (result != other) is True


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(protocol: int, reduction: str) -> None:
    result = sx.evaluate(*problem((4, 3)), reduction=reduction)
    pickled = pickle.dumps(result, protocol)
    assert b"_evaluation" not in pickled
    for twin in (pickle.loads(pickled), copy.copy(result), copy.deepcopy(result)):
        assert type(twin) is sx.Evaluation
        assert_same_results(twin, result)


@pytest.mark.parametrize("weight", [5e-324, 2e-310, 1e300, 1.7e308])
def test_weights_of_any_size_are_ratios(weight: float) -> None:
    logits, labels = problem((30, 4))
    plain = sx.evaluate(logits, labels, sample_weight=np.ones(30))
    result = sx.evaluate(logits, labels, sample_weight=np.full(30, weight))
    assert (result.perplexity, result.accuracy) == pytest.approx((plain.perplexity, plain.accuracy), rel=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_classes", [10, 300])
def test_the_log_prob_is_the_loss_of_a_plain_row(n_classes: int, dtype: str) -> None:
    logits, labels = problem((50, n_classes), dtype=dtype)
    result = sx.evaluate(logits, labels, reduction="none")
    np.testing.assert_array_max_ulp(-result.log_prob, result.loss, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [10, 300])
def test_what_only_the_loss_is_made_of_changes_nothing_else(n_classes: int, dtype: str) -> None:
    names = ("where", "softcap", "temperature")
    logits, labels, options = optioned((50, n_classes), "labels", names, dtype)
    plain = sx.evaluate(logits, labels, **options)
    weight = np.arange(n_classes) % 3
    others: list[dict[str, Any]] = [
        {"weight": weight},
        {"label_smoothing": 0.2},
        {"z_loss": 0.1},
        {"reduction": "sum"},
        {"normalizer": 3},
        {"weight": weight, "label_smoothing": 0.2, "z_loss": 0.1, "reduction": "none"},
    ]
    for more in others:
        other = sx.evaluate(logits, labels, **options, **more)
        for name in ("log_prob", "lse", "entropy"):
            np.testing.assert_array_max_ulp(getattr(other, name), getattr(plain, name), 1)
        for name in ("argmax", "correct", "row_weight"):
            assert_same_bits(getattr(other, name), getattr(plain, name))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_classes", [3, 10, 300])
def test_a_confident_row_keeps_its_digits(n_classes: int, dtype: str) -> None:
    margin = 30 if dtype == "float32" else 50
    logits = np.full((9, n_classes), -float(margin), dtype)
    logits[:, 1] = 0
    result = sx.evaluate(logits, np.ones(9, int))
    rest = (n_classes - 1) * np.exp(-float(margin))
    rel = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(result.log_prob, -rest, rtol=rel)
    np.testing.assert_allclose(result.lse, rest, rtol=rel)
    np.testing.assert_allclose(result.entropy, rest * (1 + margin), rtol=rel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((60, 9), -1), ((60, 9), 0), ((9, 400), -1), ((2, 50_000), -1)], ids=str)
def test_the_first_of_the_largest(dtype: str, shape: tuple[int, int], axis: int) -> None:
    logits, labels = problem(shape)
    logits = np.round(logits).astype(dtype)
    logits[0] = 0.0
    logits[0, 2:4] = -0.0
    logits[1, 3:] = -np.inf
    x, labels = to_axis(axis, logits, labels)
    expected = logits.astype(np.float64).argmax(axis=-1)
    result = sx.evaluate(x, labels, axis=axis)
    np.testing.assert_array_equal(result.argmax, expected)
    np.testing.assert_array_equal(result.correct, expected == labels)
    where = np.arange(shape[1]) % 3 == 1
    allowed = np.where(where, logits.astype(np.float64), -np.inf).argmax(axis=-1)
    np.testing.assert_array_equal(sx.evaluate(x, labels, axis=axis, where=where).argmax, allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [5, 300])
def test_infinities_and_nan(n_classes: int, dtype: str) -> None:
    """The log_prob of a label that is impossible is infinite, a row with NaN has no numbers, the others have theirs."""
    logits, labels = problem((20, n_classes), dtype=dtype)
    good = sx.evaluate(logits, labels)
    bad = logits.copy()
    bad[3, 1] = np.nan
    bad[4, labels[4]] = -np.inf
    result = sx.evaluate(bad, labels, reduction="none")
    assert np.isnan([result.log_prob[3], result.lse[3], result.entropy[3], result.loss[3]]).all()
    assert result.log_prob[4] == -np.inf
    assert result.loss[4] == np.inf
    assert np.isfinite([result.lse[4], result.entropy[4]]).all()
    assert not result.correct[4]
    others = np.delete(np.arange(20), [3, 4])
    for name in OF_ROWS:
        assert_same_bits(getattr(result, name)[others], getattr(good, name)[others])
    where = np.ones((20, n_classes), bool)
    where[4, labels[4]] = False
    masked = sx.evaluate(logits, labels, where=where)
    assert masked.log_prob[4] == -np.inf
    assert masked.argmax[4] != labels[4]
    assert masked.perplexity == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_ignored_rows_hold_anything(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    logits, labels, options = optioned(shape, "labels", OPTIONS, dtype, axis)
    if not labels.ndim:
        labels[...] = -100
    results = []
    for value in (0, np.nan, np.inf, -np.inf):
        x, where = logits.copy(), options["where"].copy()
        np.moveaxis(x, axis, -1)[labels == -100] = value
        np.moveaxis(where, axis, -1)[labels == -100] = bool(value == 0)
        results.append(sx.evaluate(x, labels, **{**options, "where": where}))
    for other in results[1:]:
        assert_same_results(other, results[0])
    ignored = [np.asarray(getattr(results[0], name))[labels == -100] for name in OF_ROWS]
    for values, expected in zip(ignored, NOTHING, strict=True):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", [0, 2, -1, 2**40])
def test_any_ignore_index(ignored: int, dtype: str) -> None:
    logits, labels = problem((40, 6), dtype=dtype)
    labels[::3] = ignored
    keep = labels != ignored
    result = sx.evaluate(logits, labels, ignore_index=ignored)
    part = sx.evaluate(logits[keep], labels[keep])
    for name in OF_ROWS:
        assert_same_bits(getattr(result, name)[keep], getattr(part, name))
        assert (getattr(result, name)[~keep] == (-1 if name in ("argmax", "rank") else 0)).all()
    assert result.loss == pytest.approx(part.loss, rel=1e-14)
    assert (result.perplexity, result.accuracy) == pytest.approx((part.perplexity, part.accuracy), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [(), ("sample_weight",), ("sample_weight", "ignore_index", "weight")], ids=str)
def test_perplexity_and_accuracy(names: tuple[str, ...], dtype: str) -> None:
    logits, labels, options = optioned((200, 7), "labels", names, dtype)
    labels[:50] = logits[:50].astype(np.float64).argmax(axis=1)
    if names:
        options["sample_weight"][5] = 0
    result = sx.evaluate(logits, labels, **options)
    log_prob, correct, row_weight = (
        getattr(result, name).astype(np.float64) for name in ("log_prob", "correct", "row_weight")
    )
    total = row_weight.sum()
    assert type(result.perplexity) is type(result.accuracy) is float
    assert result.perplexity == pytest.approx(np.exp(-(row_weight * log_prob).sum() / total), rel=1e-12)
    assert result.accuracy == pytest.approx((row_weight * correct).sum() / total, rel=1e-12)
    if "weight" not in names:
        assert result.perplexity == pytest.approx(np.exp(result.loss), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"ignore_index": 1}, {"ignore_index": 1, "sample_weight": np.ones(40)}, {"sample_weight": np.zeros(40)}],
    ids=["ignored", "ignored, of a weight", "of no weight"],
)
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_row_counts(reduction: str, n_classes: int, options: dict[str, Any]) -> None:
    logits, labels = np.full((40, n_classes), np.nan), np.ones(40, int)
    result = sx.evaluate(logits, labels, reduction=reduction, **options)
    np.testing.assert_array_equal(result.loss, 0)
    for name, value in zip(OF_ROWS, NOTHING, strict=True):
        np.testing.assert_array_equal(getattr(result, name), value)
    assert np.isnan([result.perplexity, result.accuracy]).all()


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_no_weight_are_ignored(dtype: str, n_classes: int) -> None:
    logits, labels = problem((40, n_classes), dtype=dtype)
    sample_weight = np.arange(40.0) % 4
    logits[sample_weight == 0] = np.nan
    ignored = np.where(sample_weight == 0, -1, labels)
    for reduction in REDUCTIONS:
        result = sx.evaluate(logits, labels, sample_weight=sample_weight, reduction=reduction)
        same = sx.evaluate(logits, ignored, sample_weight=sample_weight, ignore_index=-1, reduction=reduction)
        assert_same_results(result, same)
        assert (result.perplexity, result.accuracy) == (same.perplexity, same.accuracy)
        assert np.isfinite([result.perplexity, result.accuracy]).all()


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_mean_of_nothing_leaves_the_rows_as_they_are(dtype: str, n_classes: int) -> None:
    logits, labels = problem((40, n_classes), dtype=dtype)
    plain = sx.evaluate(logits, labels)
    options: list[dict[str, Any]] = [{"weight": np.zeros(n_classes)}, {"normalizer": 0}]
    for nothing in options:
        result = sx.evaluate(logits, labels, **nothing)
        assert result.loss == 0.0
        assert_same_results(result[1:-2], plain[1:-2])
        assert result.normalizer == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "longdouble", "bool", "int8"])
def test_weights_of_every_dtype(dtype: str) -> None:
    logits, labels = problem((20, 12))
    weights = np.arange(20).astype(dtype)
    result = sx.evaluate(logits, labels, sample_weight=weights, ignore_index=3)
    assert_same_results(result, sx.evaluate(logits, labels, sample_weight=weights.astype(np.float64), ignore_index=3))


def test_numbers_too_large_for_the_dtype_are_infinite() -> None:
    """And no warning comes of them."""
    result = sx.evaluate(np.float32([[-3e38, 3e38, 0]]), [0])
    assert result.log_prob[0] == -np.inf
    assert result.loss == pytest.approx(6e38)
    logits = np.zeros((2, 3), np.float32)
    assert sx.cross_entropy(logits, [0, 2], weight=[1, 1e300, 1]) == pytest.approx(np.log(3))
    assert not np.isfinite(sx.cross_entropy(logits, (np.zeros((2, 1), int), np.full((2, 1), 1e300))))
    weights = np.array([np.finfo(np.longdouble).max, 1])
    assert sx.evaluate(logits, [0, 1], sample_weight=weights).row_weight.tolist() == [float(weights[0]), 1]


@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((1, 20_000), -1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_confidence_and_rank(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    logits, labels, options = optioned(shape, "labels", ("temperature", "where"), dtype, axis)
    x = np.moveaxis(logits, axis, -1)
    x[...] = np.round(x)  # ties
    result = sx.evaluate(logits, labels, **options)
    z, p = rows_of(logits, options)
    np.testing.assert_allclose(result.confidence, p.max(axis=-1), rtol=32 * float(np.finfo(computed_in(logits)).eps))
    assert result.confidence.dtype == computed_in(logits)
    own = np.take_along_axis(z, labels[..., np.newaxis], -1)
    before = np.arange(shape[-1]) < labels[..., np.newaxis]
    np.testing.assert_array_equal(result.rank, ((z > own) | ((z == own) & before)).sum(axis=-1))
    np.testing.assert_array_equal(result.rank == 0, result.correct)
    for k in (1, 2, shape[-1]):
        assert result.top_k_accuracy(k) == pytest.approx(np.mean(np.asarray(result.rank) < k), rel=1e-14)
    assert result.top_k_accuracy(1) == result.accuracy


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_confidence_near_1_and_rank_with_nan(dtype: str, n_classes: int) -> None:
    logits = np.zeros((10, n_classes), dtype)
    logits[0, 1] = 9
    logits[1, 0] = np.nan
    logits[2, 0] = np.inf
    result = sx.evaluate(logits, np.ones(10, int))
    rest = np.exp(-9.0) * (n_classes - 1)
    assert result.confidence[0] == pytest.approx(1 / (1 + rest), rel=2 * float(np.finfo(dtype).eps))
    assert np.isnan(result.confidence[1:3]).all()
    assert result.rank[:4].tolist() == [0, -1, 1, 1]
    assert result.top_k_accuracy(2) == pytest.approx(0.9)  # a row with NaN is wrong
    with pytest.raises(ValueError, match=r"^k must be positive, got 0$"):
        result.top_k_accuracy(0)


@pytest.mark.parametrize("n_classes", [1, 3, 17, 70, 300, 700])
@pytest.mark.parametrize("dtype", FLOATS)
def test_ranks_are_places_in_a_stable_order(n_classes: int, dtype: str) -> None:
    logits = np.random.default_rng(3).choice(np.array([-np.inf, -1, -0.0, 0, 2], dtype), n_classes)
    places = np.argsort(np.argsort(-logits, kind="stable"))
    result = sx.evaluate(np.tile(logits, (n_classes, 1)), np.arange(n_classes))
    np.testing.assert_array_equal(result.rank, places)
    np.testing.assert_array_equal(result.correct, places == 0)


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("label", [0, 5_000, 16_383, 16_384, 30_000, 39_999])
def test_ranks_in_rows_of_several_stretches(label: int, n_threads: int) -> None:
    logits = np.random.default_rng(4).integers(3, size=40_000).astype(np.float32)
    result = sx.evaluate(logits, label, n_threads=n_threads)
    ahead = (logits > logits[label]) | ((logits == logits[label]) & (np.arange(logits.size) < label))
    assert (result.rank, result.correct) == (ahead.sum(), ahead.sum() == 0)


def test_a_rank_beyond_the_range_of_the_dtype() -> None:
    logits = np.array([3e38, 2e38, 1e38, -3e38, 2.5e38], np.float32)
    assert sx.evaluate(np.tile(logits, (9, 1)), np.arange(9) % 5, temperature=0.5).rank.tolist() == [
        0, 2, 3, 4, 1, 0, 2, 3, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("names", [(), ("temperature", "softcap", "where")], ids=str)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_without_targets(shape: tuple[int, ...], axis: int, names: tuple[str, ...]) -> None:
    for dtype in DTYPES:
        logits, labels, options = optioned(shape, "labels", names, dtype, axis)
        result, full = sx.evaluate(logits, **options), sx.evaluate(logits, labels, **options)
        for name in ("lse", "argmax", "entropy", "confidence", "row_weight", "normalizer"):
            assert_same_bits(getattr(result, name), getattr(full, name))
        assert (result.loss, result.log_prob, result.correct, result.rank) == (None, None, None, None)
    weights = np.zeros(shape[:-1])
    assert not sx.evaluate(logits, sample_weight=weights, **options).lse.any()
    assert repr(result) == f"<Evaluation: rows={labels.size}>"
    with pytest.raises(ValueError, match=r"^there is no log_prob without targets$"):
        result.perplexity  # noqa: B018
    with pytest.raises(ValueError, match=r"^there is no correct without class labels$"):
        result.accuracy  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value"), [("weight", [1, 2, 3]), ("ignore_index", 1), ("label_smoothing", 0.1), ("z_loss", 0.1)]
)
def test_what_needs_targets(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} needs targets$"):
        sx.evaluate(np.zeros((2, 3)), **{name: value})
    with pytest.raises(ValueError, match=r"^normalizer needs targets$"):
        sx.evaluate(np.zeros((2, 3)), normalizer=2.0)


@pytest.mark.parametrize("kind", ["one-hot", "soft", "pair"])
def test_other_targets(kind: str) -> None:
    for names in ((), ("weight", "sample_weight", "label_smoothing", "temperature")):
        logits, targets, options = optioned((20, 7), kind, names)
        result = sx.evaluate(logits, targets, **options)
        assert result.loss == sx.cross_entropy(logits, targets, **options)
        plain = {name: options[name] for name in ("temperature",) if name in options}
        np.testing.assert_array_equal(result.log_prob, -sx.cross_entropy(logits, targets, reduction="none", **plain))
        same = sx.evaluate(logits, np.zeros(20, int), **plain)
        for name in ("lse", "argmax", "entropy", "confidence"):
            assert_same_bits(getattr(result, name), getattr(same, name))
        assert (result.correct, result.rank) == (None, None)
        total = sx.cross_entropy(logits, targets, **{**options, "reduction": "sum"})
        assert result.normalizer == pytest.approx(total / result.loss, rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("names", [(), ("weight", "sample_weight", "ignore_index")], ids=str)
def test_merged(names: tuple[str, ...], reduction: str) -> None:
    logits, labels, options = optioned((50, 7), "labels", names)
    whole = sx.evaluate(logits, labels, reduction=reduction, **options)
    parts = []
    for part in (slice(0, 20), slice(20, 21), slice(21, 50)):
        own = {**options, "sample_weight": options["sample_weight"][part]} if names else options
        parts.append(sx.evaluate(logits[part], labels[part], reduction=reduction, **own))
    merged = sx.Evaluation.merge(iter(parts))
    assert type(merged) is sx.Evaluation
    for name in OF_ROWS:
        assert_same_bits(getattr(merged, name), getattr(whole, name))
    np.testing.assert_allclose(merged.loss, whole.loss, rtol=1e-14)
    assert type(merged.loss) is type(whole.loss)
    assert merged.normalizer == pytest.approx(whole.normalizer, rel=1e-15)
    assert (merged.perplexity, merged.accuracy) == (whole.perplexity, whole.accuracy)
    assert merged.reduction == reduction


def test_what_cannot_be_merged() -> None:
    logits, labels = problem((4, 3))
    result = sx.evaluate(logits, labels)
    with pytest.raises(ValueError, match=r"^merge needs at least one result, got none$"):
        sx.Evaluation.merge([])
    with pytest.raises(ValueError, match=r"^results must have the same reduction, got mean and sum$"):
        sx.Evaluation.merge([result, sx.evaluate(logits, labels, reduction="sum")])
    with pytest.raises(ValueError, match=r"^results must come from the same kind of targets: some have no loss$"):
        sx.Evaluation.merge([result, sx.evaluate(logits)])


def test_a_result_that_is_not_computed_yet() -> None:
    """As `softxent.dask.evaluate` returns it: its fields have a size, but no numbers."""

    class Planned:
        size = 4

    planned = sx.Evaluation(loss=0.0, normalizer=4.0, reduction="mean", **dict.fromkeys(OF_ROWS, Planned()))
    assert repr(planned) == "<Evaluation: not computed yet, rows=4>"
    for use in (lambda: planned.perplexity, lambda: planned.accuracy, lambda: planned.top_k_accuracy(2)):
        with pytest.raises(TypeError, match=r"^\w+ is not computed yet: use dask\.compute\(result\)\[0\]$"):
            use()
    with pytest.raises(TypeError, match=r"^merge needs results that are computed: use dask\.compute\(results\)\[0\]$"):
        sx.Evaluation.merge([planned])


def test_there_is_no_gradient_to_write() -> None:
    logits, labels = problem((4, 3))
    with pytest.raises(TypeError, match="out"):
        sx.evaluate(logits, labels, out=logits)  # type: ignore[call-arg]


def test_one_row_with_a_distribution_or_a_pair() -> None:
    logits = np.array([0.0, 1.0, 2.0])
    for targets in (np.array([0.5, 0.5, 0.0]), (np.array([0, 1]), np.array([0.5, 0.5]))):
        one, several = sx.evaluate(logits, targets), sx.evaluate(logits[np.newaxis], _with_a_row_axis(targets))
        assert (one.loss, one.log_prob, one.lse) == (several.loss, several.log_prob[0], several.lse[0])


def _with_a_row_axis(targets: Any) -> Any:
    return tuple(map(_with_a_row_axis, targets)) if isinstance(targets, tuple) else targets[np.newaxis]


@pytest.mark.parametrize("size", [1e-320, 1e308])
def test_merging_normalizers_of_any_size(size: float) -> None:
    logits = np.array([[0.0, 1, 2], [2.0, 0, 1]])
    one = sx.evaluate(logits, [0, 1], sample_weight=[size / 2, size / 4])
    assert sx.Evaluation.merge([one]).loss == one.loss
    other = sx.evaluate(logits[:1], [0], sample_weight=[size / 8])
    whole = sx.evaluate(logits[[0, 1, 0]], [0, 1, 0], sample_weight=[size / 2, size / 4, size / 8])
    assert sx.Evaluation.merge([one, other]).loss == pytest.approx(whole.loss, rel=1e-3 if size < 1 else 1e-15)
