"""The linear head: every option, kind of target, dtype and layout, against the products of the reference's gradient."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import reference
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    OPTIONS,
    REDUCTIONS,
    assert_same_bits,
    central_differences,
    layouts,
    optioned,
    rounded,
)

import softxent as sx

pytestmark = [pytest.mark.usefixtures("level", "several_threads")]

# Leading axes, D, C: few classes and many, one example, one class, no inputs, no rows, rows in several blocks.
SHAPES = [((37,), 5, 4), ((3, 11), 7, 150), ((), 3, 6), ((9,), 2, 1), ((6,), 0, 3), ((0,), 4, 3), ((9000,), 2, 3)]
COMBINATIONS = [(), *((name,) for name in OPTIONS), OPTIONS[:-1], OPTIONS]
WRT = ("inputs", "linear_weight", "linear_bias")
LITTLE = 1  # byte: every chunk has one row

of_shapes = pytest.mark.parametrize(("leading", "n_inputs", "n_classes"), SHAPES, ids=str)


class Head:
    """A linear head of a problem of `support.optioned`, with the results in float64."""

    def __init__(
        self,
        leading: tuple[int, ...],
        n_inputs: int,
        n_classes: int,
        kind: str = "labels",
        names: Sequence[str] = (),
        dtype: str = "float64",
        reduction: str = "mean",
        normalizer: float | None = None,
    ) -> None:
        rng = np.random.default_rng((*leading, n_inputs, n_classes))
        _, self.targets, self.options = optioned((*leading, n_classes), kind, names, dtype)
        del self.options["axis"]
        self.inputs = np.asarray(rng.normal(0, 1, (*leading, n_inputs)).astype(dtype))
        self.linear_weight = rng.normal(0, 1, (n_classes, n_inputs)).astype(dtype)
        self.linear_bias = rng.normal(0, 1, n_classes).astype(dtype)
        self.options |= {"linear_bias": self.linear_bias, "reduction": reduction}
        if normalizer is not None:
            self.options["normalizer"] = normalizer
        self.single = np.finfo("float64" if dtype == "float64" else "float32")
        self.half = 0.0 if dtype in FLOATS else {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray, Any]:
        return self.inputs, self.linear_weight, self.targets

    def gradients_beside(self, step: np.ndarray, bias_step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of weights and bias, at a point that is `step` away."""
        options = {**self.options, "linear_bias": self.linear_bias + bias_step}
        grads = sx.linear_value_and_grad(self.inputs, self.linear_weight + step, self.targets, **options)[1]
        return grads.linear_weight, grads.linear_bias

    def truth(self) -> tuple[Any, dict[str, np.ndarray]]:
        """Loss and gradients in float64."""
        x, w, b = (array.astype(np.float64) for array in (self.inputs, self.linear_weight, self.linear_bias))
        options = {name: value for name, value in self.options.items() if name != "linear_bias"}
        loss, g = reference(x @ w.T + b, self.targets, **options)
        n, c = int(np.prod(g.shape[:-1])), g.shape[-1]
        rows = g.reshape(n, c)
        return loss, dict(zip(WRT, (g @ w, rows.T @ x.reshape(n, x.shape[-1]), rows.sum(axis=0)), strict=True))

    def check(self, loss: Any, grads: sx.LinearGradients, times: float = 1.0) -> None:
        """Loss and gradients are right to within the roundings of products."""
        true_loss, true = self.truth()
        roundings = 400 * float(self.single.eps)
        np.testing.assert_allclose(
            loss, true_loss, rtol=roundings, atol=roundings * np.abs(true_loss).max(initial=1e-9)
        )
        for name, array in zip(WRT, grads, strict=True):
            if array is None:
                continue
            scale = np.abs(true[name]).max(initial=0)
            bound = roundings * scale * times + self.half * np.abs(times * true[name]) + (1e-7 if self.half else 0)
            assert array.shape == true[name].shape
            assert np.all(np.abs(array.astype(np.float64) - times * true[name]) <= bound), name


