"""Nothing is read or written before an array's first byte or after its last: there lie pages that nobody may touch.

A kernel that did would end the whole test run with a segmentation fault.
"""

import ctypes
import errno
import mmap
import os
import sys
from itertools import product

import numpy as np
import pytest
from support import FLOATS, HALVES, assert_same_bits, problem, row_by_row

import softxent as sx

pytestmark = [
    pytest.mark.usefixtures("level"),
    pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does"),
]

PAGE = mmap.PAGESIZE
SIZE = 1 << 20
PROT_NONE = 0

# Around the numbers of lanes; from what vectors and columns leave over to where the tiles of the narrow kernel fill up.
ROWS = (1, 9, 32, 33)
CLASSES = (1, 2, 3, 4, 5, 7, 9, 15, 16, 17, 33, 63, 65, 127, 128, 129, 168, 169, 252, 253, 481, 482, 497, 1000, 1023)


class Guarded:
    """Memory between two pages that nobody may touch."""

    def __init__(self) -> None:
        self.memory = np.frombuffer(mmap.mmap(-1, SIZE + 2 * PAGE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for start in (0, PAGE + SIZE):
            page = ctypes.c_void_p(self.memory.ctypes.data + start)
            if libc.mprotect(page, ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def place(self, values: np.ndarray, at_end: bool, backwards: bool) -> np.ndarray:
        """A copy whose last byte, or first byte, is the last, or first, that may be touched."""
        start = PAGE + (SIZE - values.nbytes if at_end else 0)
        array = np.ndarray(values.shape, values.dtype, self.memory, start)
        if backwards:
            array = array[::-1]
        array[...] = values
        return array


@pytest.fixture(scope="module")
def guarded() -> tuple[Guarded, ...]:
    """For logits, targets and gradient, and for amounts, weights of classes and of rows, and allowed classes."""
    return tuple(Guarded() for _ in range(7))


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_every_array_next_to_a_guard(guarded: tuple[Guarded, ...], dtype: str, kind: str, n_classes: int) -> None:
    logits, targets = problem((max(ROWS), n_classes), kind, dtype)
    losses, grad = row_by_row(logits, targets)
    if kind == "labels":
        targets = targets.astype("i1" if n_classes < 128 else "i2")
    for n_rows, axis, at_end, backwards in product(ROWS, (0, 1), (False, True), (False, True)):
        x, t, g = (a[:n_rows].T if axis == 0 else a[:n_rows] for a in (logits, targets, grad))
        x, t, out = (
            region.place(values, at_end, backwards)
            for region, values in zip(guarded, (x, t, np.zeros_like(g)), strict=False)
        )
        assert_same_bits(sx.cross_entropy(x, t, axis=axis, reduction="none"), losses[:n_rows])
        for into in (out, x):
            sx.value_and_grad(x, t, axis=axis, reduction="sum", out=into)
            assert_same_bits(into, g)


def arrays_of_options(shape: tuple[int, int], kind: str, dtype: str) -> tuple[np.ndarray, ...]:
    """Logits (rows, classes), targets, a place for the gradient, amounts, weights of classes and of rows, a mask."""
    rng = np.random.default_rng((*shape, len(kind)))
    logits, targets = problem(shape, "labels" if kind == "pairs" else kind, dtype)
    amounts = np.zeros(0)
    if kind == "labels":
        targets = np.where(rng.random(shape[0]) < 0.1, -100, targets).astype("i1" if shape[1] < 128 else "i2")
    if kind == "pairs":
        targets, amounts = rng.integers(shape[1], size=(shape[0], 3)), rng.random((shape[0], 3))
    computed_in = "float64" if dtype == "float64" else "float32"
    allowed = rng.random(shape) < 0.7
    allowed[:, shape[1] // 2] = True
    return (
        logits,
        targets,
        np.zeros(shape, dtype),
        amounts.astype(computed_in),
        rng.random(shape[1]).astype(computed_in),
        rng.random(shape[0]).astype(dtype),
        allowed,
    )


@pytest.mark.parametrize("n_classes", [*CLASSES, 20_001])
@pytest.mark.parametrize("kind", ["labels", "soft", "pairs"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_all_options_next_to_a_guard(guarded: tuple[Guarded, ...], dtype: str, kind: str, n_classes: int) -> None:
    """With all options and with each array alone, at either end: the same bits as anywhere else."""
    scalars = {"label_smoothing": 0.1, "temperature": 1.7, "softcap": 5.0, "z_loss": 0.01, "reduction": "none"}
    for n_rows, axis, at_end in product((1, 9, 33) if n_classes < 20_000 else (3, 5), (0, 1), (False, True)):
        elsewhere = arrays_of_options((n_rows, n_classes), kind, dtype)
        if axis == 0:
            moved = (True, kind == "soft", True, False, False, False, True)
            elsewhere = tuple(a.T.copy() if move else a for a, move in zip(elsewhere, moved, strict=True))
        guards = tuple(region.place(a, at_end, False) for region, a in zip(guarded, elsewhere, strict=True))
        together = ("weight", "sample_weight", "where")
        for names in (together, ("weight",), ("sample_weight",), ("where",), ()) if n_rows == 9 else (together,):
            results = []
            for x, t, out, amounts, *weights in (elsewhere, guards):
                arrays = dict(zip(("weight", "sample_weight", "where"), weights, strict=True))
                options = {"axis": axis} | {name: arrays[name] for name in names}
                options |= {} if dtype == "float32" else {"n_threads": 1}  # several share a long row
                options |= {"ignore_index": -100} if kind == "labels" else {}
                options |= scalars if len(names) != 1 else {"reduction": "none"}
                targets = (t, amounts) if kind == "pairs" else t
                losses, grad = sx.value_and_grad(x, targets, out=out, **options)
                results.append((losses, grad.copy(), sx.cross_entropy(x, targets, **options)))
                if kind == "labels" and n_rows < max(ROWS):
                    results[-1] += sx.evaluate(x, targets, **options)
            for one, other in zip(*results, strict=True):
                assert_same_bits(one, other)


@pytest.mark.parametrize("n_classes", [*CLASSES, 20_001])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_the_family_next_to_a_guard(guarded: tuple[Guarded, ...], dtype: str, n_classes: int) -> None:
    """Each array of the functions besides the loss at either end: the same bits as anywhere else."""
    for n_rows, axis, at_end in product((1, 9, 33) if n_classes < 20_000 else (3,), (0, 1), (False, True)):
        logits, labels = problem((n_rows, n_classes), dtype=dtype)
        x = np.ascontiguousarray(logits.T if axis == 0 else logits)
        elsewhere = (x, np.cos(x.astype(float)).astype(dtype), np.zeros_like(x), np.zeros_like(x), labels)
        guards = tuple(region.place(a, at_end, False) for region, a in zip(guarded, elsewhere, strict=False))
        results = []
        for x, v, out, hess, y in (elsewhere, guards):
            made = [np.asarray(sx.logsumexp(x, axis=axis)).copy()]
            for function in (sx.softmax, sx.log_softmax):
                made.append(function(x, axis=axis, out=out).copy())
            for product_of in (sx.softmax_vjp, sx.log_softmax_vjp):
                made.append(product_of(x, v, axis=axis, out=out).copy())
            made.append(sx.hvp(x, y, v, axis=axis, out=out).copy())
            made.append(sx.hvp(None, y, v, probs=x, axis=axis, out=out).copy())
            made += [array.copy() for array in sx.value_grad_and_hess(x, y, axis=axis, out=(out, hess))[1:]]
            results.append(made)
        for one, other in zip(*results, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
def test_the_guard_is_there(guarded: tuple[Guarded, ...], at_end: bool) -> None:
    """The system, asked to read a byte on either side of the edge, says that it cannot beyond it."""
    libc = ctypes.CDLL(None, use_errno=True)
    ends = os.pipe()
    for region in guarded:
        byte = region.place(np.zeros(1, np.uint8), at_end, False).ctypes.data
        assert libc.write(ends[1], ctypes.c_void_p(byte), ctypes.c_size_t(1)) == 1
        beyond = ctypes.c_void_p(byte + (1 if at_end else -1))
        assert libc.write(ends[1], beyond, ctypes.c_size_t(1)) == -1
        assert ctypes.get_errno() == errno.EFAULT
    for end in ends:
        os.close(end)
