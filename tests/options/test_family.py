"""The softmax family and the second derivative: what each option means, any array, and the same bits in every way."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import transformed
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    OPTIONS,
    assert_same_bits,
    central_differences,
    computed_in,
    optioned,
    problem,
    rounded,
)

import softxent as sx

pytestmark = [pytest.mark.usefixtures("level", "several_threads")]

DTYPES = FLOATS + HALVES
# The narrow kernel, the wide one and the middle one, along the last axis and along another one, few rows, and rows that
# threads share.
SHAPES = [
    ((37, 10), -1),
    ((3, 11, 9), 1),
    ((5, 300), -1),
    ((3, 700), 0),
    ((1, 17_000), -1),
    ((7,), 0),
    ((70, 64), -1),
    ((40, 700), 0),
    ((35, 200), -1),
]
OF_LOGITS = ("temperature", "softcap", "where")
COMBINATIONS = [(), *((name,) for name in (*OF_LOGITS, "where by row")), OF_LOGITS]
SECOND = tuple(name for name in OPTIONS if name not in ("softcap", "where by row"))
of_shapes = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
of_dtypes = pytest.mark.parametrize("dtype", DTYPES)
of_combinations = pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: " + ".join(names) or "nothing")

Function = Callable[..., np.ndarray]


def vectors_for(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.random.default_rng(logits.shape).normal(size=logits.shape)).astype(logits.dtype)


def arguments(
    shape: tuple[int, ...], dtype: str, axis: int, names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    logits, _, options = optioned(shape, "labels", names, dtype, axis)
    return logits, vectors_for(logits), options


FAMILY: dict[str, Callable[..., Any]] = {
    "softmax": lambda x, v, **options: sx.softmax(x, **options),
    "log_softmax": lambda x, v, **options: sx.log_softmax(x, **options),
    "softmax_vjp": sx.softmax_vjp,
    "log_softmax_vjp": sx.log_softmax_vjp,
}


def truth(logits: np.ndarray, vectors: np.ndarray, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """All of them in float64, with what bounds their errors: the largest terms."""
    axis = options["axis"]
    x, v = (np.moveaxis(array.astype(np.float64), axis, -1) for array in (logits, vectors))
    where = np.asarray(options.get("where", True))
    where = np.broadcast_to(np.moveaxis(where, axis, -1) if where.ndim == x.ndim else where, x.shape)
    z, slope = transformed(x, options.get("temperature", 1.0), options.get("softcap"), where)
    m = z.max(axis=-1, keepdims=True)
    log_p = z - m - np.log(np.exp(z - m).sum(axis=-1, keepdims=True))
    p, u = np.exp(log_p), np.where(where, v, 0)
    results = {
        "softmax": p,
        "log_softmax": log_p,
        "logsumexp": (m + np.log(np.exp(z - m).sum(axis=-1, keepdims=True))),
        "softmax_vjp": np.where(where, slope * p * (u - (p * u).sum(axis=-1, keepdims=True)), 0),
        "log_softmax_vjp": np.where(where, slope * (u - p * u.sum(axis=-1, keepdims=True)), 0),
    }
    return {name: np.moveaxis(result, -1, axis) for name, result in results.items()}


@of_combinations
@of_shapes
@of_dtypes
def test_values(dtype: str, shape: tuple[int, ...], axis: int, names: tuple[str, ...]) -> None:
    logits, vectors, options = arguments(shape, dtype, axis, names)
    true = truth(logits, vectors, options)
    number = computed_in(logits)
    reach = 8 * float(np.finfo(number).eps) * (40 + np.log(shape[-1]))
    half = 0.0 if dtype in FLOATS else {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for name, function in FAMILY.items():
        result = function(logits, vectors, **options)
        assert (result.dtype, result.shape) == (logits.dtype, logits.shape)
        size = np.where(np.isfinite(true[name]), np.abs(true[name]), 0)
        size = size + (np.abs(true["softmax"]) * 40 if name.endswith("vjp") else 0)
        sums = np.abs(vectors.astype(float)).sum(axis=axis, keepdims=True) if name == "log_softmax_vjp" else 1
        with np.errstate(invalid="ignore"):
            error = np.abs(result.astype(np.float64) - true[name])
        error = np.where(np.isneginf(true[name]) & np.isneginf(result), 0, error)
        assert np.all(
            error <= (reach * sums + half) * size + reach * (name == "log_softmax_vjp") + 1e-7 * bool(half) + 1e-15
        )
    lse = sx.logsumexp(logits, **options)
    kept = sx.logsumexp(logits, keepdims=True, **options)
    assert (lse.dtype, kept.dtype) == (number, number)
    assert kept.shape == tuple(1 if i == axis % logits.ndim else n for i, n in enumerate(logits.shape))
    np.testing.assert_array_equal(kept.reshape(lse.shape), lse)
    np.testing.assert_allclose(kept, true["logsumexp"], rtol=reach, atol=reach)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 6), (40, 6), (2, 300), (40, 300)], ids=str)
def test_huge_cotangents_in_their_own_place(shape: tuple[int, int], masked: bool) -> None:
    """Their sum is in no double's range, so the product is made in two steps, the second of which needs them too."""
    logits = np.random.default_rng(0).normal(size=shape) / 10
    cotangents = np.full(shape, 0.9e308)
    cotangents[:, ::3] *= -0.3
    options = {"where": np.arange(shape[1]) % 5 != 4} if masked else {}
    allowed = np.broadcast_to(options.get("where", True), shape)
    p, u = sx.softmax(logits, **options), np.where(allowed, cotangents / 1e300, 0)
    expected = np.where(allowed, u - p * u.sum(axis=1, keepdims=True), 0)
    for function in (sx.softmax_vjp, sx.log_softmax_vjp):
        over = cotangents.copy()
        assert_same_bits(function(logits, over, out=over, **options), function(logits, cotangents, **options))
    np.testing.assert_allclose(over / 1e300, expected, rtol=1e-14)


