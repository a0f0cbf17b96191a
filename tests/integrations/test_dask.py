"""softxent.dask: what the functions for NumPy arrays give, for any chunks, lazily, on threads and on processes."""

import doctest
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    OPTIONS,
    REDUCTIONS,
    assert_matches,
    assert_same_bits,
    assert_same_results,
    optioned,
    problem,
    unruly,
)

import softxent as sx

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

import softxent.dask as sxd  # noqa: E402
from softxent._doubles import Sum  # noqa: E402

Chunks = tuple[tuple[int, ...], ...]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def random_chunks(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    if size == 0:
        return (0,)
    cuts = rng.choice(np.arange(1, size), rng.integers(min(size, 4)), replace=False) if size > 1 else []
    return tuple(np.diff([0, *sorted(map(int, cuts)), size]).tolist())


def in_chunks(rng: np.random.Generator, value: Any) -> Any:
    """An array as it is, or in chunks of its own; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(in_chunks(rng, part) for part in value)
    if not isinstance(value, np.ndarray) or value.ndim == 0 or rng.random() < 0.3:
        return value
    return da.from_array(value, chunks=tuple(random_chunks(rng, size) for size in value.shape))


def compute(results: tuple[Any, Any]) -> tuple[Any, Any]:
    computed: tuple[Any, Any] = dask.compute(*results)
    return computed


OPTION_SETS = [(), ("weight",), ("sample_weight",), ("ignore_index",), OPTIONS[:-1], (*OPTIONS[:-2], OPTIONS[-1])]
SHAPES = [((7,), -1), ((30, 9), -1), ((5, 3, 11), 1), ((0, 4), -1)]


def problems(kind: str, names: Sequence[str]) -> Iterator[tuple[str, int, Any, Any, dict[str, Any]]]:
    """A problem of each dtype, of different shapes: dtype, class axis, logits, targets and options."""
    for dtype, (shape, axis) in zip((*FLOATS, *HALVES), SHAPES, strict=True):
        yield dtype, axis % len(shape), *optioned(shape, kind, names, dtype, axis)


@pytest.mark.parametrize("names", OPTION_SETS, ids=", ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_results_are_those_of_numpy_arrays(kind: str, names: Sequence[str]) -> None:
    rng = np.random.default_rng(3)
    for _, class_axis, logits, targets, options in problems(kind, names):
        for reduction in REDUCTIONS:
            arguments = {"targets": targets, "reduction": reduction, **options}
            expected = sx.value_and_grad(logits, **arguments)
            chunks = [random_chunks(rng, size) for size in logits.shape]
            chunked = {name: in_chunks(rng, value) for name, value in arguments.items()}
            loss, grad = compute(sxd.value_and_grad(da.from_array(logits, chunks=tuple(chunks)), **chunked))
            assert_matches(loss, grad, logits, **arguments)
            assert (loss.dtype, grad.dtype) == (np.asarray(expected[0]).dtype, logits.dtype)

            chunks[class_axis] = (logits.shape[class_axis],)
            whole_rows = da.from_array(logits, chunks=tuple(chunks))
            loss, grad = compute(sxd.value_and_grad(whole_rows, **chunked))
            result, whole = dask.compute(sxd.evaluate(whole_rows, **chunked))[0], sx.evaluate(logits, **arguments)
            if kind != "labels" and "weight" in names:  # a sum over classes is in the divisor
                np.testing.assert_allclose(loss, expected[0], rtol=1e-7)
            else:
                assert_same_results((loss, grad), map(np.asarray, expected))
                np.testing.assert_array_equal(result.loss, whole.loss)
            for name in set(whole._fields) - {"loss", "reduction", "normalizer"}:
                assert (getattr(result, name) is None) == (getattr(whole, name) is None)
                if getattr(whole, name) is not None:
                    assert_same_bits(getattr(result, name), getattr(whole, name))
            assert result.normalizer == pytest.approx(whole.normalizer, rel=1e-7)


@pytest.mark.parametrize("options", [(), ("sample_weight",), ("weight",), OPTIONS], ids=", ".join)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_chunks_of_rows_give_the_same_bits(dtype: str, parts: int, options: Sequence[str]) -> None:
    logits, targets, given = optioned((60, 20), "labels", options, dtype)
    whole = sx.value_and_grad(logits, targets, **given)
    results = []
    for size in (1, 7, 60):
        chunked = da.from_array(logits, chunks=(size, -(-20 // parts)))
        results.append(compute(sxd.value_and_grad(chunked, targets, **given)))
        assert_same_results(results[-1], results[0])
    if parts == 1:
        assert_same_results(results[0], (np.array(whole[0]), whole[1]))


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def load(*_: Any) -> np.ndarray:
        pytest.fail("loaded")

    def unloaded(shape: tuple[int, ...], dtype: Any) -> Any:
        return da.from_delayed(dask.delayed(load)(), shape, dtype)

    logits = da.concatenate([unloaded((10, 5), "f4"), unloaded((20, 5), "f4")])
    labels, weights = unloaded((30,), int), unloaded((30,), float)
    loss, grad = sxd.value_and_grad(logits, labels, sample_weight=weights)
    assert (loss.shape, loss.dtype, grad.shape, grad.dtype) == ((), np.float64, (30, 5), np.float32)
    assert grad.chunks == logits.chunks
    assert sxd.softmax(logits).chunks == logits.chunks
    assert sxd.logsumexp(logits).shape == (30,)
    assert sxd.logsumexp(logits, keepdims=True).shape == (30, 1)
    assert sxd.evaluate(logits, labels).argmax.dtype == np.int64
    assert sxd.cross_entropy(logits.rechunk((30, 2)), labels, reduction="none").shape == (30,)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_chunk_is_loaded_once(parts: int) -> None:
    logits, labels = problem((40, 6))
    loaded: list[Any] = []

    def load(block: np.ndarray) -> np.ndarray:
        loaded.append(block.shape)
        return block

    chunked = da.from_array(logits, chunks=(10, 6 // parts)).map_blocks(load, meta=np.empty((0, 0)))
    loss, grad = compute(sxd.value_and_grad(chunked, labels, sample_weight=np.ones(40)))
    assert len(loaded) == 4 * parts
    np.testing.assert_allclose(loss, sx.cross_entropy(logits, labels))
    np.testing.assert_allclose(grad, sx.value_and_grad(logits, labels)[1], rtol=1e-12)


@pytest.mark.parametrize("chunks", [(4, 9), (4, 2), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "where": np.arange(9) % 4 != 1}, {"softcap": 3.0}])
def test_the_softmax_family(chunks: tuple[int, int], options: dict[str, Any]) -> None:
    logits, _ = problem((10, 9), dtype="float32")
    chunked = da.from_array(logits, chunks=chunks)
    for name in ("softmax", "log_softmax", "logsumexp"):
        expected = getattr(sx, name)(logits, **options)
        result = getattr(sxd, name)(chunked, **options)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.compute(), expected, rtol=1e-5, atol=1e-7)
        if chunks[1] == 9:
            assert_same_bits(result.compute(), expected)


def assert_near(result: Any, expected: Any, rtol: float) -> None:
    """Two evaluations, within rounding; what are not numbers of float32 or float64 must be the same."""
    for name, value in expected._asdict().items():
        actual = getattr(result, name)
        if value is None or isinstance(value, str):
            assert actual == value, name
            continue
        assert np.asarray(actual).dtype == np.asarray(value).dtype, name
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(actual, value, rtol, rtol, err_msg=name)
        else:
            np.testing.assert_array_equal(actual, value, err_msg=name)


@pytest.mark.parametrize("names", OPTION_SETS, ids=", ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_evaluate_takes_classes_in_several_chunks(kind: str, names: Sequence[str]) -> None:
    rng = np.random.default_rng(5)
    for dtype, class_axis, logits, targets, options in problems(kind, names):
        chunks = [random_chunks(rng, size) for size in logits.shape]
        chunks[class_axis] = (1, logits.shape[class_axis] - 1)
        for reduction in REDUCTIONS:
            result = sxd.evaluate(da.from_array(logits, chunks=tuple(chunks)), targets, reduction=reduction, **options)
            expected = sx.evaluate(logits, targets, reduction=reduction, **options)
            assert_near(dask.compute(result)[0], expected, 1e-13 if dtype == "float64" else 1e-5)


ROWS_OF_MASK = np.random.default_rng(0).random((187, 6)) < 0.3  # in some rows no class is allowed


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"where": ROWS_OF_MASK}], ids=", ".join)
@pytest.mark.parametrize("kind", ["labels", "soft", None])
def test_evaluate_takes_rows_of_every_kind(kind: str | None, options: dict[str, Any]) -> None:
    """Infinities, NaN and ties, with classes in chunks and without targets."""
    logits, targets = unruly((187, 6), kind or "labels")
    targets = targets if kind else None
    expected = sx.evaluate(logits, targets, **options)
    for width in (1, 5):
        (result,) = dask.compute(sxd.evaluate(da.from_array(logits, chunks=(50, width)), targets, **options))
        assert_near(result, expected, 1e-13)


@pytest.mark.parametrize("of_rows", [-1070, -600, 0, 600, 1019])
@pytest.mark.parametrize("of_classes", [-1000, -600, 0, 600, 1010])
@pytest.mark.parametrize("kind", ["labels", "soft", "pair"])
def test_the_mean_does_not_depend_on_the_size_of_weights(kind: str, of_classes: int, of_rows: int) -> None:
    """The products of both may all be 0 or infinite."""
    logits, targets = problem((12, 5), kind)
    rng = np.random.default_rng(0)
    weight, sample_weight = rng.integers(1, 17, 5).astype(float), rng.integers(1, 17, 12).astype(float)
    expected = sx.value_and_grad(logits, targets, weight=weight, sample_weight=sample_weight)
    weights: Any = {"weight": np.ldexp(weight, of_classes), "sample_weight": np.ldexp(sample_weight, of_rows)}
    for chunks in ((5, 5), (5, 3)):
        chunked = da.from_array(logits, chunks=chunks)
        result = sxd.value_and_grad(chunked, targets, **weights), sxd.evaluate(chunked, targets, **weights).loss
        (loss, grad), evaluated = dask.compute(*result)
        np.testing.assert_allclose((loss, evaluated), expected[0], rtol=1e-13)
        np.testing.assert_allclose(grad, expected[1], rtol=0, atol=1e-13)


FAR_APART: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"an ignored row of {huge:g} beside {small:g}": (
        {"ignore_index": 0, "sample_weight": np.array([huge, *(np.array([1, 2, 3, 1, 7]) * small)])},
        {"sample_weight": np.array([0.0, 1, 2, 3, 1, 7])},
    )
    for huge, small in ((1e300, 1e-22), (1e308, 1e-16), (np.inf, 1.0), (np.nan, 1.0))
} | {
    "an ignored row, and small weights of the other classes": (
        {
            "ignore_index": 0,
            "sample_weight": np.array([1e308, 1, 1, 1, 1, 1]),
            "weight": np.array([1, 1e-20, 1e-20, 1e-20]),
        },
        {"sample_weight": np.array([0.0, 1, 1, 1, 1, 1])},
    ),
    "products of 1": (
        {"weight": np.array([1e-200, 1e200, 1, 1]), "sample_weight": np.array([1e200, 1e-200, 0, 0, 1e-200, 0])},
        {"sample_weight": np.array([1.0, 1, 0, 0, 1, 0])},
    ),
    "products of 1, of numbers near the ends of the range": (
        {"weight": np.array([1e-308, 1e300, 1, 1]), "sample_weight": np.array([1e308, 1e-300, 0, 0, 1e-300, 0])},
        {"sample_weight": np.array([1.0, 1, 0, 0, 1, 0])},
    ),
    "products of 1e-307": (
        {"weight": np.array([1e-250, 1, 1, 1]), "sample_weight": np.array([1e-57, 1e-307, 0, 0, 1e-307, 0])},
        {"sample_weight": np.array([1.0, 1, 0, 0, 1, 0])},
    ),
    "products of 1e307": (
        {"weight": np.array([1e250, 1, 1, 1]), "sample_weight": np.array([1e57, 1e307, 0, 0, 1e307, 0])},
        {"sample_weight": np.array([1.0, 1, 0, 0, 1, 0])},
    ),
    "class weights of 1e308": ({"weight": np.full(4, 1e308)}, {}),
}


@pytest.mark.parametrize("chunks", [(6, 4), (2, 4), (6, 2), (2, 1)])
@pytest.mark.parametrize(("given", "same"), FAR_APART.values(), ids=FAR_APART)
def test_weights_that_are_far_apart(given: dict[str, Any], same: dict[str, Any], chunks: tuple[int, int]) -> None:
    """The mean is that of rows whose weights are the products, near 1."""
    logits, labels = np.random.default_rng(1).normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 2])
    expected = sx.value_and_grad(logits, labels, **same)
    chunked = da.from_array(logits, chunks=chunks)
    loss, grad = compute(sxd.value_and_grad(chunked, labels, **given))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-12, atol=1e-16)


def test_a_sum_that_leaves_the_range_on_its_way() -> None:
    logits, labels = np.random.default_rng(1).normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 2])
    losses = sx.cross_entropy(logits, labels, reduction="none")
    for signs in (np.array([1, 1, -1, -1, 0, 0]), np.full(6, 0.12)):
        weights = signs * 1e308
        expected = sum(int(w) * Fraction(float(loss)) for w, loss in zip(weights, losses, strict=True))
        totals = [
            float(sxd.cross_entropy(da.from_array(logits, chunks=c), labels, reduction="sum", sample_weight=weights))
            for c in ((6, 4), (2, 4), (1, 4), (6, 2))
        ]
        np.testing.assert_allclose(totals, float(expected), rtol=1e-14)
        assert len(set(totals[:3])) == 1


@pytest.mark.parametrize("weights", [[np.inf, 1, 1, 1, 1, 1], [np.nan, 1e308, 1e308, 1e308, 1, 1]])
@pytest.mark.parametrize("weight", [None, np.zeros(4)])
@pytest.mark.parametrize("width", [4, 2])
def test_weights_that_are_no_numbers_give_nan_and_no_warning(width: int, weight: Any, weights: list[float]) -> None:
    chunked = da.from_array(X, chunks=(3, width))
    with np.errstate(all="raise"):
        assert np.isnan(sxd.cross_entropy(chunked, Y, weight=weight, sample_weight=np.array(weights)).compute())
    assert Sum.of(np.array(weights), 2000).shift() == 0


@pytest.mark.parametrize("width", [4, 2])
def test_numbers_out_of_range(width: int) -> None:
    logits, labels = problem((6, 4))
    chunked = da.from_array(logits, chunks=(2, width))
    weights = np.full(6, 1e308)
    total = sxd.cross_entropy(chunked, labels, reduction="sum", sample_weight=weights)
    assert total.compute() == np.inf
    assert dask.compute(sxd.evaluate(chunked, labels, sample_weight=weights).normalizer) == (np.inf,)
    for size in (1e-306, 1e300):
        for given in ({}, {"sample_weight": np.full(6, 0.5)}):
            expected = sx.value_and_grad(logits, labels, normalizer=size, **given)
            result = compute(sxd.value_and_grad(chunked, labels, normalizer=size, **given))
            np.testing.assert_allclose(result[0], expected[0], rtol=1e-13)
            np.testing.assert_allclose(result[1], expected[1], rtol=1e-12)


def unknown(array: Any) -> Any:
    """The same rows in chunks of unknown size."""
    return array[da.from_array(np.ones(array.shape[0], bool), chunks=array.chunks[0])]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("parts", [1, 2])
def test_rows_of_unknown_number(parts: int, kind: str) -> None:
    logits, targets, options = optioned((30, 8), kind, ("sample_weight",))
    expected = sx.value_and_grad(logits, targets), sx.value_and_grad(logits, targets, **options)
    chunked = unknown(da.from_array(logits, chunks=(10, 8 // parts)))
    arrays = targets if isinstance(targets, tuple) else (targets,)
    unknown_targets: Any = tuple(unknown(da.from_array(array, chunks=10)) for array in arrays)
    unknown_targets = unknown_targets if len(arrays) == 2 else unknown_targets[0]
    weights = unknown(da.from_array(options["sample_weight"], chunks=10))
    for (loss, grad), given in zip(expected, ({}, {"sample_weight": weights}), strict=True):
        result = compute(sxd.value_and_grad(chunked, unknown_targets, **given))
        np.testing.assert_allclose(result[0], loss, rtol=1e-13)
        np.testing.assert_allclose(result[1], grad, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("width", [8, 5])
def test_evaluate_takes_rows_of_unknown_number(width: int) -> None:
    logits, labels = problem((30, 8))
    chunked = unknown(da.from_array(logits, chunks=(10, width)))
    for given, targets in ((None, None), (labels, unknown(da.from_array(labels, chunks=10)))):
        assert_near(dask.compute(sxd.evaluate(chunked, targets))[0], sx.evaluate(logits, given), 1e-13)


def test_unknown_sizes_that_cannot_be_used() -> None:
    logits, labels = problem((30, 8))
    chunked = unknown(da.from_array(logits, chunks=(10, 8)))
    with pytest.raises(ValueError, match=r"targets is in memory.*call logits\.compute_chunk_sizes\(\) first"):
        sxd.cross_entropy(chunked, labels)
    with pytest.raises(ValueError, match=r"come in the same number: logits have \(3, 1\) and targets has \(2,\)"):
        sxd.cross_entropy(chunked, unknown(da.from_array(labels, chunks=15)))
    with pytest.raises(ValueError, match="along the class axis, 0, must be known"):
        sxd.cross_entropy(chunked, da.zeros(8, dtype=int), axis=0)
    with pytest.raises(ValueError, match="targets must be class labels"):
        sxd.cross_entropy(chunked, unknown(da.from_array(labels, chunks=(5, 15, 10)))).compute()


def test_empty_chunks() -> None:
    logits, labels = problem((9, 6))
    for chunks in (((0, 4, 0, 5), (6,)), ((9, 0), (0, 2, 0, 4))):
        loss, grad = compute(sxd.value_and_grad(da.from_array(logits, chunks=chunks), labels))
        np.testing.assert_allclose(loss, sx.cross_entropy(logits, labels))
        np.testing.assert_allclose(grad, sx.value_and_grad(logits, labels)[1], rtol=1e-12)
    nothing = da.zeros((0, 4), chunks=(1, 2))
    assert compute(sxd.value_and_grad(nothing, np.zeros(0, int)))[0] == 0
    assert sxd.cross_entropy(da.from_array(logits, chunks=4), labels, normalizer=0).compute() == 0


def test_a_thousand_sums_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(1000, 3)) * 10 ** rng.uniform(-3, 2, (1000, 1))).astype("float32")
    labels = rng.integers(3, size=1000)
    loss = sxd.cross_entropy(da.from_array(logits, chunks=(1, 3)), labels)
    assert loss.compute() == sx.cross_entropy(logits, labels)


def masked(array: np.ndarray) -> np.ndarray:
    return np.ma.masked_array(array, array > 1)


def test_masked_arrays_are_refused() -> None:
    logits, labels = problem((10, 4))
    chunked = da.from_array(logits, chunks=5)
    with pytest.raises(TypeError, match="logits must not be a masked array"):
        sxd.cross_entropy(chunked.map_blocks(masked), labels)
    hidden = chunked.map_blocks(masked, meta=np.empty((0, 0)))
    for x in (hidden, hidden.rechunk((5, 2))):
        with pytest.raises(TypeError, match="must not be a masked array") as caught:
            sxd.cross_entropy(x, labels).compute()
        assert "one chunk of a Dask array" in caught.value.__notes__[0]


X, Y = problem((6, 4))
D = da.from_array(X, chunks=3)
EARLY: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sxd.cross_entropy(X, Y), TypeError, "logits must be a Dask array, got ndarray"),
    (lambda: sxd.cross_entropy(D, Y[:5]), ValueError, r"targets must be class labels of shape \(6,\)"),
    (lambda: sxd.cross_entropy(D, da.from_array(Y[:5], chunks=2)), ValueError, r"got shape \(5,\)"),
    (lambda: sxd.cross_entropy(D, da.zeros(6)), TypeError, "must be integers, got dtype float64"),
    (lambda: sxd.cross_entropy(D.astype(complex), Y), TypeError, "logits must be float16.*complex128"),
    (lambda: sxd.cross_entropy(D, Y, axis=2), ValueError, "axis must be in"),
    (lambda: sxd.cross_entropy(D, Y, reduction="all"), ValueError, "reduction must be"),
    (lambda: sxd.cross_entropy(D, Y, label_smooting=0.1), TypeError, "did you mean 'label_smoothing'"),
    (lambda: sxd.cross_entropy(D, Y, label_smoothing=2), ValueError, "label_smoothing must be a share"),
    (lambda: sxd.cross_entropy(D, Y, n_threads=0), ValueError, "n_threads must be at least 1"),
    (lambda: sxd.cross_entropy(D, Y, weight=np.ones(6)), ValueError, "weight must have one number for each class"),
    (lambda: sxd.cross_entropy(D, Y, sample_weight=da.ones(4)), ValueError, "sample_weight must have one number"),
    (lambda: sxd.cross_entropy(D, Y, where=np.ones(4)), TypeError, "where must be bool"),
    (lambda: sxd.cross_entropy(D, (Y, X)), ValueError, "targets cannot be read"),
    (lambda: sxd.cross_entropy(D, [D, D]), TypeError, "targets must be one array, or a tuple"),
    (lambda: sxd.cross_entropy(D, (D.astype(int), X), ignore_index=3), ValueError, "ignore_index needs class labels"),
    (lambda: sxd.evaluate(D, label_smoothing=0.1), ValueError, "label_smoothing needs targets"),
    (lambda: sxd.softmax(D, z_loss=1.0), TypeError, "z_loss changes a loss"),
    (lambda: sx.cross_entropy(D, Y), TypeError, "softxent.dask has the functions for Dask arrays"),
]


@pytest.mark.parametrize(("call", "error", "message"), EARLY, ids=[message for *_, message in EARLY])
def test_what_is_refused_at_once(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("parts", [1, 2])
def test_labels_that_are_no_class(parts: int) -> None:
    loss = sxd.cross_entropy(da.from_array(X, chunks=(3, 4 // parts)), Y + 4)
    with pytest.raises(ValueError, match=re.escape("is not a class: expected 0 <= label < 4")):
        loss.compute()


def test_a_task_uses_one_thread_and_knows_no_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    visit = sxd._loss.visit

    def spy(*arguments: Any, **others: Any) -> Any:
        used.append(arguments[5])
        return visit(*arguments, **others)

    monkeypatch.setattr(sxd._loss, "visit", spy)
    sxd.cross_entropy(D.rechunk((3, 4)), Y).compute()
    sxd.cross_entropy(D.rechunk((6, 4)), Y, n_threads=3).compute()
    assert used == [1, 1, 3]
    graph = sxd.cross_entropy(da.zeros((10**6, 1000), chunks=(10**5, 1000)), da.zeros(10**6, dtype=int, chunks=10**5))
    assert len(pickle.dumps(dict(graph.dask))) < 100_000


MEBIBYTES = 220  # of each worker


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of two workers, each a process."""
    distributed = pytest.importorskip("distributed")
    limit = f"{MEBIBYTES}MiB"
    settings = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": limit, "dashboard_address": None}
    with distributed.LocalCluster(processes=True, **settings) as cluster, distributed.Client(cluster) as client:
        yield client


def peak_mebibytes() -> float:
    """Of this process. What getrusage tells may be the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def made(block_info: Any = None) -> np.ndarray:
    """Logits of a chunk, from where it is."""
    (start, stop), (first, last) = block_info[None]["array-location"]
    rows, classes = np.arange(start, stop, dtype=np.float32), np.arange(first, last, dtype=np.float32)
    return np.sin(rows)[:, None] + np.cos(classes)


def larger(mebibytes: int) -> tuple[Any, Any]:
    """Logits of this size that nobody holds, and labels."""
    n_classes, step = 1000, 2000
    n_chunks = mebibytes * 2**20 // (4 * n_classes * step) + 1
    chunks = ((step,) * n_chunks, (n_classes,))
    logits = da.map_blocks(made, chunks=chunks, dtype="float32", meta=np.empty((0, 0), "float32"))
    return logits, da.arange(n_chunks * step, chunks=step) % n_classes


@pytest.mark.filterwarnings("ignore")  # of workers that come and go
class TestCluster:
    @pytest.mark.parametrize("chunks", [(70, 30), (70, 11)])
    @pytest.mark.parametrize("names", [(), OPTIONS], ids=["plain", "all options"])
    def test_results_are_those_of_numpy_arrays(
        self, client: Any, names: Sequence[str], chunks: tuple[int, int]
    ) -> None:
        with dask.config.set(scheduler=client):
            for dtype in ("float32", "bfloat16"):
                logits, labels, options = optioned((300, 30), "labels", names, dtype)
                chunked = da.from_array(logits, chunks=chunks)
                loss, grad = compute(sxd.value_and_grad(chunked, labels, **options))
                assert_matches(loss, grad, logits, labels, **options)
                if chunks[1] == 30:
                    expected = sx.value_and_grad(logits, labels, **options)
                    assert_same_results((loss, grad), (np.array(expected[0]), expected[1]))

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak there")
    def test_arrays_larger_than_memory(self, client: Any) -> None:
        logits, labels = larger(4 * MEBIBYTES)
        assert logits.nbytes >= 4 * MEBIBYTES * 2**20
        loss, grad = sxd.value_and_grad(logits, labels)
        with dask.config.set(scheduler=client):
            computed = dask.compute(loss, grad.sum())
        assert abs(computed[1]) < 1e-3 < computed[0]
        assert max(client.run(peak_mebibytes).values()) < MEBIBYTES

    def test_a_worker_that_is_killed_loses_nothing(self, client: Any) -> None:
        logits, labels = larger(100)
        loss = sxd.cross_entropy(logits, labels)
        future = client.compute(loss)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert future.result(timeout=120) == loss.compute()


def test_every_function_has_an_example() -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(sxd) if test.examples]
    assert {test.name for test in tests} == {f"softxent.dask.{name}" for name in sxd.__all__}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
