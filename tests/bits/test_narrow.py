"""A row gives the same bits alone and among others, and whichever kernel visits it.

The wide kernel takes a row at a time; the narrow one as many as there are lanes: for few classes, and where rows cannot
be loaded as they are, as long as its tiles fit; the middle one groups of rows in between, if there are enough of them.
"""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FLOATS,
    HALVES,
    Layout,
    assert_same_bits,
    assert_same_results,
    computed_in,
    layouts,
    row_by_row,
    sparse,
    unruly,
)

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

KINDS = ("labels", "distributions")
ROWS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)
# Around the widths of vectors and blocks; where the middle and the wide kernel take over; where three tiles, two and
# one just fit.
CLASSES = (
    *range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, *range(127, 131), *range(166, 170), 200,
    224, 225, *range(246, 261), 320, 321, *range(480, 483), *range(495, 516), 1000, 1024, 1025, 2048, 2049, 4096, 4097,
)  # fmt: skip
ORDERS = {
    "side by side": Layout((0, 1), (1, 1), False, 0),
    "classes first": Layout((1, 0), (1, 1), False, 0),
    "rows apart": Layout((0, 1), (2, 1), False, 0),
    "classes apart": Layout((0, 1), (1, 3), False, 8),
    "backwards": Layout((1, 0), (-1, -1), False, 0),
    "misaligned": Layout((0, 1), (1, 1), False, 1),
    "swapped": Layout((0, 1), (1, 1), True, 0),
}

problem = cache(unruly)


@pytest.mark.parametrize(("dtype", "n_classes"), [*product(FLOATS, CLASSES), *product(HALVES, CLASSES[::3])])
def test_alone_or_among_others(dtype: str, n_classes: int) -> None:
    numbers = ROWS if dtype in FLOATS and n_classes <= 100 else (7, 34)
    for kind in KINDS:
        logits, targets = problem((max(numbers), n_classes), kind, dtype)
        losses, grad = row_by_row(logits, targets)
        for x, t in ((logits, targets), (np.asfortranarray(logits), np.asfortranarray(targets))):
            for n_rows in numbers:
                expected = losses[:n_rows], grad[:n_rows]
                assert_same_results(sx.value_and_grad(x[:n_rows], t[:n_rows], reduction="none"), expected)
            assert_same_bits(sx.cross_entropy(x, t, reduction="none"), losses)


@pytest.mark.parametrize("n_entries", [1, 2, 8, 9, 17])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sparse_targets_alone_or_among_others(dtype: str, n_entries: int) -> None:
    logits, _ = problem((41, 10), "labels", dtype)
    targets = sparse((41, 10), n_entries, dtype)
    losses, grad = sx.value_and_grad(logits, targets, reduction="none")
    for i in range(41):
        row = slice(i, i + 1)
        alone = sx.value_and_grad(logits[row], tuple(t[row] for t in targets), reduction="none")
        assert_same_results(alone, (losses[row], grad[row]))


