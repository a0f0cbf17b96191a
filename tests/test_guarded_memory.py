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
from support import ALL_KINDS, FLOATS, HALVES, OPTIONS, assert_same_bits, optioned, problem, row_by_row

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
CLASSES = (1, 2, 3, 4, 5, 7, 9, 15, 16, 17, 33, 63, 65, 127, 128, 129, 168, 169, 252, 253, 481, 482, 497, 1000)


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
    """For logits, targets and gradient."""
    return Guarded(), Guarded(), Guarded()


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
            for region, values in zip(guarded, (x, t, np.zeros_like(g)), strict=True)
        )
        assert_same_bits(sx.cross_entropy(x, t, axis=axis, reduction="none"), losses[:n_rows])
        for into in (out, x):
            sx.value_and_grad(x, t, axis=axis, reduction="sum", out=into)
            assert_same_bits(into, g)


@pytest.fixture(scope="module")
def more_guarded() -> tuple[Guarded, ...]:
    """For logits, two arrays of targets, gradient, and those of the options."""
    return tuple(Guarded() for _ in range(7))


@pytest.mark.parametrize("n_classes", [1, 3, 10, 17, 64, 129, 253, 700])
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_the_arrays_of_options(more_guarded: tuple[Guarded, ...], dtype: str, kind: str, n_classes: int) -> None:
    for n_rows, axis, names in product((1, 9, 33), (0, 1), (("where", "weight"), OPTIONS)):
        logits, targets, options = optioned((n_rows, n_classes), kind, names, dtype, axis)
        loss, grad = sx.value_and_grad(logits, targets, **options)
        parts = targets if isinstance(targets, tuple) else (targets,)
        by_name = {name: options[name] for name in ("weight", "where", "sample_weight") if name in options}
        arrays = [logits, np.zeros_like(grad), *by_name.values(), *parts]
        for at_end in (False, True):
            x, out, *rest = (region.place(a, at_end, False) for region, a in zip(more_guarded, arrays, strict=False))
            placed = dict(zip(by_name, rest, strict=False))
            t = tuple(rest[len(placed) :]) if isinstance(targets, tuple) else rest[-1]
            for into in (out, x):
                assert_same_bits(sx.value_and_grad(x, t, **{**options, **placed}, out=into)[0], loss)
                assert_same_bits(into, grad)


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
