"""Products of matrices for the linear head: rows of an array by their number, weights of any dtype and strides, and
sums of products over chunks of rows.

NumPy's BLAS computes them. It takes matrices of its own dtype that are contiguous along one axis. Other weights are
copied by tiles, groups of classes, so that there is no whole copy. Products are added to a gradient by tiles, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

TILE_BYTES = 2**21  # stays in a cache near the core, and is enough for BLAS to work on
LEAST_TILE = 64  # classes
FEW = 16  # classes: up to here, BLAS is faster with the weights of an input side by side (measured)
MANY = 256  # rows, for which it is worth a copy of so few weights

Selection = slice | np.ndarray  # rows in a row, or their numbers


def is_for_blas(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether NumPy multiplies this matrix as it is. Else it would copy it each time, or use no BLAS."""
    if array.dtype != dtype or not array.dtype.isnative or not array.flags.aligned:
        return False
    (m, n), (down, across), size = array.shape, array.strides, array.itemsize
    return (across == size and down % size == 0 and down >= n * size and m > 0) or (
        down == size and across % size == 0 and across >= m * size and n > 0
    )


def widen(array: np.ndarray, out: np.ndarray) -> None:
    """Copy into an array of another floating dtype, contiguous and at least as wide."""
    if array.dtype.name == "bfloat16" and out.dtype == np.float32:
        # The upper half of a float32. This is several times as fast as the conversion of ml_dtypes.
        np.left_shift(array.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, array, casting="unsafe")