TRANSFORMS: dict[str, dict[str, float]] = {
    "nothing": {},
    "a temperature below 1": {"temperature": 0.7},
    "a temperature above 1": {"temperature": 1.7},
    "a cap": {"softcap": 5.0},
    "a temperature and a cap": {"temperature": 0.5, "softcap": 30.0},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("n_classes", [130, 345, 700])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_options_alone_or_among_others(dtype: str, n_classes: int, transform: str, masked: bool) -> None:
    """What the middle kernel makes of any row, next to what the wide one does."""
    shape = (34, n_classes)
    rng = np.random.default_rng(n_classes)
    logits, labels = problem(shape, "labels", dtype)
    weight = np.where(rng.random(n_classes) < 0.1, 0, rng.random(n_classes)).astype(computed_in(logits))
    amounts = problem(shape, "distributions", dtype)[1], sparse(shape, 3, dtype)
    rows = {"where": (rng.random(shape) < 0.8) & (np.arange(34)[:, np.newaxis] % 9 != 8)} if masked else {}
    by_row = {"sample_weight": rng.choice([-2, 0, 0.5, 1, 3], 34)}
    own = TRANSFORMS[transform]
    of_loss = {"label_smoothing": 0.1, "z_loss": 1e-3, **own}
    calls = [
        *((function, own, logits) for function in (sx.softmax, sx.log_softmax, sx.logsumexp, sx.evaluate)),
        (sx.evaluate, own, logits, labels),
        *((losses_and_grad, options, logits, labels) for options in (own, of_loss, of_loss | {"weight": weight})),
        *((losses_and_grad, options, logits, targets) for options in (own, of_loss) for targets in amounts),
    ]
    vectors = rng.normal(size=shape).astype(dtype)
    calls += [(function, own, logits, vectors) for function in (sx.softmax_vjp, sx.log_softmax_vjp)]
    if "softcap" not in own:
        smooth = [own, of_loss, of_loss | {"weight": weight}]
        for options, targets in product(smooth, (labels, *amounts) if dtype in FLOATS else (labels,)):
            calls += [(products, options, logits, targets, vectors), (hessians, options, logits, targets)]
    for function, options, *arrays in calls:
        assert_rows_are_the_same_alone(
            function, arrays, options, rows | by_row if function in (products, hessians) else rows
        )


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_classes", [130, 345, 1000, 2048, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_groups_that_overlap(dtype: str, n_classes: int, n_threads: int) -> None:
    """Among them groups whose results cannot wait: with rows of weight 0, or with rows for the wide kernel."""
    n = 270
    logits, labels = problem((n, n_classes), "labels", dtype)
    logits[50:60, ::40] = np.nan
    logits[55:65, 1] = np.finfo(dtype).max / 4
    logits[57] = np.inf
    weight = np.ones(n)
    weight[[3, 70, 71, n - 1]] = 0
    weight[[40, 110]] = 1e-300
    weight[100] = -2
    allowed = (np.random.default_rng(n_classes).random((n, n_classes)) < 0.8) & (np.arange(n)[:, np.newaxis] % 9 != 8)
    made: tuple[dict[str, Any], ...] = ({"temperature": 1.5}, {"temperature": 0.1}, {})
    for function in (softmax_too, log_softmax_too, sx.logsumexp):
        assert_rows_are_the_same_alone(function, [logits], {}, {}, n_threads=n_threads)
    for function, options in product((sx.softmax, sx.log_softmax, sx.logsumexp), made):
        assert_rows_are_the_same_alone(function, [logits], options, {"where": allowed}, n_threads=n_threads)
    for options, by_row in (
        ({}, {}),
        ({"z_loss": 1e-3}, {}),
        ({"ignore_index": labels[5]}, {}),
        ({"label_smoothing": 0.1}, {}),
        ({"label_smoothing": 0.1, "z_loss": 1e-3}, {"sample_weight": weight}),
        ({}, {"sample_weight": weight}),
        *((options, {"sample_weight": weight}) for options in made[:2]),
        *((options, {"sample_weight": weight, "where": allowed}) for options in made),
    ):
        assert_rows_are_the_same_alone(losses_and_grad, [logits, labels], options, by_row, n_threads=n_threads)
    for targets, options in (
        (problem((n, n_classes), "distributions", dtype)[1], {}),
        (sparse((n, n_classes), 3, dtype), {}),
        (labels, {"weight": np.arange(1, n_classes + 1) / n_classes, "label_smoothing": 0.1}),
    ):
        for transform in ({}, made[0]):
            assert_rows_are_the_same_alone(
                losses_and_grad, [logits, targets], options | transform, {"sample_weight": weight}, n_threads=n_threads
            )


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_lie_in_two_axes(dtype: str) -> None:
    """Where results or the mask are not evenly spaced, though the logits are, no group is made ahead of another."""
    logits, labels = problem((270, 345), "labels", dtype)
    logits, labels = logits.reshape(9, 30, 345), labels.reshape(9, 30)
    apart = (np.random.default_rng(9).random((9, 31, 345)) < 0.8)[:, 1:]
    for where in (None, apart, apart.copy()):
        for out in (np.empty((9, 31, 345), dtype)[:, 1:], np.empty_like(logits)):
            sx.value_and_grad(logits, labels, temperature=1.5, where=where, out=out, reduction="sum")
            for i in range(9):
                mask = None if where is None else where[i].copy()
                alone = sx.value_and_grad(logits[i], labels[i], temperature=1.5, where=mask, reduction="sum")[1]
                assert_same_results((alone,), (out[i],))


def assert_rows_are_the_same_alone(
    function: Any, arrays: list[Any], options: dict[str, Any], by_row: dict[str, np.ndarray], **of_all: Any
) -> None:
    """`by_row` are options with something for each row; `of_all` goes to the call with all rows only."""
    logits = arrays[0].copy()
    together = as_tuple(function(*arrays, **options, **by_row, **of_all))
    assert_same_bits(arrays[0], logits)
    for i in range(len(arrays[0])):
        row = slice(i, i + 1)
        of_row = {name: values[row] for name, values in by_row.items()}
        alone = function(*(part_of(array, row) for array in arrays), **options, **of_row)
        assert_same_results(as_tuple(alone), [result[row] for result in together])


def in_place_too(function: Any) -> Any:
    def call(logits: np.ndarray, **options: Any) -> np.ndarray:
        result, into = function(logits, **options), logits.copy()
        assert_same_bits(function(into, **options, out=into), result)
        return result

    return call


softmax_too, log_softmax_too = in_place_too(sx.softmax), in_place_too(sx.log_softmax)


def losses_and_grad(*given: Any, **options: Any) -> tuple[np.ndarray, ...]:
    """Losses, which a call without a gradient gives too, and the gradient, also in place and as another dtype."""
    losses, grad = sx.value_and_grad(*given, **options, reduction="none")
    assert_same_bits(sx.cross_entropy(*given, **options, reduction="none"), losses)
    logits, targets = given
    in_place = logits.copy()
    converted = np.empty(logits.shape, "float32" if logits.dtype == "float64" else "float64")
    for into, x in ((in_place, in_place), (converted, logits)):
        assert_same_bits(sx.value_and_grad(x, targets, **options, reduction="none", out=into)[0], losses)
    assert_same_bits(in_place, grad)
    return losses, grad, converted


def products(logits: np.ndarray, targets: Any, vectors: np.ndarray, **options: Any) -> np.ndarray:
    """Also over the vectors, and over the logits."""
    options["reduction"] = "sum"
    expected = sx.hvp(logits, targets, vectors, **options)
    in_logits, in_vectors = logits.copy(), vectors.copy()
    assert_same_bits(sx.hvp(in_logits, targets, vectors, out=in_logits, **options), expected)
    assert_same_bits(sx.hvp(logits, targets, in_vectors, out=in_vectors, **options), expected)
    return expected


def hessians(*given: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    _, grad, hess = sx.value_grad_and_hess(*given, **options, reduction="sum")
    return grad, hess


def part_of(array: Any, rows: slice) -> Any:
    return tuple(part[rows] for part in array) if isinstance(array, tuple) else array[rows]


def as_tuple(results: Any) -> tuple[np.ndarray, ...]:
    """The arrays of a result with a number for each row."""
    every = results if isinstance(results, tuple) else (results,)
    return tuple(result for result in every if np.ndim(result) > 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_each_array_in_another_order(dtype: str, kind: str, order: str) -> None:
    place = ORDERS[order].place
    for n_classes in (1, 3, 4, 7, 10, 65, 129, 168, 253, 496, 600):
        logits, targets = problem((100, n_classes), kind, dtype)
        logits, targets = logits[:33], targets[:33]
        expected = row_by_row(logits, targets)
        placed, out = place(logits)[0], place(np.zeros_like(logits))[0]
        assert_same_results(sx.value_and_grad(placed, targets, reduction="none"), expected)
        if kind == "distributions":
            assert_same_results(sx.value_and_grad(logits, place(targets)[0], reduction="none"), expected)
        for into in (out, placed):
            sx.value_and_grad(logits if into is out else placed, targets, reduction="none", out=into)
            assert_same_bits(into.astype(dtype), expected[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_classes", [1, 2, 20])
def test_a_temperature_divides_each_row_alone(dtype: str, n_classes: int) -> None:
    """Also if the quotient is subnormal, and another row has no finite one."""
    logits = np.random.default_rng(0).normal(size=(64, n_classes)).astype(dtype) * 3 * np.finfo(dtype).tiny
    labels = np.zeros(64, int)
    expected = sx.evaluate(logits, labels, temperature=1.7).lse
    logits[7::16] = np.inf
    lse = sx.evaluate(logits, labels, temperature=1.7).lse
    for i in set(range(64)) - set(range(7, 64, 16)):
        assert_same_bits(lse[i], expected[i])


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 4, 7, 70])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_rows_in_runs(dtype: str, n_classes: int, axis: int) -> None:
    """Five rows side by side, then a gap, so that no group of lanes is a single run; the gaps are not written to."""
    for kind in KINDS:
        logits, targets = problem((35, n_classes), kind, dtype)
        losses, grad = row_by_row(logits, targets)
        memory = np.full((4, 7, 8, n_classes) if axis == -1 else (4, n_classes, 7, 8), 7, dtype)
        every = memory if axis == -1 else np.moveaxis(memory, 1, -1)
        placed = every[:, :, :5]
        placed[0], placed[3] = logits.reshape(7, 5, n_classes), logits.reshape(7, 5, n_classes)
        x, t, out, both = (np.moveaxis(array, -1, axis) for array in placed)
        if kind == "distributions":
            placed[1] = targets.reshape(7, 5, n_classes)
        else:
            t = targets.reshape(7, 5)
        for source, into in ((x, out), (both, both)):
            same, _ = sx.value_and_grad(source, t, axis=axis, reduction="none", out=into)
            assert_same_bits(same.ravel(), losses)
            assert_same_bits(np.moveaxis(into, axis, -1).reshape(grad.shape), grad)
        assert (every[:, :, 5:] == 7).all()


@pytest.mark.parametrize("n_classes", [168, 200, 248, 252, 255, 256, 512])
@pytest.mark.parametrize("half", HALVES)
def test_distributions_in_halves_for_logits_in_float32(half: str, n_classes: int) -> None:
    """Their tile takes as much room as that of the logits does."""
    logits, targets = problem((33, n_classes), "distributions", half)
    expected = row_by_row(logits.astype("float32"), targets.astype("float32"))
    assert_same_results(sx.value_and_grad(logits.astype("float32"), targets, reduction="none"), expected)


@pytest.mark.parametrize("options", [{"z_loss": 1.0}, {"z_loss": 1.0, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("n_classes", [10, 96, 150])
@pytest.mark.parametrize("dtype", FLOATS)
def test_signs_of_zeros(dtype: str, n_classes: int, options: dict[str, float]) -> None:
    """A probability of 0 has the gradient -0.0 where z-loss makes the factor negative, wherever it is written."""
    rng = np.random.default_rng(n_classes)
    logits = rng.normal(-50, 1, (16, n_classes)).astype(dtype)
    logits[:, ::7] = -np.inf
    targets = rng.choice(np.arange(n_classes)[np.arange(n_classes) % 7 > 0], 16)
    losses, grad = sx.value_and_grad(logits, targets, reduction="none", **options)
    assert np.signbit(grad[:, ::7]).all()
    memory = np.empty(n_classes + 8, dtype)
    for offset in range(8):
        out = memory[offset : offset + n_classes]
        loss, _ = sx.value_and_grad(logits[0], targets[0], reduction="none", out=out, **options)
        assert_same_results((loss, out), (losses[0], grad[0]))


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("n_classes", [20, 200, 700])
@pytest.mark.parametrize("dtype", FLOATS)
def test_signs_of_zeros_of_a_class_without_weight(dtype: str, n_classes: int, zero: float) -> None:
    logits, labels = np.random.default_rng(0).normal(size=(9, n_classes)).astype(dtype), np.arange(9)
    weight = np.where(np.arange(n_classes) != 3, 1, zero).astype(dtype)
    options = {"weight": weight, "reduction": "none"}
    _, grad = sx.value_and_grad(logits, labels, sample_weight=np.full(9, -1.0), **options)
    for i in range(9):
        _, alone = sx.value_and_grad(logits[i : i + 1], labels[i : i + 1], sample_weight=[-1.0], **options)
        assert_same_bits(alone[0], grad[i])


@pytest.mark.parametrize("n_classes", [50, 256, 400])
@pytest.mark.parametrize("dtype", FLOATS)
def test_hessian_beside_nan(dtype: str, n_classes: int) -> None:
    """A NaN may hide the class with the largest logit; then none is set by itself, not even one that is not allowed."""
    logits = np.random.default_rng(0).normal(size=(9, n_classes)).astype(dtype)
    logits[3, 5], logits[3, 37] = 9, np.nan
    allowed = np.arange(n_classes) != 0
    _, _, hess = sx.value_grad_and_hess(logits, np.full(9, 10), where=allowed, reduction="sum")
    for i in range(9):
        alone = sx.value_grad_and_hess(logits[i : i + 1], [10], where=allowed, reduction="sum")[2]
        assert_same_bits(alone[0], hess[i])
    assert (hess[:, 0] == 0).all()


@pytest.mark.parametrize("n_classes", [50, 200, 400])
@pytest.mark.parametrize("z_loss", [1e35, 1e36, 1e37, 1e38])
def test_product_of_a_huge_z_loss(z_loss: float, n_classes: int) -> None:
    logits = np.full((9, n_classes), -np.log(n_classes), np.float32)
    vectors = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    together = sx.hvp(logits, np.arange(9), vectors, z_loss=z_loss, reduction="sum")
    for i in range(9):
        row = slice(i, i + 1)
        alone = sx.hvp(logits[row], [i], vectors[row], z_loss=z_loss, reduction="sum")
        assert_same_bits(alone, together[row])


@given(
    st.data(),
    st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 20), st.sampled_from(CLASSES))),
    st.sampled_from(KINDS),
    st.sampled_from(FLOATS + HALVES),
    st.sampled_from(FLOATS + HALVES),
)
def test_all_arrays_in_any_order(
    data: st.DataObject, shape: tuple[int, int], kind: str, dtype: str, out_dtype: str
) -> None:
    logits, targets = problem(shape, kind, dtype)
    losses, grad = row_by_row(logits, targets, out_dtype)
    x, t = (data.draw(layouts(a.ndim)).place(a)[0] for a in (logits, targets))
    blank = np.full(shape, 7, out_dtype)
    out, memory = data.draw(layouts(2)).place(blank)
    before = memory.copy()
    assert_same_bits(sx.value_and_grad(x, t, reduction="none", out=out)[0], losses)
    assert_same_bits(out.astype(out_dtype), grad)
    out[...] = blank
    assert_same_bits(memory, before)
