"""Classes in several places: any split of them gives what one call gives, to the contract of docs/numerics.md."""

import doctest
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from contract import DTYPES, GRAD_ULP, LOG_SOFTMAX_ULP, LOSS_ULP, LSE_ULP, LSE_ULP_OF_M, SOFTMAX_ULP, Row, cases
from exact import Array, Truth, solve, solve_family
from hypothesis import given
from hypothesis import strategies as st
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    OPTIONS,
    REDUCTIONS,
    assert_matches,
    assert_same_bits,
    optioned,
    problem,
    unruly,
)

import softxent as sx
from softxent import shards

Blocks = Sequence[tuple[int, int]]


def blocks_of(n_classes: int, cuts: Sequence[int]) -> Blocks:
    return list(pairwise([0, *sorted(int(cut) for cut in cuts), n_classes]))


def random_blocks(rng: np.random.Generator, n_classes: int) -> Blocks:
    n_cuts = rng.integers(min(n_classes, 6))
    return blocks_of(n_classes, rng.choice(np.arange(1, n_classes), n_cuts, replace=False) if n_cuts else ())


def held_by(block: tuple[int, int], targets: Any, options: dict[str, Any], ndim: int) -> tuple[Any, dict[str, Any]]:
    """What the holder of a block has of targets and options, the class axis last."""
    classes = slice(*block)
    held = {
        name: value[..., classes] if name in ("weight", "where") and value is not None else value
        for name, value in options.items()
    }
    is_distribution = not isinstance(targets, tuple) and np.ndim(targets) == ndim
    return (targets[..., classes] if is_distribution else targets), held


def summaries(logits: Array, targets: Any, blocks: Blocks, **options: Any) -> list[Array]:
    parts = []
    for block in blocks:
        t, held = held_by(block, targets, options, logits.ndim)
        x = logits[..., slice(*block)]
        parts.append(shards.summarize(x, t, first_class=block[0], n_classes=logits.shape[-1], **held))
    return parts


def results(
    logits: Array,
    targets: Any,
    blocks: Blocks,
    reduction: str = "none",
    normalizer: float | None = None,
    **options: Any,
) -> tuple[Any, Array, Array]:
    """Loss, gradient and merged summary."""
    reduced: dict[str, Any] = {"reduction": reduction, "normalizer": normalizer}
    merged = shards.merge(summaries(logits, targets, blocks, **options))
    grads = []
    for block in blocks:
        t, held = held_by(block, targets, options, logits.ndim)
        x = logits[..., slice(*block)]
        grads.append(shards.grad(x, t, merged, first_class=block[0], **reduced, **held))
    loss: Any = shards.loss(merged, **reduced, **held)
    return loss, np.concatenate(grads, axis=-1), merged


CASES = {
    (dtype, case.name): [row for row in case.rows[:60] if row.logits.size <= 1000 or case.name == "right by 730"]
    for dtype in DTYPES
    for case in cases(dtype)
}


@cache
def solved(dtype: str, name: str) -> list[tuple[Row, Truth, Truth]]:
    return [(row, *solve(*row)) for row in CASES[dtype, name]]


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_every_digit_is_kept(dtype: str, name: str) -> None:
    rng = np.random.default_rng(7)
    for (logits, label), true_loss, true_grad in solved(dtype, name):
        for blocks in ([(0, logits.size)], random_blocks(rng, logits.size)):
            losses, grad, _ = results(logits, label, blocks)
            assert true_loss.error_in_ulp(losses[np.newaxis].astype(dtype)).max() <= LOSS_ULP
            assert true_grad.error_in_ulp(grad).max() <= GRAD_ULP


@st.composite
def rows_in_blocks(draw: st.DrawFn) -> tuple[Array, int, Blocks]:
    n_classes = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = 10 ** rng.uniform(-6, 2) * rng.normal(size=n_classes) + rng.choice([0, 0, 1000])
    label = int(rng.integers(n_classes))
    if draw(st.booleans()):
        logits[label] = logits.max() + rng.uniform(0, 700)
    cuts = draw(st.sets(st.integers(1, max(1, n_classes - 1)), max_size=n_classes)) if n_classes > 1 else set()
    return logits.astype(draw(st.sampled_from(DTYPES))), label, blocks_of(n_classes, list(cuts))


