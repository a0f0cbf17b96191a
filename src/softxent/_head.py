"""The loops over the rows of a linear head: a chunk of logits into a buffer, its loss and gradient in place, and the
products of that with inputs and weights.

The losses of a block of rows are summed together, and blocks do not depend on the chunks. So the loss has the same bits
for any chunks, if BLAS computes the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from softxent import _loss, _threads
from softxent._counting import RowWeights, scaled_weights, weigh_rows
from softxent._inputs import FLOATS, is_float, is_real, read_array, read_targets, taken_as
from softxent._options import Given, read_number
from softxent._products import Operand, Rows, Selection, SumOfProducts, Weights, finish, is_for_blas, tile_of, widened
from softxent.call._call import RESULTS

BLOCK = 8192  # rows whose losses are summed together; no chunk has more
NEAR = 2**19  # bytes of inputs and logits that stay in a cache near the core between the products
ENOUGH = 1024  # rows that BLAS multiplies at full speed, whether near or not
STEP = 2**20  # numbers of targets that are weighed at once
NARROW = 128  # float64, no more classes, no fewer inputs: faster with the logits of a class side by side (measured)
MEMORY = 48.0 * 2**20  # of the chunks that BLAS always multiplies at once, so that larger ones have the same bits
RANGE = 2.0**1000  # of a divisor and a sum. A kernel scales the losses of rows if the divisor is beyond that.


def read_real(value: ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = read_array(value, name)
    if not is_real(array.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must be of shape {shape}, got {array.shape}")
    return array


def _read_floats(value: Any, name: str) -> np.ndarray:
    array = read_array(value, name)
    _check_dtype(array.dtype, name)
    return array


def _check_dtype(dtype: np.dtype, name: str) -> None:
    if not (is_float(dtype) or dtype.kind in "iub"):
        raise TypeError(f"{name} must be {FLOATS}, integers or bool, got dtype {dtype}")


def _read_inputs(inputs: Any) -> np.ndarray | Operand:
    if isinstance(inputs, np.ndarray) or hasattr(inputs, "__array__") or not hasattr(type(inputs), "__matmul__"):
        array = _read_floats(inputs, "inputs")
        if array.ndim == 0:
            raise ValueError(f"inputs must be of shape (..., D), got a scalar, {array}")
        return array
    matrix = Operand(inputs)
    _check_dtype(matrix.dtype, "inputs")
    return matrix


def _read_weight(linear_weight: Any, n_inputs: int) -> np.ndarray:
    weight = _read_floats(linear_weight, "linear_weight")
    if weight.ndim != 2 or weight.shape[1] != n_inputs:
        advice = "; pass linear_weight.T" if weight.ndim == 2 and weight.shape[0] == n_inputs else ""
        raise ValueError(
            f"linear_weight must be of shape (C, D) with D = {n_inputs} as the last axis of the inputs, "
            f"got {weight.shape}{advice}"
        )
    if len(weight) == 0:
        raise ValueError(f"linear_weight must have at least one class: expected C >= 1, got shape {weight.shape}")
    return weight


def _read_probs(probs: Any, leading: tuple[int, ...]) -> np.ndarray:
    p = _read_floats(probs, "probs")
    if p.ndim != len(leading) + 1 or p.shape[:-1] != leading or p.shape[-1] == 0:
        raise ValueError(f"probs must have the shape of the logits, {leading} and one axis more, got {p.shape}")
    return p


class Head:
    """The arguments of a call, read, and what its loops need to know of them."""

    def __init__(
        self,
        inputs: Any,
        linear_weight: Any,
        targets: Any,
        linear_bias: Any,
        memory: Any,
        n_threads: SupportsIndex | None,
        given: Given,
        probs: Any = None,
    ) -> None:
        self.memory = read_number("memory", memory, positive=True)
        self.threads = _threads.setting if n_threads is None else _threads.checked(n_threads, "n_threads")
        self.inputs = _read_inputs(inputs)
        self.is_operand = isinstance(self.inputs, Operand)
        self.leading, self.n_inputs = self.inputs.shape[:-1], self.inputs.shape[-1]
        self.n_rows, axis = math.prod(self.leading), len(self.leading)
        self.weight: Any = None
        self.probs: Any = None
        if probs is None:
            other = self.weight = _read_weight(linear_weight, self.n_inputs)
            self.n_classes = len(other)
        else:
            other = self.probs = _read_probs(probs, self.leading)
            self.n_classes = other.shape[-1]
        is_narrow = all(is_float(dtype) and dtype.itemsize <= 4 for dtype in (self.inputs.dtype, other.dtype))
        self.dtype = np.dtype(np.float32 if is_narrow else np.float64)
        self.bias = None if linear_bias is None else read_real(linear_bias, "linear_bias", (self.n_classes,))
        # Targets and options are read beside logits that take no memory.
        logits = np.ndarray((*self.leading, self.n_classes), self.dtype, bytes(8), 0, (0,) * (axis + 1))
        self.targets = read_targets(targets, logits, axis, given.ignore_index, self.dtype)
        self.given = given.fitted(logits, axis, self.dtype)
        self.has_labels = not isinstance(self.targets, tuple) and self.targets.ndim == axis
        self.rows_of_inputs: Any = self.inputs if isinstance(self.inputs, Operand) else Rows(self.inputs, axis)
        self.rows_of_targets = [Rows(part, axis) for part in self._parts_of_targets()]
        self.rows_of_options = {
            name: Rows(getattr(self.given, name), axis)
            for name in ("sample_weight", "where")
            if getattr(self.given, name) is not None
        }

    def _parts_of_targets(self) -> tuple[np.ndarray, ...]:
        return self.targets if isinstance(self.targets, tuple) else (self.targets,)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays that are read in the loops, with the names of the arguments."""
        options = ((name, getattr(self.given, name)) for name in ("weight", "sample_weight", "where"))
        named = (("inputs", self.inputs), ("linear_weight", self.weight), ("linear_bias", self.bias), *options)
        yield from ((name, array) for name, array in named if isinstance(array, np.ndarray))
        yield from (("targets", part) for part in self._parts_of_targets())

    def read_reduction(self, reduction: str, normalizer: Any) -> None:
        """How losses are summed, and what they are divided by."""
        self.mean, self.per_row, self.given.normalizer = _loss.read_reduction(reduction, normalizer)
        if self.mean and normalizer is None:
            self.given.normalizer = self._total_weight()

    # Which rows there are

    @property
    def may_skip(self) -> bool:
        """Whether there may be rows that do not count."""
        return self.given.ignore_index is not None or self.given.sample_weight is not None or self.counts_nothing

    @property
    def counts_nothing(self) -> bool:
        return self.mean and self.given.normalizer == 0

    def _total_weight(self) -> float:
        """What the mean divides by."""
        if self.given.weight is None and self.given.ignore_index is None and self.given.sample_weight is None:
            return float(self.n_rows)
        with np.errstate(all="ignore"):
            total = sum(float(weights.shares().sum()) for weights in self._weights())
        return total if 1 / RANGE < abs(total) < RANGE else self._far_total_weight()

    def _far_total_weight(self) -> float:
        """The same, if it seems to be 0 or out of range. Rows get a common factor then, which changes no mean."""
        from softxent._doubles import Sum  # rarely needed

        total = Sum.merged(Sum.of(*weights) for weights in self._weights())
        shift = total.shift()
        if shift:
            self.given.sample_weight = scaled_weights(self.given.sample_weight, self.leading, shift)
            self.rows_of_options["sample_weight"] = Rows(self.given.sample_weight, len(self.leading))
        return total.rounded(shift)

    def _weights(self) -> Iterator[RowWeights]:
        step = max(1, min(BLOCK, STEP // self.n_classes))
        for start in range(0, self.n_rows, step):
            yield weigh_rows(*self._at(slice(start, min(start + step, self.n_rows))))

    def _at(self, rows: Selection) -> tuple[Any, Given, tuple[int, ...], int, bool]:
        """Targets and options of some rows, as weigh_rows takes them."""
        parts = tuple(part[rows] for part in self.rows_of_targets)
        options = self.given
        if self.rows_of_options:
            of_rows = {name: array[rows] for name, array in self.rows_of_options.items()}
            options = Given({**self.given.__dict__, **of_rows})
        return parts if len(parts) == 2 else parts[0], options, (len(parts[0]),), 1, self.has_labels

    def blocks(self) -> Iterator[Selection]:
        """The rows that count, in blocks of the same rows for any chunks."""
        if self.counts_nothing:
            return
        # Each part of a matrix that is no array costs a copy of it, and a product of the size of the weights.
        step = max(1, self.n_rows) if self.is_operand else BLOCK
        for start in range(0, self.n_rows, step):
            rows = slice(start, min(start + step, self.n_rows))
            yield self._counted(rows) if self.may_skip and self.rows_of_inputs.has_rows else rows

    def _counted(self, rows: slice) -> Selection:
        counts = np.ones(rows.stop - rows.start, np.bool_)
        if self.given.ignore_index is not None:
            counts &= self.rows_of_targets[0][rows] != self.given.ignore_index
        if self.given.sample_weight is not None:
            counts &= self.rows_of_options["sample_weight"][rows] != 0
        return rows if counts.all() else rows.start + np.flatnonzero(counts)

    # A chunk

    def inputs_at(self, rows: Selection) -> Any:
        """The inputs of some rows, as they are multiplied."""
        found = self.rows_of_inputs[rows]
        if self.is_operand or is_for_blas(found, self.dtype):
            return found
        return widened(found, self.dtype)

    def run(
        self, rows: Selection, x: np.ndarray, grad: np.ndarray | None, losses: np.ndarray | None = None,
        result: str = "gradient", vectors: np.ndarray | None = None,
    ) -> float:  # fmt: skip
        """What a kernel makes of the logits of some rows."""
        targets, options, *_ = self._at(rows)
        return _loss.done(
            _loss.run_kernel(
                x, targets, 1, losses, grad, self.mean, self.threads, options, None, RESULTS[result], vectors
            )
        )


class Chunks:
    """How blocks of rows are cut into chunks that fit into the memory, and the buffers of a chunk."""

    def __init__(self, head: Head, n_buffers: int) -> None:
        self.head, itemsize = head, head.dtype.itemsize
        if head.is_operand:
            # Besides the buffers, a product of theirs.
            tiles, row, most = 0, (n_buffers + 1) * head.n_classes * itemsize, head.n_rows
        else:
            tiles = 2 * min(head.n_classes, tile_of(head.n_inputs, head.dtype, head.memory)) * head.n_inputs * itemsize
            row = (n_buffers * head.n_classes + 2 * head.n_inputs) * itemsize
            most = min(max(NEAR // ((head.n_classes + head.n_inputs) * itemsize), ENOUGH), BLOCK)

        def rows_in(memory: float) -> int:
            return int(max(min((memory - tiles) // row, most), 1))

        self.most = rows_in(head.memory) if head.rows_of_inputs.has_rows else max(1, head.n_rows)
        self.most_at_once = min(self.most, rows_in(MEMORY))
        is_by_class = head.dtype == np.float64 and head.n_classes <= NARROW <= head.n_inputs and not head.is_operand
        self.order: Any = "F" if is_by_class else "C"
        self.buffers = [np.empty(min(self.most, head.n_rows) * head.n_classes, head.dtype) for _ in range(n_buffers)]

    def of(self, block: Selection) -> Iterator[tuple[Selection, int, list[np.ndarray], int]]:
        """For each chunk its rows, their number, its buffers, and how many of its rows are multiplied at once."""
        start, stop = (block.start, block.stop) if isinstance(block, slice) else (0, len(block))
        n_at_once = _shared_out(stop - start, self.most_at_once)
        step = max(1, self.most // n_at_once) * n_at_once
        for first in range(start, stop, step):
            rows = slice(first, min(first + step, stop))
            n = rows.stop - rows.start
            buffers = [
                buffer[: n * self.head.n_classes].reshape((n, self.head.n_classes), order=self.order)
                for buffer in self.buffers
            ]
            yield rows if isinstance(block, slice) else block[rows], n, buffers, n_at_once


def _shared_out(n: int, most: int) -> int:
    """The size of parts of n, as few and as equal as they can be, none larger than `most`."""
    return max(1, math.ceil(n / max(1, math.ceil(n / most))))


class Gradients:
    """The gradients of a head that are wanted, added up over chunks. `arrays` are where they go, by their names."""

    def __init__(self, head: Head, arrays: dict[str, np.ndarray], accumulate: bool) -> None:
        self.head, self.arrays, self.accumulate = head, arrays, accumulate
        self.weight = self.bias = self.inputs = None
        if "linear_weight" in arrays:
            self.weight = SumOfProducts(
                arrays["linear_weight"], head.dtype, head.memory, accumulate, apart=head.is_operand
            )
        if "linear_bias" in arrays:
            self.bias = ColumnSums(head)
        if "inputs" in arrays:
            self.inputs = Rows(arrays["inputs"], len(head.leading))
            if head.may_skip and not accumulate:
                arrays["inputs"][...] = 0

    def add(self, rows: Selection, x: Any, g: np.ndarray, weights: Weights) -> None:
        """Add what the gradient g of the logits of some rows makes of their inputs x, and of the weights."""
        if self.weight is not None:
            self.weight.add(g, x)
        if self.bias is not None:
            self.bias.add(g)
        if self.inputs is None:
            return
        if isinstance(rows, slice) and self.inputs.is_flat and not self.accumulate:
            there = self.inputs[rows]
            if is_for_blas(there, self.head.dtype):
                weights.multiply_back(g, there)
                return
        product = np.empty((len(g), self.head.n_inputs), self.head.dtype)
        weights.multiply_back(g, product)
        if self.accumulate:
            self.inputs.add(rows, product)
        else:
            self.inputs[rows] = product

    def finish(self) -> None:
        if self.weight is not None:
            self.weight.finish()
        if self.bias is not None:
            finish(self.bias.total, self.arrays["linear_bias"], self.accumulate)


class ColumnSums:
    """The sum of the rows of all chunks, of a chunk by BLAS, of all of them in float64."""

    def __init__(self, head: Head) -> None:
        self.total = np.zeros(head.n_classes)
        self.ones = np.ones(min(BLOCK, head.n_rows), head.dtype)

    def add(self, g: np.ndarray) -> None:
        for start in range(0, len(g), BLOCK):
            part = g[start : start + BLOCK]
            self.total += self.ones[: len(part)] @ part


def visit(head: Head, gradients: Gradients | None) -> float | np.ndarray:
    """The loss; what there is of gradients is added to them. Call it with floating-point errors ignored."""
    weights, chunks = Weights(head.weight, head.dtype, head.memory, head.n_rows), Chunks(head, 1)
    bias = None if head.bias is None else taken_as(head.bias, head.dtype)
    of_rows = Rows(np.zeros(head.leading, head.dtype), len(head.leading)) if head.per_row else None
    sums, means = [], []
    for block in head.blocks():
        losses = np.empty(block.stop - block.start if isinstance(block, slice) else len(block),
                          head.dtype if head.per_row else np.float64)  # fmt: skip
        n_before = 0
        for rows, n, (logits,), n_at_once in chunks.of(block):
            x = head.inputs_at(rows)
            weights.multiply(x, bias, logits, n_at_once)
            grad = None if gradients is None else logits
            means.append(head.run(rows, logits, grad, losses[n_before : n_before + n]))
            if gradients is not None:
                gradients.add(rows, x, logits, weights)
            n_before += n
        if of_rows is not None:
            of_rows[block] = losses
        else:
            sums.append(losses.sum())
    if of_rows is not None:
        return of_rows.array.reshape(head.leading)
    return _loss_of(head, float(sum(sums)), float(sum(means)))


def _loss_of(head: Head, total: float, by_chunks: float) -> float:
    """The loss from the sum of those of all rows, unless that, or a row's, left the range."""
    divisor = head.given.normalizer or 1.0
    if 1 / RANGE < abs(divisor) < RANGE and 1 / RANGE < abs(total) < RANGE:
        return total / divisor
    return by_chunks


def multiply_hessian(head: Head, along: np.ndarray, bias_along: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The products of the Hessian, for weights and bias."""
    directions, chunks = Weights(along, head.dtype, head.memory, head.n_rows), Chunks(head, 1 + (head.probs is None))
    weights = None if head.weight is None else Weights(head.weight, head.dtype, head.memory, head.n_rows)
    bias = None if head.bias is None else taken_as(head.bias, head.dtype)
    bias_direction = None if bias_along is None else taken_as(bias_along, head.dtype)
    rows_of_probs: Any = None if head.probs is None else Rows(head.probs, len(head.leading))
    out = np.empty((head.n_classes, head.n_inputs), head.dtype, order="F" if head.is_operand else "C")
    product = SumOfProducts(out, head.dtype, head.memory, accumulate=False, apart=head.is_operand)
    bias_product = ColumnSums(head)
    for block in head.blocks():
        for rows, _, (u, *others), n_at_once in chunks.of(block):
            x = head.inputs_at(rows)
            directions.multiply(x, bias_direction, u, n_at_once)
            if weights is None:
                p = taken_as(rows_of_probs[rows], head.dtype)
                head.run(rows, p, u, None, "product of probs", u)
            else:
                weights.multiply(x, bias, others[0], n_at_once)
                head.run(rows, others[0], u, None, "product", u)
            product.add(u, x)
            if bias_along is not None:
                bias_product.add(u)
    product.finish()
    return product.out, bias_product.total.astype(head.dtype)