@pytest.mark.parametrize("memory", [LITTLE, 1500, 2**30])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: " + ".join(names) or "nothing")
def test_options(names: Sequence[str], kind: str, reduction: str, memory: float) -> None:
    for dtype, (leading, n_classes) in product(FLOATS, (((5, 7), 9), ((4,), 200))):
        head = Head(leading, 6, n_classes, kind, names, dtype, reduction)
        loss, grads = sx.linear_value_and_grad(*head.arguments, memory=memory, **head.options)
        head.check(loss, grads)
        assert_same_bits(sx.linear_cross_entropy(*head.arguments, memory=memory, **head.options), loss)
        if kind == "labels" and "ignore_index" in names:
            assert not grads.inputs[head.targets == -100].any()


@of_shapes
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_shapes(dtype: str, leading: tuple[int, ...], n_inputs: int, n_classes: int) -> None:
    for reduction, memory in product(REDUCTIONS, (20_000, 2**30)):
        head = Head(leading, n_inputs, n_classes, dtype=dtype, reduction=reduction)
        loss, grads = sx.linear_value_and_grad(*head.arguments, memory=memory, **head.options)
        head.check(loss, grads)
        assert all(array.dtype == head.inputs.dtype for array in grads)
        if reduction == "none":
            assert loss.dtype == head.single.dtype
            assert loss.shape == leading
        else:
            assert type(loss) is float


@pytest.mark.parametrize("normalizer", [3.5, 0.0, 1e-309, 1e300])
def test_normalizer(normalizer: float) -> None:
    head = Head((20,), 4, 5, "soft", ("weight", "sample_weight"), normalizer=normalizer)
    loss, grads = sx.linear_value_and_grad(*head.arguments, **head.options)
    if normalizer == 1e-309:  # the gradient is infinite, and so is the loss
        assert loss == np.inf
        return
    head.check(loss, grads)
    if not normalizer:
        assert (loss, np.any(grads.inputs), np.any(grads.linear_weight)) == (0, False, False)


@pytest.mark.parametrize("of_rows", [-1070, -600, 0, 600, 1018])
@pytest.mark.parametrize("of_classes", [-1070, -600, 0, 600, 1018])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_mean_does_not_depend_on_the_size_of_weights(kind: str, of_classes: int, of_rows: int) -> None:
    """The products of both may all be 0 or infinite."""
    head = Head((40,), 4, 5, kind)
    rng = np.random.default_rng(0)
    weight, sample_weight = rng.integers(1, 17, 5).astype(float), rng.integers(1, 17, 40).astype(float)
    loss, grads = sx.linear_value_and_grad(*head.arguments, **head.options, weight=weight, sample_weight=sample_weight)
    got_loss, got = sx.linear_value_and_grad(
        *head.arguments, **head.options,
        weight=np.ldexp(weight, of_classes), sample_weight=np.ldexp(sample_weight, of_rows),
    )  # fmt: skip
    np.testing.assert_allclose(got_loss, loss, rtol=1e-13)
    for one, other in zip(got, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * np.abs(other).max())