@given(rows_in_blocks(), st.randoms(use_true_random=False))
def test_any_split_in_any_order(row: tuple[Array, int, Blocks], random: Any) -> None:
    logits, label, blocks = row
    true_loss, true_grad = solve(logits, label)
    losses, grad, merged = results(logits, label, blocks)
    assert true_loss.error_in_ulp(losses[np.newaxis].astype(logits.dtype)).max() <= LOSS_ULP
    assert true_grad.error_in_ulp(grad).max() <= GRAD_ULP
    parts = summaries(logits, label, blocks)
    random.shuffle(parts)
    assert shards.merge(parts).tobytes() == merged.tobytes()
    # Merged in pairs, as a tree does it, in any order.
    while len(parts) > 1:
        parts = [*parts[2:], shards.merge(parts[:2])]
    losses = shards.loss(parts[0], reduction="none")
    assert true_loss.error_in_ulp(losses[np.newaxis].astype(logits.dtype)).max() <= LOSS_ULP


OPTION_SETS = [(), *[(name,) for name in OPTIONS], OPTIONS[:-1], (*OPTIONS[:-2], OPTIONS[-1])]


@pytest.mark.parametrize("names", OPTION_SETS, ids=", ".join)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_options(kind: str, names: Sequence[str]) -> None:
    rng = np.random.default_rng(11)
    for dtype in (*FLOATS, *HALVES):
        for shape in ((7,), (3, 9), (2, 3, 11), (0, 4)):
            logits, targets, options = optioned(shape, kind, names, dtype)
            del options["axis"]
            for reduction in REDUCTIONS:
                blocks = random_blocks(rng, shape[-1])
                loss, grad, merged = results(logits, targets, blocks, reduction, **options)
                assert grad.dtype == logits.dtype
                assert_matches(loss, grad, logits, targets, reduction, axis=-1, **options)
                of_logits = {name: options[name] for name in ("temperature", "softcap", "where") if name in options}
                if not {"sample_weight", "ignore_index"} & set(names):
                    result = sx.evaluate(logits.astype(np.float64), **of_logits)
                    np.testing.assert_array_equal(shards.argmax(merged), result.argmax)
                    np.testing.assert_allclose(shards.lse(merged), result.lse, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"softcap": 5.0}, {"temperature": 0.5}, {"where": np.arange(6) % 3 != 2}],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_rows_of_every_kind(kind: str, dtype: str, options: dict[str, Any]) -> None:
    """Infinities, NaN, ties, offsets and targets of any size: what one call gives."""
    logits, targets = unruly((187, 6), kind, dtype)
    expected, expected_grad = sx.value_and_grad(logits, targets, reduction="none", **options)
    of_rows = sx.evaluate(logits, **{name: value for name, value in options.items() if name != "label_smoothing"})
    size = np.abs(targets).max(axis=1) if kind == "soft" else np.ones(len(logits))
    precision = 1e-5 if dtype == "float32" else 1e-13
    for blocks in (blocks_of(6, ()), blocks_of(6, (3,)), blocks_of(6, range(1, 6))):
        losses, grad, merged = results(logits, targets, blocks, **options)
        for actual, desired, scale in (
            (losses, expected, size),
            (shards.lse(merged), of_rows.lse, 1.0),
            (grad.T, expected_grad.T, size),
        ):
            with np.errstate(all="ignore"):
                actual = actual.astype(dtype)
                same = (actual == desired) | (np.isnan(actual) & np.isnan(desired))
                near = np.abs(actual - desired) <= precision * (np.abs(desired) + scale)
            assert (same | near).all()
        np.testing.assert_array_equal(shards.argmax(merged), of_rows.argmax)


