"""In place, nothing of the logits' size is allocated; nor is it for the loss alone."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.ma
import pytest
from support import FLOATS, HALVES, OPTIONS, optioned

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

SHAPES = [(200_000, 10), (8, 200_000), (2000, 300), (20, 50, 400), (200_000,), (500_000, 1)]
SMALL = 64 * 1024
# The most that each thread takes for rows that are closer together than their classes (docs/performance.md).
PANELS = 512 * 1024
# NumPy 1.26 looks for the smallest label by way of a buffer.
BUFFER = 64 * 1024 if np.__version__.startswith("1.") else 0


def peak(function: Callable[[], object]) -> int:
    """The most bytes that were allocated at once during the call, NumPy's arrays included."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_contiguous(reduction: str, kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    logits = np.zeros(shape, dtype)
    targets = np.zeros(shape[:-1], int) if kind == "labels" else np.ones(shape, dtype)
    losses = logits.nbytes // shape[-1] if reduction == "none" else 0
    assert peak(lambda: sx.cross_entropy(logits, targets, reduction=reduction)) < SMALL + losses
    assert peak(lambda: sx.value_and_grad(logits, targets, reduction=reduction, out=logits)) < SMALL + losses


@pytest.mark.parametrize(
    ("shape", "axis"), [((20, 10, 1000), 1), ((10, 30_000), 0), ((3, 480, 300), -2), ((128, 9, 200), 0)]
)
@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_another_axis(reduction: str, kind: str, dtype: str, shape: tuple[int, ...], axis: int) -> None:
    logits = np.zeros(shape, dtype)
    targets = np.zeros(np.delete(shape, axis), int) if kind == "labels" else np.ones(shape, dtype)
    n_rows = logits.size // shape[axis]
    losses = n_rows * max(4, logits.itemsize) if reduction == "none" else 0
    options = {"axis": axis, "reduction": reduction, "n_threads": 2}
    most = SMALL + BUFFER + losses + (2 * PANELS if shape[axis] > 128 else 0)
    assert peak(lambda: sx.cross_entropy(logits, targets, **options)) < most
    assert peak(lambda: sx.value_and_grad(logits, targets, out=logits, **options)) < most