def widened(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    out = np.empty(array.shape, dtype)
    widen(array, out)
    return out


def _are_in_step(leading: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether one step leads from each row over these axes to the next."""
    axes = [axis for axis in zip(leading, strides, strict=False) if axis[0] != 1]
    return all(step == n_next * step_next for (_, step), (n_next, step_next) in pairwise(axes))


class Rows:
    """The rows of an array (..., n), numbered over its leading axes, whatever its strides."""

    has_rows = True

    def __init__(self, array: np.ndarray, n_leading: int) -> None:
        self.leading = array.shape[:n_leading]
        self.is_flat = array.flags.c_contiguous or _are_in_step(self.leading, array.strides)
        if self.is_flat:
            array = array.reshape(math.prod(self.leading), *array.shape[n_leading:])  # no copy
        self.array = array

    def _place(self, rows: Selection) -> Any:
        if self.is_flat:
            return rows
        return np.unravel_index(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows, self.leading)

    def __getitem__(self, rows: Selection) -> np.ndarray:
        """A view of consecutive rows where that is possible, else a copy."""
        found: np.ndarray = self.array[self._place(rows)]
        return found

    def add(self, rows: Selection, values: np.ndarray) -> None:
        place = self._place(rows)
        self.array[place] = np.add(self.array[place], values)

    def __setitem__(self, rows: Selection, values: np.ndarray) -> None:
        self.array[self._place(rows)] = values


class Operand:
    """A matrix that is not an array, such as a sparse one: what it offers is `@`, `T` and perhaps rows of it."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.shape, self.dtype = _shape_and_dtype(matrix)
        try:
            matrix[0:0]
            self.has_rows = True
        except (IndexError, NotImplementedError, TypeError, ValueError):  # such as a linear operator
            self.has_rows = False

    def __getitem__(self, rows: Selection) -> Any:
        whole = isinstance(rows, slice) and rows.stop - rows.start == self.matrix.shape[0]
        return self.matrix if whole or not self.has_rows else self.matrix[rows]


def _shape_and_dtype(matrix: Any) -> tuple[tuple[int, int], np.dtype]:
    try:
        n_rows, n_columns = matrix.shape
        return (int(n_rows), int(n_columns)), np.dtype(matrix.dtype)
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            f"inputs must be an array, or a matrix with shape (N, D) and a dtype, got {type(matrix).__name__}"
        ) from None


def tile_of(n_columns: int, dtype: np.dtype, memory: float) -> int:
    """How many rows of a matrix make a tile; there are two of them in the memory, and much else."""
    return max(LEAST_TILE, int(min(TILE_BYTES, memory / 8)) // max(1, n_columns * dtype.itemsize))


class Weights:
    """A matrix (C, D) of any dtype and strides, to multiply by in `dtype`."""

    def __init__(self, matrix: np.ndarray, dtype: np.dtype, memory: float, n_rows: int) -> None:
        self.matrix, self.dtype = matrix, dtype
        self.transposed: np.ndarray | None = None
        n_classes, n_columns = matrix.shape
        self.n_at_once = n_classes
        is_by_input = n_classes <= FEW and n_rows >= MANY
        if not is_for_blas(matrix, dtype) or (is_by_input and not matrix.flags.f_contiguous):
            self.n_at_once = min(n_classes, tile_of(n_columns, dtype, memory))
            self.buffer = np.empty((self.n_at_once, n_columns), dtype, order="F" if is_by_input else "C")
            if self.n_at_once == n_classes:
                widen(matrix, self.buffer)
                self.matrix = self.buffer

    def tiles(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Groups of classes, and their weights."""
        n_classes = len(self.matrix)
        if self.n_at_once == n_classes:
            yield slice(None), self.matrix
            return
        for start in range(0, n_classes, self.n_at_once):
            part = self.matrix[start : start + self.n_at_once]
            widen(part, self.buffer[: len(part)])
            yield slice(start, start + len(part)), self.buffer[: len(part)]

    def multiply(self, x: Any, bias: np.ndarray | None, out: np.ndarray, n_at_once: int) -> None:
        """out = x @ W.T + bias, `n_at_once` rows at a time: BLAS may round a row otherwise if others are beside it."""
        if not isinstance(x, np.ndarray):
            product = np.asarray(x @ self._transposed())
            if product.shape != out.shape:
                raise ValueError(f"inputs @ array must be of shape {out.shape}, got {product.shape}")
            np.add(product, 0 if bias is None else bias, out=out, casting="unsafe")
            return
        for classes, weights in self.tiles():
            for start in range(0, len(x), n_at_once):
                rows = slice(start, start + n_at_once)
                np.matmul(x[rows], weights.T, out=out[rows, classes])
        if bias is not None:
            np.add(out, bias, out=out)

    def _transposed(self) -> np.ndarray:
        """The matrix (D, C) with classes side by side: SciPy would copy any other one in each product."""
        if self.transposed is None:
            self.transposed = np.ascontiguousarray(self.matrix.T, self.dtype)
        return self.transposed

    def multiply_back(self, g: np.ndarray, out: np.ndarray) -> None:
        """out = g @ W."""
        for classes, weights in self.tiles():
            if classes.start in (None, 0):
                np.matmul(g[:, classes], weights, out=out)
            else:
                out += g[:, classes] @ weights


class SumOfProducts:
    """The sum of g.T @ x over chunks of rows, in `dtype`; what `out` gets is rounded once.

    It is summed in `out` itself where BLAS can write there, unless `apart`.
    """

    def __init__(self, out: np.ndarray, dtype: np.dtype, memory: float, accumulate: bool, apart: bool) -> None:
        self.out, self.accumulate, self.apart = out, accumulate, apart
        self.total = out
        self.is_empty = True
        if apart:
            return  # the total is what the first product returns
        if is_for_blas(out, dtype):
            self.is_empty = not accumulate
        else:
            self.total = np.empty(out.shape, dtype)
        self.n_at_once = min(len(out), tile_of(out.shape[1], dtype, memory))
        self.buffer = np.empty((self.n_at_once, out.shape[1]), dtype)

    def add(self, g: np.ndarray, x: Any) -> None:
        if self.apart:
            product = np.asarray(x.T @ g).T
            if product.shape != self.out.shape:
                raise ValueError(f"inputs.T @ array must be of shape {self.out.shape[::-1]}, got {product.shape[::-1]}")
            self.total = product if self.is_empty else self.total + product
        elif self.is_empty:
            np.matmul(g.T, x, out=self.total)
        else:
            for start in range(0, len(self.total), self.n_at_once):
                classes = slice(start, min(start + self.n_at_once, len(self.total)))
                product = self.buffer[: classes.stop - start]
                np.matmul(g[:, classes].T, x, out=product)
                self.total[classes] += product
        self.is_empty = False

    def finish(self) -> None:
        """Write the sum to `out`, or add it to what is there."""
        if self.is_empty:
            self.total = np.zeros((), self.out.dtype)
        if self.total is not self.out:
            finish(self.total, self.out, self.accumulate)


def finish(total: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
    """Write `total` to `out`, or add it to what is there, rounded once."""
    if accumulate:
        np.add(out, total, out=out, casting="unsafe")
    else:
        np.copyto(out, total, casting="unsafe")