def test_logits_that_a_temperature_takes_out_of_range() -> None:
    logits = np.full((2, 4), np.finfo(np.float64).min)
    logits[1, 3] = 0
    expected = sx.value_and_grad(logits, [0, 3], temperature=0.5, reduction="none")
    losses, grad, _ = results(logits, np.array([0, 3]), blocks_of(4, (1, 2)), temperature=0.5)
    np.testing.assert_allclose(losses, expected[0])
    np.testing.assert_allclose(grad, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities(dtype: str) -> None:
    rng = np.random.default_rng(5)
    for name in ("right by 20", "one above by 180", "N(0, 10), C = 64", "all equal", "near ties", "+50 and -50"):
        for logits, _ in CASES[dtype, name]:
            truth, blocks = solve_family(logits), random_blocks(rng, logits.size)
            merged = shards.merge(summaries(logits, None, blocks))
            parts = [logits[slice(*block)] for block in blocks]
            p = np.concatenate([shards.softmax(x, merged) for x in parts])
            log_p = np.concatenate([shards.log_softmax(x, merged) for x in parts])
            assert truth.softmax.error_in_ulp(p).max() <= SOFTMAX_ULP
            assert truth.log_softmax.error_in_ulp(log_p).max() <= LOG_SOFTMAX_ULP[dtype]
            lse = shards.lse(merged)[np.newaxis].astype(dtype)
            of_m = np.ldexp(float(np.spacing(np.abs(logits.max()))) * LSE_ULP_OF_M, 500)
            assert truth.lse.error_in_ulp(lse).max() <= LSE_ULP or truth.lse.distance(lse).max() <= of_m


def test_masks_and_probabilities_of_special_rows() -> None:
    logits, _ = unruly((34, 5))
    for options in ({}, {"where": np.arange(5) != 1}, {"temperature": 3.0}, {"softcap": 2.0}):
        merged = shards.merge(summaries(logits, None, blocks_of(5, (2,)), **options))
        for function, whole in ((shards.softmax, sx.softmax), (shards.log_softmax, sx.log_softmax)):
            parts = []
            for block in blocks_of(5, (2,)):
                held = held_by(block, None, options, 2)[1]
                parts.append(function(logits[:, slice(*block)], merged, **held))
            np.testing.assert_allclose(np.concatenate(parts, 1), whole(logits, **options), rtol=1e-12, atol=1e-300)


def test_a_summary_is_80_bytes_that_any_transport_can_carry() -> None:
    logits, labels = problem((4, 3, 10))
    parts = summaries(logits, labels, blocks_of(10, (4,)))
    assert shards.SUMMARY.itemsize == 80
    assert parts[0].shape == labels.shape
    sent = [np.frombuffer(part.view(np.uint8).tobytes(), shards.SUMMARY).reshape(labels.shape) for part in parts]
    assert_same_bits(shards.loss(shards.merge(sent)), shards.loss(shards.merge(parts)))
    assert pickle.loads(pickle.dumps(parts[0])).tobytes() == parts[0].tobytes()


def test_no_holder_needs_the_label() -> None:
    """Smoothing takes the number of all classes, and of all that are allowed."""
    logits, labels = problem((6, 12))
    where = np.arange(12) % 4 != 3
    labels = np.where(where[labels], labels, 0)
    for options in ({"label_smoothing": 0.1}, {"label_smoothing": 0.1, "where": where}):
        loss, grad, _ = results(logits, labels, blocks_of(12, (1, 3, 4, 11)), "mean", **options)
        expected, expected_grad = sx.value_and_grad(logits, labels, **options)
        np.testing.assert_allclose(loss, expected, rtol=1e-14)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-13, atol=1e-17)


def test_the_gradient_of_parts_of_the_rows_has_the_bits_of_the_whole() -> None:
    logits, labels = problem((50, 30))
    blocks = blocks_of(30, (7, 20))
    whole = results(logits, labels, blocks, "mean", normalizer=50)[1]
    for size in (1, 7, 49):
        rows = [slice(start, start + size) for start in range(0, 50, size)]
        parts = [results(logits[part], labels[part], blocks, "mean", normalizer=50)[1] for part in rows]
        assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("of_rows", [2e-310, 1e-200, 1.0, 1e200, 1e308])
@pytest.mark.parametrize("of_classes", [1e-290, 1e-200, 1.0, 1e200, 1e300])
@pytest.mark.parametrize("kind", ["labels", "soft", "pair"])
def test_weights_of_any_size(kind: str, of_classes: float, of_rows: float) -> None:
    """The mean does not depend on their size, also if all products of both are 0 or infinite."""
    logits, targets = problem((5, 8), kind)
    rows, classes = np.array([1, 0, 1, 0.5, 1]), np.arange(1, 9.0)
    expected = sx.value_and_grad(logits, targets, sample_weight=rows, weight=classes, label_smoothing=0.1)
    options: dict[str, Any] = {"sample_weight": rows * of_rows, "weight": classes * of_classes}
    options["label_smoothing"] = 0.1
    loss, grad, _ = results(logits, targets, blocks_of(8, (5,)), "mean", **options)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-12, atol=1e-15)
    nothing = results(logits, targets, blocks_of(8, (5,)), "mean", normalizer=0, **options)
    assert nothing[0] == 0
    assert not nothing[1].any()


def test_numbers_near_the_end_of_the_range() -> None:
    logits, labels = problem((5, 8))
    expected = sx.value_and_grad(logits, labels)
    loss, grad, _ = results(logits, labels, blocks_of(8, (3, 5)), "mean", weight=np.full(8, 1e307))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-12, atol=1e-16)
    large = results(logits, labels, blocks_of(8, (3, 5)), "sum", sample_weight=np.full(5, 1e306))
    np.testing.assert_allclose(large[0] / 5e306, expected[0], rtol=1e-13)
    np.testing.assert_allclose(large[1] / 5e306, expected[1], rtol=1e-12, atol=1e-16)


def outs(shape: tuple[int, int]) -> Iterator[tuple[str, Array, Array]]:
    """Logits of this shape, and where their gradient goes."""
    logits, _ = problem(shape)
    yield "in place", *[logits.copy()] * 2
    yield "another dtype", logits, np.empty(shape, np.float32)
    yield "strides", logits, np.empty((shape[0], 2 * shape[1]))[:, ::2]
    memory = np.zeros((shape[0] + 1, shape[1]))
    memory[:-1] = logits
    yield "overlapping", memory[:-1], memory[1:]