@of_shapes
@of_dtypes
def test_every_way_has_the_same_bits(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    """Threads, rows by themselves, in place of each input, and given arrays of other layouts and dtypes."""
    for names in COMBINATIONS:
        logits, vectors, options = arguments(shape, dtype, axis, names)
        for name, function in FAMILY.items():
            result = function(logits, vectors, **options)
            assert_same_bits(function(logits, vectors, n_threads=2, **options), result)
            x = logits.copy()
            assert function(x, vectors, out=x, **options) is x
            assert_same_bits(x, result)
            if name.endswith("vjp"):
                v = vectors.copy()
                assert function(logits, v, out=v, **options) is v
                assert_same_bits(v, result)
                both = logits.copy()
                assert_same_bits(function(both, both, out=both, **options), function(logits, logits, **options))
            order = np.empty(logits.shape, logits.dtype, order="F")
            assert_same_bits(function(np.asfortranarray(logits), vectors, out=order, **options), result)
            if dtype == "float64":
                narrower = np.empty(logits.shape, np.float32)
                assert_same_bits(function(logits, vectors, out=narrower, **options), rounded(result, narrower.dtype))
        lse = sx.logsumexp(logits, **options)
        assert_same_bits(sx.logsumexp(logits, n_threads=2, **options), lse)


@of_dtypes
@pytest.mark.parametrize("n_classes", [3, 10, 33, 64, 130])
def test_both_kernels(dtype: str, n_classes: int) -> None:
    """So few rows that the wide kernel takes them, and the same rows among others."""
    logits, labels = problem((40, n_classes), dtype=dtype)
    logits[::3] *= 30
    vectors = vectors_for(logits)
    functions: dict[str, Callable[..., Any]] = {
        **FAMILY,
        "logsumexp": lambda x, v: sx.logsumexp(x),
        "hvp": lambda x, v: sx.hvp(x, labels[: len(x)], v, reduction="sum"),
        "hvp of probs": lambda x, v: sx.hvp(None, labels[: len(x)], v, probs=sx.softmax(x), reduction="sum"),
        "hess": lambda x, v: sx.value_grad_and_hess(x, labels[: len(x)], reduction="sum")[2],
    }
    for function in functions.values():
        among_others = function(logits, vectors)
        assert_same_bits(function(logits[:3], vectors[:3]), among_others[:3])


@pytest.mark.parametrize("n_classes", [3, 70, 300])
@pytest.mark.parametrize("n_rows", [1, 40])
def test_infinities_and_nan(n_rows: int, n_classes: int) -> None:
    inf, nan = np.inf, np.nan
    for dtype in FLOATS:
        for first, lse in (
            ([0, inf], inf),
            ([-inf, -inf], -inf),
            ([inf, -inf], inf),
            ([nan, 0], nan),
            ([-inf, nan], nan),
            ([inf, nan], nan),
        ):
            logits = np.full((n_rows, n_classes), -inf, dtype)
            logits[:, :2] = first
            assert np.isnan(sx.softmax(logits)).all()
            assert np.isnan(sx.log_softmax(logits)).all()
            np.testing.assert_array_equal(sx.logsumexp(logits), lse)
        logits = np.full((n_rows, n_classes), -inf, dtype)
        logits[:, 1] = 3
        np.testing.assert_array_equal(sx.softmax(logits), np.arange(n_classes)[None] == [[1]] * n_rows)
        np.testing.assert_array_equal(sx.log_softmax(logits)[:, :2], [[-inf, 0]] * n_rows)
        np.testing.assert_array_equal(sx.logsumexp(logits), 3)


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("n_rows", [1, 40])
def test_classes_that_are_not_allowed(n_rows: int, n_classes: int) -> None:
    """Nothing is read of them, and a row without any other class has the log-sum-exp -inf."""
    logits, _ = problem((n_rows, n_classes))
    where = np.arange(n_classes) != 1
    for value in (np.nan, np.inf, 1e300):
        x, v = logits.copy(), vectors_for(logits)
        expected = [function(x, v, where=where) for function in FAMILY.values()]
        x[:, 1] = v[:, 1] = value
        for function, result in zip(FAMILY.values(), expected, strict=True):
            np.testing.assert_allclose(function(x, v, where=where), result, rtol=1e-13)
        assert np.isfinite(sx.logsumexp(x, where=where)).all()
    assert not expected[0][:, 1].any()
    assert np.isneginf(expected[1][:, 1]).all()
    nowhere = np.zeros(n_classes, bool)
    assert not sx.softmax(logits, where=nowhere).any()
    assert np.isneginf(sx.log_softmax(logits, where=nowhere)).all()
    assert np.isneginf(sx.logsumexp(logits, where=nowhere)).all()


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("n_rows", [1, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_classes_that_are_not_allowed_beside_a_nan(value: float, n_rows: int, n_classes: int) -> None:
    """Their results are 0, as without it; all others of the row are NaN."""
    logits, labels = problem((n_rows, n_classes))
    logits[:, 0] = value
    where, v = np.arange(n_classes) != 1, vectors_for(logits)
    _, grad, hess = sx.value_grad_and_hess(logits, np.full_like(labels, 2), where=where)
    product = sx.hvp(logits, np.full_like(labels, 2), v, where=where)
    for result in (grad, hess, product, sx.softmax(logits, where=where), sx.softmax_vjp(logits, v, where=where)):
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(where, logits.shape))
        assert not result[:, 1].any()


def test_a_temperature_that_takes_logits_out_of_range() -> None:
    """The results are those of the formula in exact arithmetic, in both kernels."""
    for dtype, unit in (("float32", 2.0**127), ("float64", 2.0**1023)):
        row = np.array([1.5, 1.5, 1.25, -1.5]) * unit
        for n_rows in (1, 40):
            logits = np.tile(row.astype(dtype), (n_rows, 1))
            for x in (logits, np.asfortranarray(logits)):
                np.testing.assert_array_equal(sx.softmax(x, temperature=0.5), [[0.5, 0.5, 0, 0]] * n_rows)
                log_p = sx.log_softmax(x, temperature=0.5)
                np.testing.assert_allclose(log_p[:, :2], -np.log(2), rtol=1e-6)
                np.testing.assert_array_equal(log_p[:, 2:], [[dtype_of(-0.5 * unit, dtype), -np.inf]] * n_rows)
                np.testing.assert_array_equal(sx.logsumexp(x, temperature=0.5), np.inf)
                np.testing.assert_array_equal(sx.log_softmax(x, temperature=0.5, out=x.copy()), log_p)


def dtype_of(value: float, dtype: str) -> Any:
    return np.dtype(dtype).type(value)


@of_dtypes
@pytest.mark.parametrize("n_classes", [3, 64, 300])
def test_a_constant_vector_gives_zeros(dtype: str, n_classes: int) -> None:
    logits, labels = problem((20, n_classes), dtype=dtype)
    for value in (0, 1, -7, 1 / 3, 100):
        vectors = np.full(logits.shape, value, dtype)
        assert not sx.softmax_vjp(logits, vectors).any()
        assert not sx.hvp(logits, labels, vectors).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_rows", [1, 20])
def test_products_of_confident_rows_keep_their_digits(dtype: str, n_rows: int) -> None:
    logits = np.tile(np.array([0, -30, -40], dtype), (n_rows, 1))
    vectors = np.tile(np.array([1, 2, 0], dtype), (n_rows, 1))
    b, c = np.exp([-30.0, -40.0]) / (1 + np.exp([-30.0, -40.0]).sum())
    shift = b - c  # <p, v> - v_0
    expected = [-(1 - b - c) * shift, b * (1 - shift), c * (-1 - shift)]
    for product in (sx.softmax_vjp(logits, vectors), sx.hvp(logits, np.zeros(n_rows, int), vectors, reduction="sum")):
        np.testing.assert_allclose(product, [expected] * n_rows, rtol=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("n_classes", [3, 300])
def test_vectors_of_any_size(n_classes: int) -> None:
    """Sums of products that are too large for the type are added in double."""
    for dtype, large in (("float32", 1e37), ("float32", 1e-30), ("float64", 1e200), ("float64", 1e-280)):
        logits, labels = problem((20, n_classes), dtype=dtype)
        vectors = vectors_for(logits)
        unit = dtype_of(2.0 ** np.round(np.log2(large)), dtype)
        for n_rows in (2, 20):
            x, v, y = logits[:n_rows], vectors[:n_rows], labels[:n_rows]
            expected = sx.softmax_vjp(x.astype(float), v.astype(float)) * float(unit)
            np.testing.assert_allclose(sx.softmax_vjp(x, v * unit), expected, rtol=1e-4)
            np.testing.assert_allclose(sx.hvp(x, y, v * unit, reduction="sum"), expected, rtol=1e-4)


def hessian_of(logits: np.ndarray, targets: Any, options: dict[str, Any], reduction: str) -> np.ndarray:
    """The whole (C, C) block of each row, from differences of the gradient, good to about 1e-8."""
    n_classes = logits.shape[-1]
    blocks = np.empty((*logits.shape, n_classes))
    for c in range(n_classes):
        step = np.zeros(n_classes)
        step[c] = 1e-5
        high, low = (
            sx.value_and_grad(x, targets, reduction=reduction, **options)[1] for x in (logits + step, logits - step)
        )
        blocks[..., c] = (high - low) / 2e-5
    return blocks


@pytest.mark.parametrize("names", [(), *((name,) for name in SECOND), SECOND], ids=lambda n: " + ".join(n) or "nothing")
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", [(20, 6), (2, 70)], ids=str)
def test_the_second_derivative(shape: tuple[int, ...], kind: str, names: tuple[str, ...]) -> None:
    logits, targets, options = optioned(shape, kind, names)
    vectors = vectors_for(logits)
    del options["axis"]
    for reduction in ("mean", "sum", "none"):
        blocks = hessian_of(logits, targets, options, reduction)
        loss, grad, hess = sx.value_grad_and_hess(logits, targets, reduction=reduction, **options)
        same_loss, same_grad = sx.value_and_grad(logits, targets, reduction=reduction, **options)
        assert_same_bits(loss, same_loss)
        assert_same_bits(grad, same_grad)
        diagonal = np.einsum("...ii->...i", blocks)
        np.testing.assert_allclose(hess, diagonal, rtol=1e-6, atol=1e-8 * np.abs(blocks).max())
        product = np.einsum("...ij,...j->...i", blocks, vectors)
        actual = sx.hvp(logits, targets, vectors, reduction=reduction, **options)
        np.testing.assert_allclose(actual, product, rtol=1e-6, atol=1e-7 * np.abs(blocks).max())
        if "z_loss" not in names:
            probs = sx.softmax(logits, **{name: options[name] for name in ("temperature", "where") if name in options})
            kept = sx.hvp(None, targets, vectors, probs=probs, reduction=reduction, **options)
            np.testing.assert_allclose(kept, actual, rtol=1e-12, atol=1e-15 * np.abs(actual).max())


@pytest.mark.parametrize("shape", [(20, 6), (2, 70)], ids=str)
@pytest.mark.parametrize("names", [(), SECOND], ids=["plain", "options"])
def test_a_factor_of_the_hessian_alone(shape: tuple[int, int], names: tuple[str, ...]) -> None:
    logits, targets, options = optioned(shape, "labels", names)
    loss, grad, hess = sx.value_grad_and_hess(logits, targets, **options)
    for factor in (2, 10 / 9, 1e-300, 1e300):
        same_loss, same_grad, scaled = sx.value_grad_and_hess(logits, targets, hess_factor=factor, **options)
        assert_same_bits(same_loss, loss)
        assert_same_bits(same_grad, grad)
        np.testing.assert_allclose(scaled / factor, hess, rtol=1e-15)
    out = (np.empty(shape, np.float32), np.empty(shape, np.float32))
    sx.value_grad_and_hess(logits, targets, hess_factor=10 / 9, out=out, **options)
    np.testing.assert_allclose(out[1], 10 / 9 * hess, rtol=6e-8)  # rounded once
    assert_same_bits(sx.value_grad_and_hess(logits, targets, hess_factor=np.float32(1), **options)[2], hess)


@of_shapes
@of_dtypes
def test_every_way_to_a_hessian(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    for kind in ALL_KINDS:
        for names in ((), SECOND):
            logits, targets, options = optioned(shape, kind, names, dtype, axis)
            vectors = vectors_for(logits)
            _, grad, hess = sx.value_grad_and_hess(logits, targets, **options)
            product = sx.hvp(logits, targets, vectors, **options)
            assert (hess.dtype, hess.shape, product.dtype) == (logits.dtype, logits.shape, logits.dtype)
            assert_same_bits(sx.value_grad_and_hess(logits, targets, n_threads=2, **options)[2], hess)
            assert_same_bits(sx.hvp(logits, targets, vectors, n_threads=2, **options), product)
            for place in (0, 1):
                x = logits.copy()
                other = np.empty(logits.shape, logits.dtype, order="F")
                out = (x, other) if place == 0 else (other, x)
                returned = sx.value_grad_and_hess(x, targets, out=out, **options)
                assert returned[1] is out[0]
                assert returned[2] is out[1]
                assert_same_bits(returned[1], grad)
                assert_same_bits(returned[2], hess)
            for argument in ("logits", "vectors"):
                given = {"logits": logits.copy(), "vectors": vectors.copy()}
                result = sx.hvp(given["logits"], targets, given["vectors"], out=given[argument], **options)
                assert result is given[argument]
                assert_same_bits(result, product)
            if "z_loss" not in names:
                probs = sx.softmax(logits, axis=axis)
                kept = sx.hvp(None, targets, vectors, probs=probs, **options)
                copies = probs.copy(), vectors.copy()
                assert_same_bits(sx.hvp(None, targets, vectors, probs=copies[0], out=copies[0], **options), kept)
                assert_same_bits(sx.hvp(None, targets, copies[1], probs=probs, out=copies[1], **options), kept)
            if dtype == "float64":
                pair = np.empty(logits.shape, np.float32, order="F"), np.empty(logits.shape, np.float32, order="F")
                sx.value_grad_and_hess(logits, targets, out=pair, **options)
                assert_same_bits(pair[0], rounded(grad, pair[0].dtype))
                assert_same_bits(pair[1], rounded(hess, pair[1].dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 10), (40, 70), (3, 300)], ids=str)
def test_kinds_of_one_target_have_one_hessian(shape: tuple[int, int], dtype: str) -> None:
    """Also of confident rows that are wrong."""
    logits, labels = problem(shape, dtype=dtype)
    logits[::2] *= 10
    logits[1] = 0
    logits[1, 0], labels[1] = 60, 1
    one = np.ones((shape[0], 1), dtype)
    hess = sx.value_grad_and_hess(logits, labels)[2]
    for other in ((np.arange(shape[1]) == labels[:, None]).astype(dtype), (labels[:, None], one)):
        assert_same_bits(sx.value_grad_and_hess(logits, other)[2], hess)
    rest = (shape[1] - 1) * np.exp(-60.0)
    assert hess[1, 0] * shape[0] == pytest.approx(rest, rel=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("n_classes", [5, 300])
def test_scales_of_any_size(n_classes: int) -> None:
    """Weights, temperatures and normalizers whose second derivatives only a wider exponent holds on the way."""
    logits, labels = problem((20, n_classes), dtype="float32")
    vectors = vectors_for(logits)
    hess = sx.value_grad_and_hess(logits, labels, reduction="sum")[2].astype(float)
    product = sx.hvp(logits, labels, vectors, reduction="sum").astype(float)
    for factor, options in (
        (2.0**-100, {"normalizer": 2.0**100}),
        (2.0**100, {"normalizer": 2.0**-100}),
        (2.0**-130, {"normalizer": 2.0**130}),
        (2.0**-120, {"sample_weight": np.full(20, 2.0**-120), "reduction": "sum"}),
        (2.0**120, {"sample_weight": np.full(20, 2.0**120), "reduction": "sum"}),
    ):
        with np.errstate(under="ignore"):
            scaled, times = (hess * factor).astype(np.float32), (product * factor).astype(np.float32)
        actual, result = (
            sx.value_grad_and_hess(logits, labels, **options)[2],
            sx.hvp(logits, labels, vectors, **options),
        )
        np.testing.assert_allclose(actual, scaled, rtol=1e-6, atol=2e-45)
        np.testing.assert_allclose(result, times, rtol=1e-6, atol=1e-44)  # a subnormal probability times v - v_a
    for exponent in (-50, 40):
        temperature = 2.0**exponent
        x = (logits * np.float32(temperature)).astype(np.float32)
        scaled = (hess / temperature**2).astype(np.float32)
        actual = sx.value_grad_and_hess(x, labels, temperature=temperature, reduction="sum")[2]
        np.testing.assert_allclose(actual, scaled, rtol=1e-6)


def test_rows_that_do_not_count() -> None:
    for n_classes in (3, 300):
        logits, labels = problem((20, n_classes))
        logits[::2], labels[::2] = np.nan, -1
        vectors = vectors_for(logits)
        vectors[::2] = np.nan
        hess = sx.value_grad_and_hess(logits, labels, ignore_index=-1)[2]
        product = sx.hvp(logits, labels, vectors, ignore_index=-1)
        for result in (hess, product):
            assert not result[::2].any()
            assert np.isfinite(result).all()
        assert not sx.value_grad_and_hess(logits, np.full(20, -1), ignore_index=-1)[2].any()
        assert not sx.hvp(logits, np.full(20, -1), vectors, ignore_index=-1).any()


def test_vjps_are_derivatives() -> None:
    logits, vectors, options = arguments((5,), "float64", 0, ("temperature", "softcap"))
    for name in ("softmax", "log_softmax"):
        differences = central_differences(
            lambda x, name=name: float(FAMILY[name](x, vectors, **options) @ vectors), logits
        )
        np.testing.assert_allclose(FAMILY[f"{name}_vjp"](logits, vectors, **options), differences, atol=1e-8)


def test_the_chain_gives_the_gradient() -> None:
    """-y / p through the softmax's Jacobian is p - y; the gradient is minus the product of the log-softmax's."""
    logits, labels = problem((20, 7))
    _, grad = sx.value_and_grad(logits, labels, reduction="sum")
    y = (np.arange(7) == labels[:, None]).astype(float)
    np.testing.assert_allclose(sx.softmax_vjp(logits, -y / sx.softmax(logits)), grad, atol=1e-14)
    np.testing.assert_array_equal(sx.log_softmax_vjp(logits, -y), grad)


@pytest.mark.parametrize("name", FAMILY)
def test_overlapping_arrays(name: str) -> None:
    memory = np.random.default_rng(0).normal(size=(41, 10))
    for out in (slice(1, 41), slice(0, 40)):
        x = memory.copy()
        expected = FAMILY[name](x[:40].copy(), x[:40].copy() + 1)
        np.testing.assert_array_equal(FAMILY[name](x[:40], x[:40] + 1, out=x[out]), expected)


def test_no_rows() -> None:
    for shape in ((0, 3), (2, 0, 5)):
        x = np.zeros(shape, np.float32)
        for function in FAMILY.values():
            assert function(x, x).shape == shape
        assert sx.logsumexp(x).shape == shape[:-1]
        loss, grad, hess = sx.value_grad_and_hess(x, np.zeros(shape[:-1], int))
        assert (loss, grad.shape, hess.shape) == (0.0, shape, shape)
        assert sx.hvp(x, np.zeros(shape[:-1], int), x).shape == shape


def test_lists_and_integers() -> None:
    np.testing.assert_allclose(sx.softmax([0, 0]), [0.5, 0.5])
    np.testing.assert_allclose(sx.softmax_vjp([[1, 1]], [[True, False]]), [[0.25, -0.25]])
    np.testing.assert_allclose(sx.hvp([0, 0], 1, [2, 0]), [0.5, -0.5])
    assert sx.softmax(np.array([1, 2], np.int8)).dtype == np.float64


REFUSED: list[tuple[Function, dict[str, Any], type[Exception], str]] = [
    (sx.softmax, {"weight": [1, 2]}, TypeError,
     "weight changes a loss, and there is none: the options here are temperature, softcap, where"),
    (sx.logsumexp, {"temperatur_": 2}, TypeError,
     "got an unexpected keyword argument 'temperatur_'; did you mean 'temperature'?"),
    (sx.log_softmax, {"out": np.zeros((3, 2))}, ValueError,
     "out must have the shape of the logits, (2, 3), got (3, 2)"),
    (sx.softmax, {"logits": None}, TypeError, "logits must be an array of numbers, got NoneType"),
    (sx.softmax, {"axis": 2}, ValueError, "axis must be in [-2, 2) for logits of shape (2, 3), got 2"),
    (sx.softmax_vjp, {"cotangent": None}, TypeError, "cotangent must be an array of numbers, got NoneType"),
    (sx.log_softmax_vjp, {"cotangent": None}, TypeError, "cotangent must be an array of numbers, got NoneType"),
    (sx.softmax_vjp, {"cotangent": np.zeros(3)}, ValueError,
     "cotangent must have the shape of the logits, (2, 3), got (3,)"),
    (sx.log_softmax_vjp, {"cotangent": np.zeros((2, 3), complex)}, TypeError,
     "cotangent must be real numbers, got dtype complex128"),
    (sx.hvp, {"vectors": np.zeros((2, 2))}, ValueError,
     "vectors must have the shape of the logits, (2, 3), got (2, 2)"),
    (sx.hvp, {"vectors": None}, TypeError, "vectors must be an array of numbers, got NoneType"),
    (sx.hvp, {"targets": None}, TypeError, "targets must be an array of numbers, got NoneType"),
    (sx.hvp, {"softcap": 3}, ValueError,
     "softcap has no second derivative here: leave it out, or take differences of gradients"),
    (sx.hvp, {"probs": np.zeros((2, 3)), "z_loss": 0.1}, ValueError, "z_loss needs the logits, got it with probs"),
    (sx.hvp, {"probs": np.zeros((2, 3), complex)}, TypeError,
     "probs must be float16, bfloat16, float32 or float64, integers or bool, got dtype complex128"),
    (sx.value_grad_and_hess, {"softcap": 3}, ValueError,
     "softcap has no second derivative here: leave it out, or take differences of gradients"),
    (sx.value_grad_and_hess, {"hess_factor": 0}, ValueError, "hess_factor must be finite and positive, got 0"),
    (sx.value_grad_and_hess, {"hess_factor": np.ones(2)}, TypeError, "hess_factor must be a number, got ndarray"),
    (sx.value_grad_and_hess, {"out": np.zeros((2, 3))}, TypeError,
     "out must be a tuple of two arrays, (grad, hess), got ndarray"),
    (sx.value_grad_and_hess, {"out": (np.zeros((2, 3)), np.zeros(3))}, ValueError,
     "out[1] must have the shape of the logits, (2, 3), got (3,)"),
    (sx.value_grad_and_hess, {"out": (np.zeros((2, 3), int), np.zeros(3))}, TypeError,
     "out[0] must be float16, bfloat16, float32 or float64, got dtype int64"),
    (sx.value_grad_and_hess, {"out": (np.zeros((2, 3)),) * 2}, ValueError,
     "out must be two arrays that do not overlap each other"),
    (sx.value_grad_and_hess, {"targets": [0, 3]}, ValueError,
     "targets[1] = 3 is not a class: expected 0 <= label < 3"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "wrong", "error", "message"), REFUSED, ids=lambda value: None)
def test_refusals(function: Function, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    """Word for word, and nothing has been written."""
    given: dict[str, Any] = {"logits": np.zeros((2, 3)), "targets": [0, 1]}
    given |= {"cotangent": np.ones((2, 3)), "vectors": np.ones((2, 3)), "out": np.full((2, 3), 7.0)}
    if function is sx.value_grad_and_hess:
        given["out"] = (np.full((2, 3), 7.0), np.full((2, 3), 7.0))
    out = given["out"]
    given = {
        **{name: value for name, value in given.items() if name in inspect.signature(function).parameters},
        **wrong,
    }
    with pytest.raises(error) as caught:
        function(**given)
    assert str(caught.value) == message
    np.testing.assert_array_equal(out, np.full_like(out, 7.0))


def test_a_class_far_below_the_others_changes_nothing() -> None:
    """Not even class 0, with which rows without a target begin; its gap is too large for a double."""
    lowest = np.finfo(np.float64).min
    for n in (2, 50, 2000):
        logits = np.r_[lowest, np.zeros(n)]
        assert sx.logsumexp(logits, temperature=0.5) == sx.logsumexp(logits[1:], temperature=0.5) == np.log(n)
    options = {"z_loss": 0.1, "temperature": 0.5}
    for targets in (1, (np.array([1, 2]), np.array([0.5, 1.0]))):
        logits = np.array([0.0, lowest, lowest, 1.0])
        near = np.maximum(logits, -1e9)
        hess = sx.value_grad_and_hess(logits, targets, **options)[2]
        np.testing.assert_array_equal(hess, sx.value_grad_and_hess(near, targets, **options)[2])
        product = sx.hvp(logits, targets, [1.0, 0, 0, 0], **options)
        np.testing.assert_array_equal(product, sx.hvp(near, targets, [1.0, 0, 0, 0], **options))
