"""Classes held in several places: a summary of each row, merged, and every result from the merged one.

With the classes of a row spread over several holders, each holder sums up its own block (`summarize`): 80 bytes a row.
The holders exchange these, for instance by MPI or torch.distributed, and `merge` them. From the merged summary comes
the loss (`loss`), and each holder's part of the gradient (`grad`) or of the probabilities (`softmax`).

Everything is computed by NumPy in float64, a few rows at a time. For float64 logits, differences and sums keep what
they round off, so that the results are as exact as those of one call.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent import _doubles
from softxent._counting import scaled_weights
from softxent._doubles import ONE, Sum
from softxent._inputs import (
    Pair,
    read_array,
    read_logits,
    read_out,
    read_targets,
    result_dtypes,
    shape_without,
    taken_as,
)
from softxent._loss import read_reduction
from softxent._options import (
    Given,
    LogitOptions,
    Options,
    read_logit_options,
    read_options,
    with_options,
)

__all__ = ["SUMMARY", "argmax", "grad", "log_softmax", "loss", "lse", "merge", "softmax", "summarize"]

SUMMARY = np.dtype(
    [
        ("largest", np.float64),
        ("rest", np.float64),
        ("rest_low", np.float64),
        ("mass", np.float64),
        ("gap", np.float64),
        ("gap_low", np.float64),
        ("target", np.float64),
        ("class_weight", np.float64),
        ("spread_gap", np.float64),
        ("argmax", np.int32),
        ("n_allowed", np.int32),
    ]
)
"""What is known of a row, or of its classes in one block: 80 bytes, in the byte order of the machine.

With z the logits after temperature, softcap and mask, m their largest, t the target and w the weights of classes:

- largest: m; 0 in a row that does not count, NaN if a logit of an allowed class is NaN.
- rest, rest_low: the sum of exp(z - m) over the other classes, times 2^128, as the sum of two numbers.
- mass: the sum of w t.
- gap, gap_low: the sum of w t (m - z), as the sum of two numbers.
- target: the sum of t.
- class_weight, spread_gap: the sums of w and of w (m - z) over the allowed classes; 0 without label smoothing.
- argmax: the first class, counted over all blocks, with the logit m; -1 if the row does not count or has a NaN, or if
  no class of the block is allowed.