@pytest.mark.parametrize(
    ("weight", "sample_weight"),
    [
        ([1e308, 0, 1, 1], [0, 1e300, 1, 1, 1, 1]),
        ([1e308, 1, 1, 1], [0, 1e300, 1, 1, 1e300, 1]),
        ([1e160] * 4, [1, -1, 1, -1, 1, -1]),
        ([1e-200, 1e200, 1, 1], [1e200, 1e-200, 0, 0, 1e-200, 0]),
        ([0, 1e-320, 1e-320, 2e-320], [1e308, 1, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_weights_that_leave_the_range_beside_others(weight: list[float], sample_weight: list[float]) -> None:
    logits, labels = np.random.default_rng(1).normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 2])
    options: dict[str, Any] = {"weight": weight, "sample_weight": sample_weight}
    loss, grad = sx.value_and_grad(logits, labels, **options)
    same, grads = sx.linear_value_and_grad(logits, np.eye(4), labels, **options)
    assert same == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(grads.inputs, grad, rtol=1e-13, atol=1e-16)
    total = math.fsum(weight[c] * s for c, s in zip(labels, sample_weight, strict=True))
    assert sx.evaluate(logits, labels, **options).normalizer == pytest.approx(total, rel=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_that_do_not_count_are_not_read(reduction: str) -> None:
    head = Head((30,), 4, 5, "labels", ("ignore_index", "sample_weight"), reduction=reduction)
    head.options["sample_weight"][7] = 0
    loss, grads = sx.linear_value_and_grad(*head.arguments, **head.options)
    ignored = (head.targets == -100) | (head.options["sample_weight"] == 0)
    assert 2 < ignored.sum() < 30
    head.inputs[ignored] = np.nan
    got_loss, got = sx.linear_value_and_grad(*head.arguments, **head.options)
    assert_same_bits(got_loss, loss)
    for one, other in zip(got, grads, strict=True):
        assert_same_bits(one, other)
    assert not got.inputs[ignored].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("way", ["ignore_index", "sample_weight"])
def test_no_row_counts(way: str, reduction: str) -> None:
    head = Head((6,), 4, 5, reduction=reduction)
    head.options |= {"ignore_index": -1} if way == "ignore_index" else {"sample_weight": np.zeros(6)}
    targets = np.full(6, -1) if way == "ignore_index" else head.targets
    loss, grads = sx.linear_value_and_grad(head.inputs, head.linear_weight, targets, **head.options)
    assert not np.any(loss)
    assert not any(array.any() for array in grads)
    held = sx.LinearGradients(*(np.ones_like(array) for array in grads))
    sx.linear_value_and_grad(head.inputs, head.linear_weight, targets, **head.options, out=held, accumulate=True)
    assert all((array == 1).all() for array in held)


def test_a_large_bias_is_added_once() -> None:
    """Of each row, however many chunks and tiles there are."""
    for dtype, memory in product(FLOATS + HALVES, (LITTLE, 2**30)):
        head = Head((20,), 3, 7, dtype=dtype)
        head.linear_bias = head.options["linear_bias"] = (1000 * head.linear_bias).astype(dtype)
        head.check(*sx.linear_value_and_grad(*head.arguments, memory=memory, **head.options))


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_chunks_give_the_same_loss(dtype: str, kind: str) -> None:
    """To the bit where the products are exact, as those of small integers; the gradients to within roundings."""
    head = Head((700,), 4, 21, kind, OPTIONS, dtype)
    head.inputs, head.linear_weight = np.round(head.inputs), np.round(head.linear_weight)
    head.linear_bias = head.options["linear_bias"] = np.round(head.linear_bias)
    for reduction in REDUCTIONS:
        head.options["reduction"] = reduction
        loss, grads = sx.linear_value_and_grad(*head.arguments, memory=2**40, **head.options)
        head.check(loss, grads)
        for memory in (LITTLE, 5e3, 2e4, 1e5):
            assert_same_bits(sx.linear_cross_entropy(*head.arguments, memory=memory, **head.options), loss)
            got_loss, got = sx.linear_value_and_grad(*head.arguments, memory=memory, n_threads=3, **head.options)
            assert_same_bits(got_loss, loss)
            head.check(got_loss, got)


def test_more_memory_than_by_default_gives_the_same_loss() -> None:
    """Whatever BLAS rounds: it multiplies the same rows at once."""
    for dtype in FLOATS:
        head = Head((900,), 20, 20_000, dtype=dtype)
        loss = sx.linear_cross_entropy(*head.arguments, **head.options)
        for memory in (5e7, 1e8, 3e8):
            assert_same_bits(sx.linear_cross_entropy(*head.arguments, memory=memory, **head.options), loss)


def test_the_loss_is_that_of_the_logits() -> None:
    for dtype, reduction in product(FLOATS, REDUCTIONS):
        head = Head((50,), 4, 5, "soft", OPTIONS, dtype, reduction)
        options = {name: value for name, value in head.options.items() if name != "linear_bias"}
        logits = np.round(head.inputs) @ np.round(head.linear_weight).T + np.round(head.linear_bias)
        loss = sx.linear_cross_entropy(
            np.round(head.inputs), np.round(head.linear_weight), head.targets,
            linear_bias=np.round(head.linear_bias), **options,
        )  # fmt: skip
        np.testing.assert_allclose(loss, sx.cross_entropy(logits, head.targets, **options), rtol=4e-16)


# Arrays


@given(st.data())
def test_layouts(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS + HALVES))
    leading = data.draw(st.sampled_from([(), (5,), (3, 4), (2, 1, 3)]))
    head = Head(leading, data.draw(st.integers(0, 6)), data.draw(st.integers(1, 9)), dtype=dtype)
    memory = data.draw(st.sampled_from([LITTLE, 400, 2**30]))
    expected = sx.linear_value_and_grad(*head.arguments, memory=memory, **head.options)
    arrays = [data.draw(layouts(array.ndim)).place(array)[0] for array in (*head.arguments, head.linear_bias)]
    outs = [data.draw(layouts(array.ndim)).place(np.full_like(array, 7)) for array in expected[1]]
    before = [memory.copy() for _, memory in outs]
    loss, grads = sx.linear_value_and_grad(
        *arrays[:3], memory=memory, **{**head.options, "linear_bias": arrays[3]}, out=tuple(out for out, _ in outs)
    )
    head.check(loss, grads)
    for (out, bytes_of_out), old, one in zip(outs, before, grads, strict=True):
        assert one is out
        out[...] = 7
        np.testing.assert_array_equal(bytes_of_out, old)  # nothing was written elsewhere


def test_weights_of_teaching_code_are_not_copied() -> None:
    """Those of shape (D, C), as a transposed view; their gradient is written to such a view."""
    head = Head((50,), 4, 7)
    weight, grad = np.ascontiguousarray(head.linear_weight.T), np.empty((4, 7))
    loss, grads = sx.linear_value_and_grad(
        head.inputs, weight.T, head.targets, **head.options, wrt="linear_weight", out=(None, grad.T, None)
    )
    head.check(loss, grads)
    assert np.shares_memory(grads.linear_weight, grad)


def test_coefficients_of_scikit_learn() -> None:
    """(C, D + 1) raveled in Fortran order, the intercept last."""
    head = Head((50,), 4, 7)
    coef = np.concatenate([head.linear_weight, head.linear_bias[:, np.newaxis]], axis=1).ravel(order="F")
    grad = np.empty_like(coef)
    w, g = coef.reshape((7, 5), order="F"), grad.reshape((7, 5), order="F")
    head.options["linear_bias"] = w[:, 4]
    loss, grads = sx.linear_value_and_grad(
        head.inputs, w[:, :4], head.targets, **head.options, out=(None, g[:, :4], g[:, 4])
    )
    head.check(loss, grads)
    np.testing.assert_array_equal(grad.reshape((7, 5), order="F")[:, 4], grads.linear_bias)


@pytest.mark.parametrize("inputs", ["float32", "bfloat16", "float16", "float64", "int8", "bool"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "float64", "int32"])
def test_mixed_dtypes(inputs: str, weights: str) -> None:
    head = Head((20,), 4, 5)
    head.inputs, head.linear_weight = np.round(head.inputs).astype(inputs), np.round(head.linear_weight).astype(weights)
    narrow = {"float32", *HALVES}
    loss, grads = sx.linear_value_and_grad(*head.arguments, **{**head.options, "reduction": "none"})
    assert loss.dtype == ("float32" if {inputs, weights} <= narrow else "float64")
    for array, name in ((grads.inputs, inputs), (grads.linear_weight, weights)):
        assert array.dtype == (name if name in narrow else "float64")


def test_a_narrower_gradient_is_rounded_once() -> None:
    head = Head((30,), 4, 5, dtype="float32")
    exact = sx.linear_value_and_grad(*head.arguments, **head.options)[1]
    for dtype in HALVES:
        outs = tuple(np.empty(array.shape, dtype) for array in exact)
        grads = sx.linear_value_and_grad(*head.arguments, **head.options, out=outs)[1]
        for one, other in zip(grads[:2], exact[:2], strict=True):
            assert_same_bits(one, rounded(other, one.dtype))


@pytest.mark.parametrize("memory", [LITTLE, 2**30])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_parts_of_a_batch_add_up(dtype: str, memory: float) -> None:
    head = Head((40,), 4, 5, dtype=dtype)
    options = {**head.options, "normalizer": 40, "memory": memory}
    del options["reduction"]
    total = sx.LinearGradients(*(np.zeros(a.shape, "float32") for a in head.arguments[:2]), np.zeros(5, "float32"))
    sum_of_losses = 0.0
    for start in range(0, 40, 16):
        rows = slice(start, start + 16)
        out = total._replace(inputs=total.inputs[rows])
        loss, grads = sx.linear_value_and_grad(
            head.inputs[rows], head.linear_weight, head.targets[rows], out=out, accumulate=True, **options
        )
        assert grads.linear_weight is total.linear_weight
        sum_of_losses += loss
    head.half = 0.0 if dtype == "float64" else head.half
    head.single = np.finfo("float32")
    head.check(sum_of_losses, total)
    again = sx.LinearGradients(*map(np.copy, total))
    sx.linear_value_and_grad(*head.arguments, out=again, accumulate=True, **options)
    head.check(sum_of_losses, again, times=2)


@pytest.mark.smoke
@pytest.mark.parametrize("wrt", [(), "inputs", "linear_weight", ("linear_bias",), ["linear_bias", "inputs"], WRT])
def test_only_what_is_asked_for(wrt: Any) -> None:
    head = Head((20,), 4, 5)
    loss, grads = sx.linear_value_and_grad(*head.arguments, **head.options, wrt=wrt)
    head.check(loss, grads)
    names = (wrt,) if isinstance(wrt, str) else wrt
    assert [array is not None for array in grads] == [name in names for name in WRT]


def test_without_bias() -> None:
    head = Head((20,), 4, 5)
    del head.options["linear_bias"]
    head.linear_bias = np.zeros(5)
    loss, grads = sx.linear_value_and_grad(*head.arguments, **head.options)
    head.check(loss, grads)
    assert grads.linear_bias is None


def test_finite_differences() -> None:
    head = Head((7,), 3, 4, "soft", OPTIONS)
    bias = head.options.pop("linear_bias")

    def loss(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        return sx.linear_cross_entropy(x, w, head.targets, linear_bias=b, **head.options)

    x, w = head.inputs, head.linear_weight
    grads = sx.linear_value_and_grad(x, w, head.targets, linear_bias=bias, **head.options)[1]
    slopes = (
        central_differences(lambda x: loss(x, w, bias), x),
        central_differences(lambda w: loss(x, w, bias), w),
        central_differences(lambda b: loss(x, w, b), bias),
    )
    for one, slope in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(one, slope, rtol=0, atol=1e-8)


# Matrices that are no arrays


class Matrix:
    """What has `shape`, `dtype`, `T` and `@`, and no more."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @property
    def T(self) -> "Matrix":
        return Matrix(self.array.T)

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return self.array @ other


class MatrixWithRows(Matrix):
    def __getitem__(self, rows: Any) -> "MatrixWithRows":
        return MatrixWithRows(self.array[rows])


@pytest.mark.parametrize("memory", [LITTLE, 2**30])
@pytest.mark.parametrize("kind", [Matrix, MatrixWithRows])
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_matrix(dtype: str, kind: type[Matrix], memory: float) -> None:
    head = Head((40,), 4, 5, "labels", ("ignore_index", "sample_weight"), dtype)
    matrix = kind(head.inputs)
    rest = head.arguments[1:]
    loss, grads = sx.linear_value_and_grad(matrix, *rest, memory=memory, **head.options)
    head.check(loss, grads)
    assert grads.inputs is None
    out = tuple(np.ones_like(array) for array in grads[1:])
    sx.linear_value_and_grad(matrix, *rest, memory=memory, **head.options, out=(None, *out), accumulate=True)
    for one, other in zip(out, grads[1:], strict=True):
        np.testing.assert_allclose(one - 1, other, atol=1e-6)
    v = np.ones((5, 4), dtype)
    options = {name: value for name, value in head.options.items() if name != "softcap"}
    product = sx.linear_hvp(matrix, *rest, v, memory=memory, **options)
    np.testing.assert_allclose(product, sx.linear_hvp(head.inputs, *rest, v, **options), atol=1e-6)


@pytest.mark.parametrize("name", ["csr_matrix", "csr_array", "csc_matrix", "coo_matrix"])
def test_sparse_matrices_of_scipy(name: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    head = Head((40,), 6, 5)
    head.inputs[np.random.default_rng(0).random(head.inputs.shape) < 0.6] = 0
    matrix = getattr(sparse, name)(head.inputs)
    for memory in (LITTLE, 2**30):
        head.check(*sx.linear_value_and_grad(matrix, *head.arguments[1:], memory=memory, **head.options))


def test_a_matrix_that_fails_changes_nothing() -> None:
    """Neither one that raises in the middle, nor one that returns what it should not."""

    class Failing(MatrixWithRows):
        calls = 0

        def __getitem__(self, rows: Any) -> "Failing":
            return Failing(self.array[rows])

        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            Failing.calls += 1
            if Failing.calls > 5:
                raise RuntimeError("no more")
            return self.array @ other

    class Wrong(Matrix):
        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            return np.zeros((3, 3))

    head = Head((40,), 4, 5)
    out = (None, np.ones((5, 4)), np.ones(5))
    for matrix, error in ((Failing(head.inputs), RuntimeError), (Wrong(head.inputs), ValueError)):
        with pytest.raises(error):
            sx.linear_value_and_grad(
                matrix, *head.arguments[1:], memory=LITTLE, **head.options, out=out, accumulate=True
            )
        assert all((array == 1).all() for array in out[1:])


# Products with the Hessian


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_hessian_products(dtype: str, kind: str) -> None:
    """As differences of gradients say; the same with probabilities that are kept."""
    smooth = tuple(name for name in OPTIONS if name != "softcap")
    for names in ((), *((name,) for name in smooth), smooth):
        head = Head((30,), 4, 6, kind, names)
        del head.options["linear_bias"]
        x, w, b = head.inputs, head.linear_weight, head.linear_bias
        rng = np.random.default_rng(1)
        v, v_b = rng.normal(size=w.shape), rng.normal(size=6)

        sides = (head.gradients_beside(step * v, step * v_b) for step in (1e-5, -1e-5))
        true = [(one - other) / 2e-5 for one, other in zip(*sides, strict=True)]
        single = [array.astype(dtype) for array in (x, w, b, v, v_b)]
        bound = {"float64": 1e-8, "float32": 1e-5}[dtype]
        options = {**head.options, "linear_bias": single[2], "bias_vector": single[4]}
        results = [
            sx.linear_hvp(*single[:2], head.targets, single[3], memory=memory, **options) for memory in (LITTLE, 2**30)
        ]
        if "z_loss" not in names:
            kept = {name: options[name] for name in ("temperature", "where") if name in options}
            probs = sx.softmax(single[0] @ single[1].T + single[2], **kept)
            results.append(sx.linear_hvp(single[0], None, head.targets, single[3], probs=probs, **options))
        for result in results:
            for one, other in zip(result, true, strict=True):
                assert one.dtype == dtype
                np.testing.assert_allclose(one, other, rtol=0, atol=bound * max(1, np.abs(other).max()))
        alone = sx.linear_hvp(*single[:2], head.targets, single[3], **{**options, "bias_vector": None})
        with_zero = sx.linear_hvp(*single[:2], head.targets, single[3], **{**options, "bias_vector": np.zeros(6)})
        assert_same_bits(alone, with_zero[0])


def test_hessian_products_of_other_dtypes_and_leading_axes() -> None:
    head = Head((3, 5), 4, 6)
    del head.options["reduction"]
    v = np.ones((6, 4), np.int8)
    expected = sx.linear_hvp(*head.arguments, v.astype(float), **head.options)
    assert_same_bits(sx.linear_hvp(*head.arguments, v, **head.options), expected)
    total = sx.linear_hvp(*head.arguments, v, **head.options, reduction="sum")
    np.testing.assert_allclose(total / 15, expected, rtol=0, atol=1e-15)
    assert_same_bits(sx.linear_hvp(*head.arguments, v, **head.options, reduction="none"), total)


# Errors


def stays_the_same(call: Any, arrays: Sequence[np.ndarray], error: type[Exception], message: str) -> None:
    before = [array.copy() for array in arrays]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), str(caught.value)
    for array, old in zip(arrays, before, strict=True):
        assert_same_bits(array, old)


X, W, B, Y = np.ones((4, 3)), np.ones((5, 3)), np.ones(5), np.array([0, 1, 2, 4])
SQUARE = np.ones((5, 5))
REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weights that do not fit": (
        {"linear_weight": np.ones((5, 2))}, ValueError,
        "linear_weight must be of shape (C, D) with D = 3 as the last axis of the inputs, got (5, 2)",
    ),
    "transposed weights": (
        {"linear_weight": W.T}, ValueError,
        "linear_weight must be of shape (C, D) with D = 3 as the last axis of the inputs, got (3, 5); "
        "pass linear_weight.T",
    ),
    "weights of one axis": (
        {"linear_weight": np.ones(3)}, ValueError,
        "linear_weight must be of shape (C, D) with D = 3 as the last axis of the inputs, got (3,)",
    ),
    "no classes": (
        {"linear_weight": np.ones((0, 3)), "linear_bias": None}, ValueError,
        "linear_weight must have at least one class: expected C >= 1, got shape (0, 3)",
    ),
    "complex weights": (
        {"linear_weight": W * 1j}, TypeError,
        "linear_weight must be float16, bfloat16, float32 or float64, integers or bool, got dtype complex128",
    ),
    "inputs of objects": (
        {"inputs": X.astype(object)}, TypeError,
        "inputs must be float16, bfloat16, float32 or float64, integers or bool, got dtype object",
    ),
    "scalar inputs": ({"inputs": 1.0}, ValueError, "inputs must be of shape (..., D), got a scalar, 1.0"),
    "masked inputs": ({"inputs": np.ma.masked_array(X)}, TypeError, "inputs must not be a masked array"),
    "a matrix without shape": (
        {"inputs": type("M", (), {"__matmul__": lambda self, other: other})()}, TypeError,
        "inputs must be an array, or a matrix with shape (N, D) and a dtype, got M",
    ),
    "a matrix of complex numbers": (
        {"inputs": Matrix(X * 1j)}, TypeError,
        "inputs must be float16, bfloat16, float32 or float64, integers or bool, got dtype complex128",
    ),
    "bias of another shape": (
        {"linear_bias": np.ones(3)}, ValueError, "linear_bias must be of shape (5,), got (3,)",
    ),
    "complex bias": ({"linear_bias": B * 1j}, TypeError, "linear_bias must be real numbers, got dtype complex128"),
    "a label that is no class": (
        {"targets": [0, 1, 2, 5]}, ValueError, "targets[3] = 5 is not a class: expected 0 <= label < 5",
    ),
    "targets of another shape": (
        {"targets": [0, 1]}, ValueError,
        "targets must be class labels of shape (4,) or distributions of shape (4, 5) for logits of shape (4, 5)",
    ),
    "memory of 0": ({"memory": 0}, ValueError, "memory must be finite and positive, got 0"),
    "memory that is no number": ({"memory": "1G"}, TypeError, "memory must be a number, got str"),
    "an option that is not known": (
        {"smoothing": 1}, TypeError, "got an unexpected keyword argument 'smoothing'",
    ),
    "axis": ({"axis": 0}, TypeError, "got an unexpected keyword argument 'axis'"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
    "normalizer without a mean": (
        {"reduction": "sum", "normalizer": 1}, ValueError, "normalizer is what reduction='mean' divides by",
    ),
    "sample_weight of another shape": (
        {"sample_weight": np.ones(5)}, ValueError, "sample_weight must have one number for each row, shape (4,)",
    ),
    "n_threads": ({"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
}  # fmt: skip
REFUSALS_OF_OUT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "wrt that is not known": (
        {"wrt": "weights"}, ValueError, "wrt must be of 'inputs', 'linear_weight', 'linear_bias', got 'weights'",
    ),
    "wrt of a bias that is not there": (
        {"wrt": "linear_bias", "linear_bias": None, "out": None}, ValueError,
        "there is no linear_bias to differentiate by",
    ),
    "out of a bias that is not there": (
        {"out": (None, None, np.ones(5)), "linear_bias": None}, ValueError,
        "there is no linear_bias to differentiate by",
    ),
    "out that is an array": (
        {"out": np.ones((4, 3))}, TypeError, "out must be a tuple of three arrays, or None for any of them",
    ),
    "out of two": ({"out": (None, None)}, TypeError, "out must be a tuple of three arrays, or None for any of them"),
    "out that wrt does not name": (
        {"out": (np.ones((4, 3)), None, None), "wrt": "linear_weight"}, ValueError,
        "out has an array for inputs, which wrt does not name",
    ),
    "out of another shape": (
        {"out": (None, np.ones((3, 5)), None)}, ValueError,
        "out.linear_weight must have the shape of linear_weight, (5, 3), got (3, 5)",
    ),
    "out of integers": (
        {"out": (None, np.ones((5, 3), int), None)}, TypeError,
        "out.linear_weight must be float16, bfloat16, float32 or float64, got dtype int64",
    ),
    "accumulation into nothing": (
        {"out": (None, np.ones((5, 3)), None), "wrt": WRT, "accumulate": True}, ValueError,
        "accumulate adds to the arrays in out, and there is none for ",
    ),
    "accumulation without out": (
        {"out": None, "accumulate": True}, ValueError, "accumulate adds to the arrays in out, and there is none for ",
    ),
    "inputs that are no array": (
        {"inputs": Matrix(X), "wrt": "inputs", "out": None}, ValueError,
        "inputs must be an array to be differentiated by; pass wrt without 'inputs'",
    ),
    "out that is the inputs": (
        {"out": (X, None, None)}, ValueError, "out.inputs must not overlap inputs",
    ),
    "out that is the weights": (
        {"out": (None, W, None)}, ValueError, "out.linear_weight must not overlap linear_weight",
    ),
    "out that is the bias": ({"out": (None, None, B)}, ValueError, "out.linear_bias must not overlap linear_bias"),
    "outs that overlap": (
        {"out": (None, SQUARE[:, :3], SQUARE[0])}, ValueError, "out.linear_weight must not overlap out.linear_bias",
    ),
}  # fmt: skip


def call(function: Any, change: dict[str, Any]) -> Any:
    arguments = {"inputs": X, "linear_weight": W, "targets": Y, "linear_bias": B, **change}
    return lambda: function(**arguments)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    change, error, message = REFUSALS[name]
    out = (np.ones((4, 3)), np.ones((5, 3)), None)
    stays_the_same(call(sx.linear_cross_entropy, change), (X, W, B), error, message)
    stays_the_same(call(sx.linear_value_and_grad, {**change, "out": out}), (X, W, B, *out[:2]), error, message)
    if name != "weights that do not fit":
        stays_the_same(call(sx.linear_hvp, {**change, "vectors": W}), (X, W, B), error, message)


@pytest.mark.parametrize("name", REFUSALS_OF_OUT)
def test_refusals_of_out(name: str) -> None:
    change, error, message = REFUSALS_OF_OUT[name]
    out = change.get("out")
    arrays = [array for array in out if isinstance(array, np.ndarray)] if isinstance(out, tuple) else []
    stays_the_same(call(sx.linear_value_and_grad, change), (X, W, B, *arrays), error, message)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vectors": np.ones((3, 5))}, ValueError, "vectors must be of shape (5, 3), got (3, 5)"),
        ({"vectors": W * 1j}, TypeError, "vectors must be real numbers, got dtype complex128"),
        ({"bias_vector": np.ones(4)}, ValueError, "bias_vector must be of shape (5,), got (4,)"),
        ({"softcap": 3}, ValueError, "softcap has no second derivative here"),
        ({"probs": np.ones((4, 5)), "z_loss": 1}, ValueError, "z_loss needs the logits, got it with probs"),
        ({"probs": np.ones((3, 5))}, ValueError, "probs must have the shape of the logits, (4,) and one axis more"),
        ({"linear_weight": None}, TypeError, "linear_weight must be an array of numbers, got NoneType"),
    ],
)
def test_refusals_of_products(change: dict[str, Any], error: type[Exception], message: str) -> None:
    stays_the_same(call(sx.linear_hvp, {"vectors": W, **change}), (X, W, B), error, message)


def test_no_call_warns_or_raises() -> None:
    """Whatever floating-point flags are raised on the way."""
    inputs = np.array([[1e30, 1], [1e-30, np.inf], [np.nan, 0], [3e38, -3e38]], np.float32)
    weight = np.array([[1e30, 1e-30], [1, -1], [0, 0]], np.float32)
    for dtype in ("float32", *HALVES):
        with np.errstate(all="ignore"):
            x, w = inputs.astype(dtype), weight.astype(dtype)
        with np.errstate(all="raise"):
            sx.linear_value_and_grad(x, w, [0, 1, 2, 0], sample_weight=[1e-320, 1, 1e300, 0], memory=LITTLE)
            sx.linear_value_and_grad(x, w, [0, 1, 2, 0], weight=[1e-320, 1, 1e300], memory=LITTLE)
            sx.linear_hvp(x, w, [0, 1, 2, 0], w, bias_vector=[1e300, 1, 0])