def test_out_and_axis() -> None:
    shape = (9, 8)
    logits, labels = problem(shape)
    expected = sx.value_and_grad(logits, labels)[1]
    for name, x, out in outs(shape):
        merged = shards.summarize(x, labels, first_class=0, n_classes=8)
        assert shards.grad(x, labels, merged, first_class=0, out=out) is out, name
        np.testing.assert_allclose(out, expected.astype(out.dtype), rtol=1e-6 if out.dtype == np.float32 else 1e-13)
    images, labels = problem((3, 4, 5))
    merged = shards.summarize(np.moveaxis(images, -1, 1), labels, first_class=0, n_classes=5, axis=1)
    grad = shards.grad(np.moveaxis(images, -1, 1), labels, merged, first_class=0, axis=1)
    np.testing.assert_allclose(np.moveaxis(grad, 1, -1), sx.value_and_grad(images, labels)[1], rtol=1e-12)


def test_memory_is_bounded() -> None:
    logits, labels = problem((4000, 500), dtype="float32")
    out = np.empty_like(logits)
    tracemalloc.start()
    merged = shards.summarize(logits, labels, first_class=0, n_classes=500)
    shards.grad(logits, labels, merged, first_class=0, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits.nbytes / 2


def test_no_flag_warns_or_raises() -> None:
    logits, labels = unruly((34, 6))
    with np.errstate(all="raise"):
        results(logits, labels, blocks_of(6, (2,)), "mean", label_smoothing=0.1, z_loss=0.1)
        shards.lse(shards.merge(summaries(logits, labels, blocks_of(6, (2,)))))


X, Y = problem((3, 4))
S = shards.summarize(X, Y, first_class=0, n_classes=4)
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: shards.summarize(X, Y, first_class=1, n_classes=4), ValueError, "block of 4 classes from first_class = 1"),
    (lambda: shards.summarize(X, Y, first_class=-1, n_classes=4), ValueError, "first_class = -1"),
    (lambda: shards.summarize(X, Y, first_class=0.0, n_classes=4), TypeError, "must be integers, got float and int"),  # type: ignore[arg-type]
    (lambda: shards.summarize(X, Y, first_class=0, n_classes=2**31), ValueError, "n_classes must be at most"),
    (lambda: shards.summarize(X, Y + 9, first_class=0, n_classes=9), ValueError, "expected 0 <= label < 9"),
    (lambda: shards.summarize(X, Y[:2], first_class=0, n_classes=4), ValueError, "targets must be class labels"),
    (lambda: shards.summarize(X, np.ones((3, 9)), first_class=0, n_classes=9), ValueError, "distributions of shape"),
    (lambda: shards.summarize(X, Y, first_class=0, n_classes=9, weight=np.ones(9)), ValueError, "weight must have one"),
    (lambda: shards.merge([]), ValueError, "merge needs at least one summary"),
    (lambda: shards.merge([S, S[:2]]), ValueError, r"shapes \(3,\) and, of summaries\[1\], \(2,\)"),
    (lambda: shards.merge([S, X]), TypeError, r"summaries\[1\] must be an array of shards.SUMMARY.*dtype float64"),
    (lambda: shards.loss([1.0]), TypeError, "merged must be an array of shards.SUMMARY.*got list"),  # type: ignore[call-overload]
    (lambda: shards.loss(S, reduction="all"), ValueError, "reduction must be"),  # type: ignore[call-overload]
    (lambda: shards.loss(S, reduction="sum", normalizer=1), ValueError, "normalizer is what"),
    (lambda: shards.loss(S, sample_weight=np.ones(2)), ValueError, "sample_weight must have one number for each row"),
    (lambda: shards.loss(S, label_smooting=1), TypeError, "did you mean 'label_smoothing'"),  # type: ignore[call-overload]
    (lambda: shards.grad(X[:2], Y[:2], S, first_class=0), ValueError, r"shape of the rows, \(2,\)"),
    (lambda: shards.grad(X, Y, S, first_class=0, out=np.ones(3)), ValueError, "out must have the shape"),
    (lambda: shards.softmax(X[:1], S), ValueError, "merged must have the shape of the rows"),
    (lambda: shards.softmax(X, S, z_loss=1), TypeError, "z_loss changes a loss"),  # type: ignore[call-arg]
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_every_function_has_an_example() -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(shards) if test.examples]
    assert {test.name for test in tests} == {f"softxent.shards.{name}" for name in set(shards.__all__) - {"SUMMARY"}}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