- n_allowed: how many classes are allowed.
"""

MAX_CLASSES = 2**31 - 1
UNIT_EXPONENT = 128  # of `rest`, so that a sum of exponentials is no subnormal number
UNIT = 2.0**UNIT_EXPONENT
LN_UNIT_HI, LN_UNIT_LO = UNIT_EXPONENT * _doubles.LN2_HI, UNIT_EXPONENT * _doubles.LN2_LO
SMALLEST_EXPONENT = -700.0  # from here on an exponential without the unit would lose digits
FAR = 2000.0  # more than any gap from a largest logit to one with a probability
CHUNK = 2**16  # logits that are computed at once, if a row has no more
OF_CLASS_WEIGHTS = ("mass", "gap", "gap_low", "class_weight", "spread_gap")  # the fields that are multiples of them


@with_options
def summarize(
    logits: ArrayLike,
    targets: ArrayLike | Pair | None = None,
    *,
    first_class: SupportsIndex,
    n_classes: SupportsIndex,
    axis: SupportsIndex = -1,
    **options: Unpack[Options],
) -> np.ndarray:
    r"""Sum up what a block of the classes adds to each row.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        The logits of the classes ``[first_class, first_class + K)``, along `axis`. Dtypes as in `cross_entropy`.
    targets : array_like, shape (...) or (..., K), or a pair of arrays, optional
        Class labels in ``[0, n_classes)``, the same for every block; or the part of a distribution that belongs to this
        block; or a pair ``(indices, probs)`` with classes in ``[0, n_classes)``, the same for every block. Without
        targets, the merged summary gives all but the loss and the gradient.
    first_class : int
        The number of the block's first class among all classes.
    n_classes : int
        How many classes all blocks have together.
    axis : int, default -1
        The axis of the classes.
    **options
        See `Options`. `weight` is that of the classes of this block, shape (K,), and so is `where`, shape (K,) or
        (..., K). Pass the same options to `loss` and `grad`.

    Returns
    -------
    ndarray of `SUMMARY`, shape (...)
        80 bytes a row.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; and a ValueError if the block does not fit into `n_classes` classes, or if there are
        more than 2147483647 of them.

    See Also
    --------
    merge : the next step.

    Notes
    -----
    A block has the largest logit :math:`m` and the sum :math:`R` of the other :math:`e^{z_j - m}`. That of the label is
    never added to :math:`R` if it is the largest, so that confident rows keep their digits. Two blocks make one
    with the larger :math:`m`, say the first, and :math:`R_1 + e^{m_2 - m_1} (1 + R_2)`.

    If `temperature` makes finite float64 logits larger than the largest number, they count as this number.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> from softxent import shards
    >>> logits, labels = np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]), [2, 0]
    >>> here = shards.summarize(logits[:, :1], labels, first_class=0, n_classes=3)
    >>> there = shards.summarize(logits[:, 1:], labels, first_class=1, n_classes=3)
    >>> merged = shards.merge([here, there])
    >>> round(shards.loss(merged), 6), round(sx.cross_entropy(logits, labels), 6)
    (0.366985, 0.366985)
    >>> shards.grad(logits[:, 1:], labels, merged, first_class=1).round(2)
    array([[ 0.15, -0.2 ],
           [ 0.05,  0.05]])
    """
    block = _Block(logits, targets, axis, first_class, n_classes, read_options(options))
    with np.errstate(all="ignore"):
        return _sum_up(block)[0].reshape(block.leading)


def merge(summaries: Iterable[np.ndarray]) -> np.ndarray:
    """The summary of several blocks of classes together.

    Parameters
    ----------
    summaries : iterable of ndarray of `SUMMARY`, shape (...)
        One for each block, all of one shape, for the same rows. Their order does not matter: the result has the same
        bits. Merged summaries can be merged again, with others of the same rows; the bits then depend on which were
        merged first, within the rounding of the result.

    Returns
    -------
    ndarray of `SUMMARY`, shape (...)

    Raises
    ------
    TypeError
        A summary is no array of `SUMMARY`.
    ValueError
        There is none, or their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent import shards
    >>> logits = np.array([0.0, 3.0, 1.0, 3.0])
    >>> parts = [shards.summarize(logits[i : i + 2], first_class=i, n_classes=4) for i in (0, 2)]
    >>> shards.argmax(shards.merge(parts))
    array(1)
    """
    parts = [_read_summary(part, f"summaries[{i}]") for i, part in enumerate(summaries)]
    if not parts:
        raise ValueError("merge needs at least one summary, got none")
    for i, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ValueError(
                f"summaries must be of the same rows, got shapes {parts[0].shape} and, of summaries[{i}], {part.shape}"
            )
    blocks = np.stack(parts)
    # In the order of their classes, so that sums have the same bits in any order of arrival.
    order = np.lexsort((blocks["gap"], blocks["mass"], blocks["target"], blocks["argmax"]), axis=0)
    blocks = np.take_along_axis(blocks, order, axis=0)
    with np.errstate(all="ignore"):
        return _merge_sorted(blocks)


@overload
def loss(
    merged: np.ndarray,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    normalizer: SupportsFloat | None = None,
    **options: Unpack[Options],
) -> float: ...
@overload
def loss(
    merged: np.ndarray, *, reduction: Literal["none"], normalizer: None = None, **options: Unpack[Options]
) -> np.ndarray: ...
@with_options
def loss(
    merged: np.ndarray,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    **options: Unpack[Options],
) -> float | np.ndarray:
    r"""The loss of rows whose classes were summed up in blocks.

    Parameters
    ----------
    merged : ndarray of `SUMMARY`, shape (...)
        What `merge` returns for all blocks.
    reduction, normalizer
        As in `cross_entropy`.
    **options
        Those that `summarize` was given. The `weight` of any block will do: it only tells what the mean divides by.

    Returns
    -------
    float or ndarray of float64, shape (...)
        As `cross_entropy` returns it, always in float64.

    Raises
    ------
    TypeError, ValueError
        `merged` is no array of `SUMMARY`, `sample_weight` has another shape, or as `cross_entropy`.

    Notes
    -----
    With the largest logit :math:`m` and the sum :math:`R` of the other exponentials, it is
    :math:`\sum_c w_c t_c \log(1 + R) + \sum_c w_c t_c (m - z_c)`; nothing cancels.

    Examples
    --------
    >>> from softxent import shards
    >>> parts = [shards.summarize([z], 0, first_class=i, n_classes=2) for i, z in enumerate([0.0, -40.0])]
    >>> shards.loss(shards.merge(parts))  # the label has the probability 1 - 4e-18
    4.248354255291589e-18
    """
    mean, per_row, divisor = read_reduction(reduction, normalizer)
    rows = _Rows(merged, read_options(options), mean, None if divisor is None else Sum.of(divisor))
    return rows.losses().reshape(rows.shape) if per_row else rows.total().over(rows.divisor)


def lse(merged: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of the exponentials of each row, float64, 0 in a row that does not count.

    Parameters
    ----------
    merged : ndarray of `SUMMARY`, shape (...)
        What `merge` returns for all blocks.

    Returns
    -------
    ndarray of float64, shape (...)
        As `logsumexp` returns it.

    Examples
    --------
    >>> from softxent import shards
    >>> round(float(shards.lse(shards.summarize([0.0, 1.0, 2.0], first_class=0, n_classes=3))), 4)
    2.4076
    """
    summary = _read_summary(merged, "merged")
    with np.errstate(all="ignore"):
        return np.asarray(summary["largest"] + sum(_log1p_rest(summary)))


def argmax(merged: np.ndarray) -> np.ndarray:
    """The most probable class of each row, int64, the first of several.

    Parameters
    ----------
    merged : ndarray of `SUMMARY`, shape (...)
        What `merge` returns for all blocks.

    Returns
    -------
    ndarray of int64, shape (...)
        -1 in a row that does not count, has a NaN, or has no allowed class.

    Examples
    --------
    >>> from softxent import shards
    >>> shards.argmax(shards.summarize([0.0, 1.0, 1.0], first_class=4, n_classes=9))
    array(5)
    """
    return np.asarray(_read_summary(merged, "merged")["argmax"].astype(np.int64))