@pytest.mark.parametrize("shape", [(20_000, 10), (20, 50, 400), (100, 300)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["labels", "soft", "pair"])
def test_with_options(kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    logits, targets, options = optioned(shape, kind, OPTIONS, dtype)
    assert peak(lambda: sx.cross_entropy(logits, targets, **options)) < SMALL
    assert peak(lambda: sx.value_and_grad(logits, targets, out=logits, **options)) < SMALL


@pytest.mark.parametrize("n_classes", [130, 300, 1000, 4000])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_logits_of_two_groups_are_made_where_results_go_or_in_scratch(
    n_threads: int, dtype: str, n_classes: int
) -> None:
    logits, labels = np.zeros((900, n_classes), dtype), np.zeros(900, int)
    grad, allowed = np.empty_like(logits), np.ones(logits.shape, bool)
    for options in ({"temperature": 2.0}, {"where": allowed}):
        call = {**options, "n_threads": n_threads}
        assert peak(lambda call=call: sx.value_and_grad(logits, labels, out=grad, **call)) < SMALL
        assert peak(lambda call=call: sx.softmax(logits, out=grad, **call)) < SMALL
        assert peak(lambda call=call: sx.cross_entropy(logits, labels, **call)) < SMALL + n_threads * 128 * 1024


def test_a_view_of_the_logits_is_in_place_too() -> None:
    logits, labels = np.zeros((4, 1_200_000), "float32"), np.zeros(4, int)
    assert peak(lambda: sx.value_and_grad(logits, labels, out=logits[...])) < SMALL


def test_threads_that_share_a_row_share_its_scratch() -> None:
    logits, labels = np.zeros((1, 500_000), "float16"), np.zeros(1, int)
    assert peak(lambda: sx.value_and_grad(logits, labels, out=logits, n_threads=2)) < SMALL + 500_000 * 4


@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_classes_along_another_axis_take_a_row_for_each_thread(n_threads: int) -> None:
    logits, labels = np.zeros((200_000, 8)), np.zeros(8, int)
    most = SMALL + n_threads * 200_000 * 8
    assert peak(lambda: sx.cross_entropy(logits, labels, axis=0, n_threads=n_threads)) < most
    assert peak(lambda: sx.value_and_grad(logits, labels, axis=0, out=logits, n_threads=n_threads)) < most


@pytest.mark.parametrize("n_classes", [300, 1000, 4000, 8000, 30_000, 100_000])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_classes_along_another_axis_take_panels(n_threads: int, n_classes: int) -> None:
    logits, labels = np.zeros((n_classes, 300), np.float32), np.zeros(300, int)
    soft, allowed = np.ones(logits.shape, np.float32), np.ones(logits.shape, bool)
    for targets, where, row_bytes in ((labels, None, 4 * n_classes), (soft, allowed, 9 * n_classes)):
        options = {"axis": 0, "n_threads": n_threads, "where": where, "out": logits}
        most = SMALL + n_threads * min(max(PANELS, 33 * row_bytes), 2**22)
        assert peak(lambda t=targets, options=options: sx.value_and_grad(logits, t, **options)) < most


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("shape", "targets"), [((8, 200_000), [0] * 8), ((200_000,), 5), ((8, 200_000), np.zeros(8, int).view(Subclass))]
)
def test_arguments_that_become_arrays_cost_no_more(shape: tuple[int, ...], targets: object) -> None:
    logits = np.zeros(shape)
    assert peak(lambda: sx.value_and_grad(logits, targets, out=logits)) < SMALL
    assert peak(lambda: sx.value_and_grad(logits.view(Subclass), targets, out=logits)) < SMALL


def test_no_rows_cost_nothing_however_many_classes() -> None:
    logits, labels = np.zeros((0, 10**12), np.float32), np.zeros(0, int)
    assert peak(lambda: sx.value_and_grad(logits, labels, out=logits)) < SMALL


def test_conversion_takes_a_row_for_each_thread() -> None:
    logits = np.zeros((8, 400_000))[:, ::2]
    assert peak(lambda: sx.value_and_grad(logits, np.zeros(8, int), out=logits, n_threads=1)) < 200_000 * 8 + SMALL


@pytest.mark.parametrize(
    "view",
    [lambda a: a[:, ::2], lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.T, lambda a: a.view(">f8")],
    ids=["every other class", "rows reversed", "classes reversed", "transposed", "byte-swapped"],
)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_what_must_be_converted_is_converted_row_by_row(kind: str, view: Callable[[np.ndarray], np.ndarray]) -> None:
    logits = view(np.zeros((600, 600)))
    targets = np.zeros(len(logits), int) if kind == "labels" else view(np.ones((600, 600)))
    most = SMALL + (PANELS if logits.strides[0] < logits.strides[1] else 0)
    assert peak(lambda: sx.cross_entropy(logits, targets, n_threads=1)) < most
    assert peak(lambda: sx.value_and_grad(logits, targets, out=logits, n_threads=1)) < most


@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("dtype", ["int8", *FLOATS])
def test_another_dtype_is_converted_row_by_row(dtype: str, out_dtype: str) -> None:
    logits, targets, out = np.zeros((600, 600), dtype), np.ones((600, 600), bool), np.zeros((600, 600), out_dtype)
    assert peak(lambda: sx.value_and_grad(logits, targets, out=out)) < SMALL


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["int8", *FLOATS])
def test_out_of_place_one_gradient_is_allocated(dtype: str, order: str) -> None:
    logits, labels = np.zeros((600, 600), dtype, order), np.zeros(600, int)
    most = SMALL + 600 * 600 * (4 if dtype == "float32" else 8) + (PANELS if order == "F" else 0)
    assert peak(lambda: sx.value_and_grad(logits, labels, n_threads=1)) < most


# What a linear head may take besides its buffers: reading arguments, and a piece of the target's weights.
HEAD = 2**19


@pytest.mark.parametrize("dtype", [*HALVES, *FLOATS])
@pytest.mark.parametrize(("n_rows", "n_inputs", "n_classes"), [(9000, 8, 300), (500, 16, 5000), (40_000, 4, 10)])
def test_the_loss_of_a_linear_head_takes_no_more_than_its_memory(
    n_rows: int, n_inputs: int, n_classes: int, dtype: str
) -> None:
    inputs, weight = np.zeros((n_rows, n_inputs), dtype), np.zeros((n_classes, n_inputs), dtype)
    targets = np.zeros(n_rows, int)
    targets[::7] = -1
    for memory in (2**20, 2**22):
        used = peak(lambda: sx.linear_cross_entropy(inputs, weight, targets, ignore_index=-1, memory=memory))  # noqa: B023
        assert used < memory + HEAD


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_chunk_of_a_linear_head_makes_no_array_of_the_size_of_its_weights(dtype: str) -> None:
    inputs, weight, bias = np.zeros((100, 64), dtype), np.zeros((20_000, 64), dtype), np.zeros(20_000, dtype)
    out = (np.zeros_like(inputs), np.zeros_like(weight), np.zeros_like(bias))
    targets = np.zeros(100, int)
    memory = weight.nbytes / 4
    used = peak(
        lambda: sx.linear_value_and_grad(
            inputs, weight.T.copy().T, targets, linear_bias=bias, out=out, accumulate=True, memory=memory
        )
    )
    assert used < weight.nbytes + memory + HEAD  # the copy above, and the buffers
    strided = np.zeros((40_000, 128), dtype)[::2, ::2]
    assert peak(lambda: sx.linear_cross_entropy(inputs, strided, targets, memory=memory)) < memory + HEAD