@with_options
def grad(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    merged: np.ndarray,
    *,
    first_class: SupportsIndex,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    out: np.ndarray | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    r"""The gradient of the loss with respect to one block of the logits.

    Parameters
    ----------
    logits, targets, first_class, axis, **options
        Those that `summarize` was given for this block.
    merged : ndarray of `SUMMARY`, shape (...)
        What `merge` returned for all blocks.
    reduction, normalizer
        As in `loss`.
    out : ndarray, shape (..., K), optional
        Where to write the gradient, as in `value_and_grad`; may be the logits themselves.

    Returns
    -------
    ndarray, shape (..., K)
        `out` if that was given, else a new array of the logits' dtype (float64 for integers and bool).

    Raises
    ------
    TypeError, ValueError
        As `summarize`; and a ValueError if `merged` has another number of rows, or `out` cannot be written to.

    Notes
    -----
    With :math:`S = 1 + R` it is :math:`T e^{z_j - m} / S - u_j` for the target :math:`u`, whose sum is :math:`T`, times
    the weight of the row and the derivatives of temperature and softcap. At the largest logit, if that has more than
    half of the probability, it is :math:`(T - u_a) - T R / S`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent import shards
    >>> blocks = np.log([0.1, 0.3]), np.log([0.6])
    >>> parts = [shards.summarize(x, 2, first_class=i, n_classes=3) for i, x in zip((0, 2), blocks)]
    >>> merged = shards.merge(parts)
    >>> [shards.grad(x, 2, merged, first_class=i).round(4).tolist() for i, x in zip((0, 2), blocks)]
    [[0.1, 0.3], [-0.4]]
    """
    mean, _, divisor = read_reduction(reduction, normalizer)
    total = None if divisor is None else Sum.of(divisor)
    return part_of_grad(logits, targets, merged, first_class, axis, mean, total, out, read_options(options))


@with_options
def softmax(
    logits: ArrayLike,
    merged: np.ndarray,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    """The probabilities of one block of the classes.

    Parameters
    ----------
    logits, axis, temperature, softcap, where
        Those that `summarize` was given for this block.
    merged : ndarray of `SUMMARY`, shape (...)
        What `merge` returned for all blocks.
    out : ndarray, shape (..., K), optional
        As in `grad`.

    Returns
    -------
    ndarray, shape (..., K)
        As the function of this name in softxent returns it, and as exact.

    Raises
    ------
    TypeError, ValueError
        As `grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent import shards
    >>> logits = np.log([0.1, 0.3, 0.6])
    >>> merged = shards.summarize(logits, first_class=0, n_classes=3)
    >>> shards.softmax(logits[:2], merged).round(4)
    array([0.1, 0.3])
    """
    return _of_logits(logits, merged, axis, out, options, _probabilities)


@with_options
def log_softmax(
    logits: ArrayLike,
    merged: np.ndarray,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    """The logarithms of the probabilities of one block of the classes.

    Parameters
    ----------
    logits, merged, axis, out, temperature, softcap, where
        As for `softmax`.

    Returns
    -------
    ndarray, shape (..., K)
        As the function of this name in softxent returns it, and as exact.

    Raises
    ------
    TypeError, ValueError
        As `grad`.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent import shards
    >>> merged = shards.summarize([0.0, -40.0], first_class=0, n_classes=2)
    >>> print(shards.log_softmax(np.array([0.0]), merged))
    [-4.24835426e-18]
    """
    return _of_logits(logits, merged, axis, out, options, _log_probabilities)


def part_of_grad(
    logits: Any,
    targets: Any,
    merged: Any,
    first_class: Any,
    axis: Any,
    mean: bool,
    divisor: Sum | None,
    out: Any,
    given: Given,
) -> np.ndarray:
    """`grad`, with a reduction and options that were read; here a divisor may have any sign."""
    block = _Block(logits, targets, axis, first_class, MAX_CLASSES, given)
    return block.write(out, _gradient(block, _Rows(merged, given, mean, divisor, block)))


def masses(merged: np.ndarray, weighted: bool, given: Given) -> Sum:
    """What the rows add to the divisor of the mean, with or without weights of classes."""
    return _Rows(merged, given, False, None).masses(weighted)


def losses_of(merged: np.ndarray, divisor: Sum | None, given: Given) -> tuple[np.ndarray, int]:
    """The losses of rows, divided by 2^n, and n; for a mean, if there is a divisor."""
    rows = _Rows(merged, given, divisor is not None, divisor)
    return rows.losses().reshape(rows.shape), rows.exponent


def summarize_with_labels(
    logits: Any, targets: Any, first_class: int, n_classes: int, axis: int, given: Given
) -> dict[str, Any]:
    """`summarize`, and the logit of the label of each row: 0 if another block has it, None if targets are no labels."""
    block = _Block(logits, targets, axis, first_class, n_classes, given)
    with np.errstate(all="ignore"):
        summary, entries = _sum_up(block)
    label_logit = entries.z.reshape(block.leading) if entries is not None and block.amounts is None else None
    return {"merged": summary.reshape(block.leading), "label_logit": label_logit}


def entropy_and_rank_sums(
    logits: Any, labels: Any, merged: Any, label_logit: Any, first_class: int, axis: int, given: Given
) -> np.ndarray:
    """What `evaluate` needs beside a summary, of a block, as float64 of shape (2, ...) that adds up over the blocks.

    It is the sum of p (m - z), and how many classes are ahead of the label, if there are labels.
    """
    block, summary = _Block(logits, labels, axis, first_class, MAX_CLASSES, given), merged.ravel()
    sums, probabilities = np.zeros((2, block.n_rows)), _probabilities(block, summary)
    classes = block.first + np.arange(block.size)
    with np.errstate(all="ignore"):
        for chunk in block.chunks():
            rows, z = chunk.rows, chunk.z
            gaps = np.minimum(summary["largest"][rows, np.newaxis] - z, FAR)
            sums[0, rows] = np.einsum("ij,ij->i", probabilities(chunk), gaps)
            if block.indices is not None:
                label, limit = block.indices[rows], label_logit.reshape(-1, 1)[rows]
                is_equal, ahead = z == limit, np.count_nonzero(z > limit, axis=1)
                ties = np.flatnonzero(is_equal.any(axis=1))
                ahead[ties] += np.count_nonzero(is_equal[ties] & (classes < label[ties]), axis=1)
                sums[1, rows] = ahead
    return sums.reshape(2, *block.leading)


def evaluated(
    merged: np.ndarray, sums: np.ndarray, labels: Any, given: Given, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """What `evaluate` says of each row, with numbers of this dtype, from a summary without weights of classes.

    `sums` are what `entropy_and_rank_sums` returned for the blocks, added up.
    """
    counts, m = _counts(merged), merged["largest"]
    top = np.where(np.isneginf(m), 0, argmax(merged))  # the first of equals, allowed or not, as in one call
    with np.errstate(all="ignore"):
        numbers: dict[str, Any] = {
            "log_prob": 0 - _Rows(merged, Given({}), False, None).losses().reshape(merged.shape),
            "lse": lse(merged),
            "entropy": np.where(np.isfinite(m), sum(_log1p_rest(merged)) + sums[0], np.nan),
            "confidence": _Whole(merged).factor(np.ones(merged.shape)),
        }
    fields = {name: taken_as(np.where(counts, values, 0.0), dtype) for name, values in numbers.items()}
    weights = 1.0 if given.sample_weight is None else taken_as(given.sample_weight, np.float64)
    fields |= {"row_weight": np.where(counts, weights, 0.0), "argmax": top}
    if labels is not None:
        fields["rank"] = np.where(top < 0, -1, sums[1].astype(np.int64))
        fields["correct"] = (top == labels) & (top >= 0)
    return fields


def _counts(summary: np.ndarray) -> np.ndarray:
    """Which rows count."""
    return np.asarray((summary["argmax"] >= 0) | (summary["largest"] != 0))


class _Chunk(NamedTuple):
    """A few rows of a block, in float64."""

    rows: slice  # of all rows in their order
    index: Any  # the same rows in arrays of the block's shape
    z: np.ndarray  # (n, K): the logits after temperature, softcap and mask
    slope: np.ndarray | None  # (n, K): their derivatives, but for 1 / temperature
    allowed: np.ndarray | None  # (n, K)


class _Entries(NamedTuple):
    """What the targets of all rows have in this block, where they are labels or pairs: arrays of shape (rows, k)."""

    here: np.ndarray  # whether the class is in this block
    places: np.ndarray  # classes, counted from the first of the block; 0 elsewhere
    t: np.ndarray
    u: np.ndarray  # t, times the weight of its class
    z: np.ndarray  # the logits, once a sweep over the chunks has filled them in; 0 elsewhere


class _Block:
    """A block of classes with its targets and options, as they were read, the class axis last."""

    def __init__(self, logits: Any, targets: Any, axis: Any, first_class: Any, n_classes: Any, given: Given) -> None:
        x, class_axis = read_logits(logits, axis)
        self.grad_dtype, self.dtype = result_dtypes(x)
        self.keeps_low = self.dtype == np.float64  # others need no more digits than float64 has
        self.class_axis, self.full_shape = class_axis, x.shape
        self.leading = shape_without(x.shape, class_axis)
        self.size = x.shape[class_axis]
        self.first = _read_block(first_class, n_classes, self.size)
        self.given = given.fitted(x, class_axis, self.dtype)
        self.indices: np.ndarray | None = None  # labels, or those of pairs: (rows, k)
        self.amounts: np.ndarray | None = None  # of pairs, (rows, k), or of distributions, (..., K)
        ignored: np.ndarray | bool = False
        if targets is not None:
            t = self._read_targets(targets, x, int(n_classes))
            if isinstance(t, tuple):
                self.indices, self.amounts = (part.reshape(-1, part.shape[-1]) for part in t)
            elif t.shape == self.leading:
                self.indices, ignored = t.reshape(-1, 1), t == self.given.ignore_index
            else:
                self.amounts = self._arranged(t)
        self.original, self.x = x, self._arranged(x)
        self.n_rows = math.prod(self.leading)
        self.allowed = None if self.given.where is None else self._arranged(self.given.where)
        self.weight = np.ones(self.size)
        if given.weight is not None:
            # In float64 as they came: divided by a unit, the smallest of them may vanish.
            self.weight = taken_as(given.weight, np.float64)
            if self.dtype != np.float64:
                self.weight = np.asarray(self.given.weight) * np.float64(self.given.weight_unit or 1)
        counted = np.ones(self.leading, np.bool_)
        counted[ignored] = False
        if self.given.sample_weight is not None:
            counted &= self.given.sample_weight != 0
        self.counted = counted.ravel()

    def _read_targets(self, targets: Any, x: np.ndarray, n_classes: int) -> np.ndarray | Pair:
        """Labels and pairs name classes of all blocks; a distribution is that of this block."""
        if isinstance(targets, tuple) or read_array(targets, "targets").ndim < x.ndim:
            shape = (*x.shape[: self.class_axis], n_classes, *x.shape[self.class_axis + 1 :])
            x = np.broadcast_to(np.zeros((), x.dtype), shape)
        return read_targets(targets, x, self.class_axis, self.given.ignore_index, self.dtype)

    def _arranged(self, array: np.ndarray) -> np.ndarray:
        """With the classes last, and at least one axis of rows."""
        moved = np.moveaxis(array, self.class_axis, -1)
        return moved if moved.ndim > 1 else moved[np.newaxis]

    def chunks(self) -> Iterator[_Chunk]:
        step = max(1, CHUNK // self.size)
        leading = self.leading or (1,)
        for start in range(0, self.n_rows, step):
            rows = slice(start, min(start + step, self.n_rows))
            index: Any = rows
            if len(leading) > 1:
                index = np.unravel_index(np.arange(rows.start, rows.stop), leading)
            z, slope = self._transformed(self.x[index].astype(np.float64))
            allowed = None if self.allowed is None else self.allowed[index]
            if allowed is not None:
                z[~allowed] = -np.inf
            yield _Chunk(rows, index, z, slope, allowed)

    def _transformed(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        temperature, cap = self.given.temperature, self.given.softcap
        if temperature != 1:
            x, z = z, z / temperature
            if temperature < 1:
                np.copyto(z, np.copysign(np.finfo(np.float64).max, x), where=np.isinf(z) & np.isfinite(x))
        if cap is None:
            return z, None
        tail = np.exp(-2 * np.abs(z / cap))
        return cap * np.tanh(z / cap), 4 * tail / (1 + tail) ** 2  # 1 - tanh^2, without cancellation

    def entries(self) -> _Entries | None:
        """What labels or pairs have here; None for distributions, and without targets."""
        if self.indices is None:
            return None
        places = self.indices.astype(np.int64) - self.first
        here = self.counted[:, np.newaxis] & (places >= 0) & (places < self.size)
        places = np.where(here, places, 0)
        t = np.where(here, 1.0 if self.amounts is None else self.amounts, 0.0)
        return _Entries(here, places, t, _products(t, self.weight[places]), np.zeros(here.shape))

    def distribution(self, chunk: _Chunk) -> np.ndarray | None:
        """The targets of a few rows here, in float64; None for labels and pairs, and without targets."""
        if self.amounts is None or self.indices is not None:
            return None
        t = taken_as(self.amounts[chunk.index], self.dtype).astype(np.float64)
        t[~self.counted[chunk.rows]] = 0
        return t

    def write(self, out: Any, result: Callable[[_Chunk], np.ndarray]) -> np.ndarray:
        """A result with a number for each class, into `out` or a new array."""
        target = np.empty(self.full_shape, self.grad_dtype) if out is None else read_out(out, self.full_shape)
        into = target
        if out is not None and not self._may_be_written(target):
            into = np.empty_like(target)
        arranged = self._arranged(into)
        with np.errstate(all="ignore"):
            for chunk in self.chunks():
                arranged[chunk.index] = result(chunk)
            if into is not target:
                np.copyto(target, into)
        return out if isinstance(out, np.ndarray) else target

    def _may_be_written(self, out: np.ndarray) -> bool:
        """Whether rows of `out` can be written while later ones of the inputs are still to be read."""
        x = self.original
        in_place = (x.ctypes.data, x.strides, x.dtype) == (out.ctypes.data, out.strides, out.dtype)
        inputs = [None if in_place else x, self.amounts, self.allowed]
        return not any(array is not None and np.may_share_memory(array, out) for array in inputs)


def _read_block(first_class: Any, n_classes: Any, size: int) -> int:
    try:
        first, number = operator.index(first_class), operator.index(n_classes)
    except TypeError:
        kinds = f"{type(first_class).__name__} and {type(n_classes).__name__}"
        raise TypeError(f"first_class and n_classes must be integers, got {kinds}") from None
    if number > MAX_CLASSES:
        raise ValueError(f"n_classes must be at most {MAX_CLASSES}, got {number}")
    if not 0 <= first <= number - size:
        raise ValueError(
            f"a block of {size} classes from first_class = {first} on must lie in [0, n_classes), n_classes = {number}"
        )
    return first


def _read_summary(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype != SUMMARY:
        got = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an array of shards.SUMMARY, as summarize and merge return it, got {got}")
    return value


def _sum_up(block: _Block) -> tuple[np.ndarray, _Entries | None]:
    """The summaries of all rows, and what labels or pairs have here."""
    summary, entries = np.zeros(block.n_rows, SUMMARY), block.entries()
    for chunk in block.chunks():
        part, z = summary[chunk.rows], chunk.z
        _sum_exponentials(block, chunk, part)
        if entries is not None:
            here, places = entries.here[chunk.rows], entries.places[chunk.rows]
            np.copyto(entries.z[chunk.rows], np.take_along_axis(z, places, 1), where=here)
        t = block.distribution(chunk)
        if t is not None:
            u = _products(t, block.weight)
            part["target"], part["mass"] = t.sum(axis=1), u.sum(axis=1)
            part["gap"] = _products(u, _gaps(part["largest"], z)[0]).sum(axis=1)
        if block.given.label_smoothing:
            w = block.weight if chunk.allowed is None else np.where(chunk.allowed, block.weight, 0)
            part["class_weight"] = w.sum(axis=-1)
            part["spread_gap"] = _products(w, _gaps(part["largest"], z)[0]).sum(axis=1)
    if entries is not None:
        summary["target"], summary["mass"] = entries.t.sum(axis=1), entries.u.sum(axis=1)
        gap, gap_low = _gaps(summary["largest"], entries.z)
        high, low = _doubles.settled(_doubles.two_product(entries.u, gap))
        summary["gap"] = np.where(entries.u != 0, high, 0).sum(axis=1)
        low = np.where((entries.u != 0) & np.isfinite(high), low + entries.u * gap_low, 0)
        summary["gap_low"] = low.sum(axis=1)
    ignored = np.zeros((), SUMMARY)
    ignored["argmax"] = -1
    summary[~block.counted] = ignored
    return summary, entries


def _sum_exponentials(block: _Block, chunk: _Chunk, summary: np.ndarray) -> None:
    """Fill in what does not depend on the targets."""
    each, top = np.arange(len(chunk.z)), chunk.z.argmax(axis=1)
    m = chunk.z[each, top]
    e, low = _exponentials(chunk.z, m, block.keeps_low)
    e[each, top] = 0
    if low is None:
        rest, rest_low = e.sum(axis=1) * UNIT, np.zeros(len(m))
    else:
        high, remainder = _doubles.split_for_sum(e)
        low *= e
        rest, rest_low = _doubles.two_sum(high.sum(axis=1), remainder.sum(axis=1) + low.sum(axis=1))
    finite = np.isfinite(m)  # else there is no rest
    summary["rest"], summary["rest_low"] = np.where(finite, rest, 0), np.where(finite, rest_low, 0)
    if chunk.allowed is None:
        summary["n_allowed"] = block.size
    else:
        summary["n_allowed"] = chunk.allowed.sum(axis=1)
        top = np.where(np.isneginf(m), chunk.allowed.argmax(axis=1), top)
    summary["largest"] = m
    summary["argmax"] = np.where(np.isnan(m) | (summary["n_allowed"] == 0), -1, top + block.first)


def _exponentials(z: np.ndarray, m: np.ndarray, keeps_low: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """`e` and `low`: exp(z - m) is e and None, or if that would lose digits, e (1 + low) / UNIT."""
    m = m[:, np.newaxis]
    d = z - m
    if not keeps_low:
        return np.exp(d, out=d), None
    # What z - m rounds off (Knuth), in place: (z - (d + m)) - (m + (d - (d + m))).
    z_taken = d + m
    low = z - z_taken
    np.subtract(d, z_taken, out=z_taken)
    z_taken += m
    low -= z_taken
    if not np.isfinite(low.sum()):
        low[~np.isfinite(low)] = 0
    e = np.exp(d, out=z_taken)
    e *= UNIT
    if d.min() < SMALLEST_EXPONENT:
        small = (d < SMALLEST_EXPONENT) & (d > 2 * SMALLEST_EXPONENT)
        argument, argument_low = _doubles.two_sum(d[small], LN_UNIT_HI)
        e[small] = np.exp(argument)
        low[small] += argument_low + LN_UNIT_LO
    return e, low


def _gaps(m: np.ndarray, z: np.ndarray) -> _doubles.Pair:
    """m - z, infinite for every z that is -inf."""
    gap, low = _doubles.settled(_doubles.two_sum(m[:, np.newaxis], -z))
    return np.where(np.isneginf(z), np.inf, gap), low


def _products(factor: np.ndarray | float, x: np.ndarray) -> np.ndarray:
    """factor * x; 0 where the factor is 0, whatever x is."""
    product = np.asarray(factor * x)
    np.copyto(product, 0, where=np.asarray(factor) == 0)
    return product


def _merge_sorted(blocks: np.ndarray) -> np.ndarray:
    merged = np.zeros(blocks.shape[1:], SUMMARY)
    largest = blocks["largest"]
    m = merged["largest"] = largest.max(axis=0)
    is_top = (largest == m) & (blocks["argmax"] >= 0)
    top = is_top.argmax(axis=0)[np.newaxis]
    is_known = is_top.any(axis=0)
    merged["argmax"] = np.where(is_known, np.take_along_axis(blocks["argmax"], top, 0)[0], -1)
    merged["n_allowed"] = blocks["n_allowed"].sum(axis=0)

    distance, distance_low = _doubles.settled(_doubles.two_sum(m, -largest))
    distance = np.where(np.isnan(distance), 0, distance)  # of two infinities
    power, exponent = _doubles.exp((-distance, -distance_low))
    is_top_block = np.arange(len(blocks)).reshape(-1, *(1 for _ in m.shape)) == top
    own = np.where(is_top_block | (blocks["argmax"] < 0), 0.0, UNIT)  # of the largest logit of each block
    rest = _doubles.two_sum(blocks["rest"], own)
    rest = _doubles.multiply((rest[0], rest[1] + blocks["rest_low"]), power)

    shift, shift_low = _doubles.settled(_doubles.two_product(blocks["mass"], distance))
    shift_low = shift_low + blocks["mass"] * distance_low
    counts = blocks["mass"] != 0
    shifts = (np.where(counts, shift, 0), np.where(counts, shift_low, 0))
    gap = _doubles.add((blocks["gap"], blocks["gap_low"]), shifts)
    spread_gap = _doubles.two_sum(blocks["spread_gap"], _products(blocks["class_weight"], distance))

    names = ("rest", "gap", "spread_gap", "mass", "target", "class_weight")
    high = np.zeros((len(blocks), len(names), *m.shape))
    low = np.zeros(high.shape)
    high[:, 0], low[:, 0] = np.ldexp(rest[0], exponent), np.ldexp(rest[1], exponent)
    high[:, 1], low[:, 1] = gap
    high[:, 2], low[:, 2] = _doubles.settled(spread_gap)
    for i, name in enumerate(names[3:], 3):
        high[:, i] = blocks[name]
    high, low = _doubles.sum_first_axis((high, low))
    for i, name in enumerate(names):
        merged[name] = high[i]
    merged["rest_low"], merged["gap_low"] = low[0], low[1]
    return merged


def _log1p_rest(summary: np.ndarray) -> _doubles.Pair:
    """log(1 + R), and what it rounds off."""
    rest, low = np.ldexp(summary["rest"], -UNIT_EXPONENT), np.ldexp(summary["rest_low"], -UNIT_EXPONENT)
    return np.log1p(rest), low / (1 + rest)


class _Rows:
    """What the merged summary says of each row, and how much the row counts.

    For a mean with a divisor that is out of range, weights of classes and of rows are multiplied by powers of two.
    Then the losses are those of the rows divided by 2^exponent, and class weights those divided by 2^class_exponent.
    """

    def __init__(self, merged: Any, given: Given, mean: bool, divisor: Sum | None, block: _Block | None = None) -> None:
        summary = _read_summary(merged, "merged")
        self.shape = summary.shape
        if block is not None and block.leading != self.shape:
            raise ValueError(f"merged must have the shape of the rows, {block.leading}, got {self.shape}")
        if given.sample_weight is not None:
            if given.sample_weight.shape != self.shape:
                raise ValueError(
                    f"sample_weight must have one number for each row, shape {self.shape}, "
                    f"got shape {given.sample_weight.shape}"
                )
            weights = taken_as(given.sample_weight, np.float64).ravel()
        else:
            weights = np.ones(summary.size)
        self.summary = summary.ravel()
        self.smoothing, self.z_loss = float(given.label_smoothing), float(given.z_loss)
        self.temperature = float(given.temperature)
        self.kept = 1 - self.smoothing
        self.divisor, self.class_exponent, shift = ONE, 0, 0
        with np.errstate(all="ignore"):
            self.weights = np.where(_counts(self.summary), weights, 0)
            if mean:
                self.divisor = self.masses(given.weight is not None) if divisor is None else divisor
                if self.divisor.shift():
                    self._divide_class_weights()
                shift = self.divisor.shift(self.class_exponent)
                if shift:
                    self.weights = scaled_weights(self.weights, self.weights.shape, shift)
            self.exponent = self.class_exponent - shift
            n_allowed = np.maximum(self.summary["n_allowed"], 1)
            self.share = _products(self.smoothing, self.summary["target"] / n_allowed)
            self.mass = _products(self.kept, self.summary["mass"]) + _products(self.share, self.summary["class_weight"])

    def masses(self, weighted: bool) -> Sum:
        """What the rows add to the divisor of the mean, with or without the weights of classes."""
        return Sum.of(self.weights, factors=self.summary["mass"] if weighted else None)

    def _divide_class_weights(self) -> None:
        """Divide every number that is a multiple of class weights by a power of two, if the largest is far from 1."""
        largest = max(float(np.abs(self.summary["mass"]).max(initial=0)), self.z_loss)
        exponent = math.frexp(largest)[1]
        if abs(exponent) > _doubles.HALFWAY:
            self.class_exponent, self.summary = exponent, self.summary.copy()
            for name in OF_CLASS_WEIGHTS:
                self.summary[name] = np.ldexp(self.summary[name], -exponent)
            self.z_loss = math.ldexp(self.z_loss, -exponent)

    def total(self) -> Sum:
        """The sum of the losses, not yet divided."""
        return Sum.of(self.losses(), self.exponent)

    @np.errstate(all="ignore")
    def losses(self) -> np.ndarray:
        """Of each row, divided by 2^exponent."""
        rows = self.summary
        log, log_low = _log1p_rest(rows)
        product, product_low = _doubles.settled(_doubles.two_product(rows["mass"], log))
        gap = (rows["gap"], rows["gap_low"])
        total, low = _doubles.add((product, product_low + rows["mass"] * log_low), gap)
        losses = total + low
        if self.smoothing:
            spread = rows["class_weight"] * log + rows["spread_gap"]
            losses = _products(self.kept, losses) + _products(self.share, spread)
        if self.z_loss:
            losses = losses + self.z_loss * (rows["largest"] + (log + log_low)) ** 2
        losses = np.where(np.isfinite(rows["largest"]), losses, np.nan)
        return _products(self.weights, losses)


class _Whole:
    """The sum 1 + R of the exponentials of each row, for division."""

    def __init__(self, summary: np.ndarray) -> None:
        whole, low = _doubles.two_sum(summary["rest"], UNIT)
        self.high, self.low = whole / UNIT, (low + summary["rest_low"]) / UNIT
        self.m = summary["largest"]
        self.rest = summary["rest"] / UNIT

    def under(self, x: np.ndarray) -> np.ndarray:
        """x / (1 + R)."""
        quotient = x / self.high
        return np.asarray(quotient - quotient * (self.low / self.high))

    def factor(self, mass: np.ndarray) -> np.ndarray:
        """What exp(z - m) is multiplied by for mass * p; NaN in a row without a finite m."""
        return np.where(np.isfinite(self.m), self.under(mass), np.nan)


def _shares(block: _Block, chunk: _Chunk, m: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """factor * exp(z - m) of a few rows."""
    e, low = _exponentials(chunk.z, m[chunk.rows], block.keeps_low)
    factor = factor[chunk.rows, np.newaxis]
    if low is None:
        e *= factor
        return e
    low *= e
    e += low
    is_large = np.abs(factor) > 1  # then it is divided by the unit, else the product is, so that both are in range
    e *= np.where(is_large, factor / UNIT, factor)
    e /= np.where(is_large, 1, UNIT)
    return e


def _gradient(block: _Block, of: _Rows) -> Callable[[_Chunk], np.ndarray]:
    with np.errstate(all="ignore"):
        block.weight = np.ldexp(block.weight, -of.class_exponent)
        summary, whole, entries = of.summary, _Whole(of.summary), block.entries()
        divisor = of.divisor.rounded(-of.exponent)
        scale = of.weights / divisor / of.temperature
        z_slope = np.zeros(len(scale))
        if of.z_loss:
            z_slope = 2 * of.z_loss * (whole.m + sum(_log1p_rest(summary)))
        factor = whole.factor(scale * (of.mass + z_slope))
        kept, share = of.kept * scale, of.share * scale
        # The largest logit of a row, where it is in this block and has more than half of the probability.
        top = summary["argmax"] - block.first
        is_top = (top >= 0) & (top < block.size) & (summary["rest"] < UNIT) & np.isfinite(whole.m)
        top = np.where(is_top, top, 0)
        w_top = block.weight[top]
        others = _products(of.share, summary["class_weight"] - w_top) + z_slope
        falls = (of.mass + z_slope) * whole.under(whole.rest)
        is_off = (of.weights == 0) | (divisor == 0)

    def gradient(chunk: _Chunk) -> np.ndarray:
        rows, each = chunk.rows, np.arange(len(chunk.z))
        g = _shares(block, chunk, whole.m, factor)
        t = block.distribution(chunk)
        if t is not None:
            u = _products(t, block.weight)
            u_top = u[each, top[rows]]
            g -= _products(u, kept[rows, np.newaxis])
        elif entries is not None:
            u, places = entries.u[rows], entries.places[rows]
            u_top = np.where(places == top[rows, np.newaxis], u, 0).sum(axis=1)
            np.subtract.at(g, (each[:, np.newaxis], places), _products(u, kept[rows, np.newaxis]))
        if of.smoothing:
            g -= _products(share[rows, np.newaxis], block.weight)
        at_top = _products(of.kept, summary["mass"][rows] - u_top) + others[rows] - falls[rows]
        here = each[is_top[rows]]
        g[here, top[rows][here]] = (scale[rows] * at_top)[here]
        if chunk.slope is not None:
            g = _products(chunk.slope, g)
        if chunk.allowed is not None:
            g[~chunk.allowed] = 0
        g[is_off[rows]] = 0
        return g

    return gradient


def _probabilities(block: _Block, summary: np.ndarray) -> Callable[[_Chunk], np.ndarray]:
    with np.errstate(all="ignore"):
        whole = _Whole(summary)
        factor = whole.factor(np.ones(len(summary)))

    def probabilities(chunk: _Chunk) -> np.ndarray:
        p = _shares(block, chunk, whole.m, factor)
        if chunk.allowed is not None:
            p[~chunk.allowed] = 0
        return p

    return probabilities


def _log_probabilities(block: _Block, summary: np.ndarray) -> Callable[[_Chunk], np.ndarray]:
    with np.errstate(all="ignore"):
        log, log_low = _log1p_rest(summary)

    def log_probabilities(chunk: _Chunk) -> np.ndarray:
        m = summary["largest"][chunk.rows]
        gap, gap_low = _gaps(m, chunk.z)
        log_p: np.ndarray = -(gap + ((gap_low + log_low[chunk.rows, np.newaxis]) + log[chunk.rows, np.newaxis]))
        log_p[~np.isfinite(m)] = np.nan
        if chunk.allowed is not None:
            log_p[~chunk.allowed] = -np.inf
        return log_p

    return log_probabilities


def _of_logits(
    logits: Any,
    merged: Any,
    axis: Any,
    out: Any,
    options: Any,
    result: Callable[[_Block, np.ndarray], Callable[[_Chunk], np.ndarray]],
) -> np.ndarray:
    summary = _read_summary(merged, "merged")
    block = _Block(logits, None, axis, 0, MAX_CLASSES, read_logit_options(options))
    if block.leading != summary.shape:
        raise ValueError(f"merged must have the shape of the rows, {block.leading}, got {summary.shape}")
    return block.write(out, result(block, summary.ravel()))
