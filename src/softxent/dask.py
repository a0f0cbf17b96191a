"""softxent for Dask arrays: lazy, with any chunks of rows and of classes.

Rows are independent. If each chunk has all classes, a task computes the loss and the gradient of its rows by one call
of a kernel, and hands on an exact sum of a few numbers. If the classes are in several chunks, each chunk sums up its
part (`softxent.shards`), 80 bytes a row are merged, and each chunk computes its part of the gradient from the merged
ones. Either way the result has the same bits for any chunks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsFloat, SupportsIndex, Unpack

import numpy as np

try:
    import dask.array as da
except ImportError as error:
    raise ImportError('softxent.dask needs Dask: pip install "softxent[dask]"') from error

from softxent import _doubles, _loss, _softmax, shards
from softxent._counting import weigh_rows
from softxent._evaluation import Evaluation
from softxent._evaluation import evaluate as evaluate_rows
from softxent._inputs import read_array, read_logits, read_targets, result_dtypes, shape_without, taken_as
from softxent._options import Given, LogitOptions, Options, read_logit_options, read_options, with_options
from softxent._threads import checked

__all__ = ["cross_entropy", "evaluate", "log_softmax", "logsumexp", "softmax", "value_and_grad"]

ARRAYS = ("weight", "sample_weight", "where")  # the options that are arrays
SPLIT_EVERY = 16  # sums that one task of the tree adds up


@with_options
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> Any:
    """Softmax cross-entropy loss of Dask arrays.

    Parameters
    ----------
    logits : dask.array.Array, shape (..., C)
        As in the function of this name for NumPy arrays, in any chunks, of the rows and of the classes.
    targets : array_like or dask.array.Array, or a pair of them
        As in the function for NumPy arrays. They are cut, or rechunked, to the chunks of the rows of `logits`.
    axis, reduction, normalizer
        As in the function for NumPy arrays. The mean is over the whole array.
    n_threads : int, default 1
        How many threads each task may use. A scheduler runs several tasks at once, so that 1 is right nearly always.
    **options
        See `Options`. Arrays may be NumPy or Dask arrays, in any chunks.

    Returns
    -------
    dask.array.Array
        Of shape () and float64 for "mean" and "sum"; for "none" the loss of each row. Nothing has been computed.

    Raises
    ------
    TypeError, ValueError
        As the function for NumPy arrays: at once for shapes, dtypes and options, when it is computed for labels that
        are no class and for masked arrays in chunks. Also a ValueError if chunks of unknown size cannot be used; it
        says what to do.

    See Also
    --------
    value_and_grad : the loss and its gradient, from one visit to each chunk.

    Examples
    --------
    >>> import dask.array as da
    >>> import softxent.dask
    >>> logits = da.log(da.from_array([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]], chunks=(1, 2)))
    >>> loss = softxent.dask.cross_entropy(logits, [2, 0])
    >>> round(float(loss.compute()), 6)
    0.366985
    """
    return _Call(logits, targets, axis, n_threads, options).loss_and_grad(reduction, normalizer, False)[0]


@with_options
def value_and_grad(
    logits: Any,
    targets: Any,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """Softmax cross-entropy loss of Dask arrays, and its gradient with respect to the logits.

    Parameters
    ----------
    logits, targets, axis, reduction, normalizer, n_threads, **options
        As in `cross_entropy` for Dask arrays.

    Returns
    -------
    loss : dask.array.Array
        As `cross_entropy` returns it.
    grad : dask.array.Array, shape (..., C)
        The gradient, in the chunks of the logits. Compute both together, ``dask.compute(loss, grad)``: each chunk is
        then visited once.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import softxent.dask
    >>> logits = da.log(da.from_array([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]], chunks=(1, 2)))
    >>> loss, grad = dask.compute(*softxent.dask.value_and_grad(logits, [2, 0]))
    >>> grad.round(4)
    array([[ 0.05,  0.15, -0.2 ],
           [-0.1 ,  0.05,  0.05]])
    """
    return _Call(logits, targets, axis, n_threads, options).loss_and_grad(reduction, normalizer, True)


@with_options
def evaluate(
    logits: Any,
    targets: Any = None,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> Evaluation[Any]:
    """Softmax cross-entropy loss of Dask arrays, with what perplexity, accuracy and calibration need.

    Parameters
    ----------
    logits, targets, axis, reduction, normalizer, n_threads, **options
        As in `cross_entropy` for Dask arrays. Logits whose classes are in several chunks are rechunked to have all
        classes of fewer rows in each; that moves them between workers.

    Returns
    -------
    Evaluation
        A named tuple of Dask arrays. ``dask.compute(result)[0]`` is the Evaluation of NumPy arrays, with perplexity,
        accuracy and the rest.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import softxent.dask
    >>> logits = da.log(da.from_array([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]], chunks=(1, 3)))
    >>> (result,) = dask.compute(softxent.dask.evaluate(logits, [2, 1]))
    >>> result.argmax, result.accuracy
    (array([2, 0]), 0.5)
    """
    return _Call(logits, targets, axis, n_threads, options, whole_rows=True).evaluation(reduction, normalizer)


@with_options
def softmax(
    logits: Any, *, axis: SupportsIndex = -1, n_threads: SupportsIndex | None = None, **options: Unpack[LogitOptions]
) -> Any:
    """Softmax of Dask arrays: the probabilities of the classes of each row.

    Parameters
    ----------
    logits, axis, n_threads, temperature, softcap, where
        As in `cross_entropy` for Dask arrays.

    Returns
    -------
    dask.array.Array, shape (..., C)
        In the chunks of the logits.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> import softxent.dask
    >>> softxent.dask.softmax(da.arange(3, dtype=float, chunks=1)).compute().round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    return _Call(logits, None, axis, n_threads, options, reader=read_logit_options).each_class(
        _softmax.softmax, shards.softmax
    )


@with_options
def log_softmax(
    logits: Any, *, axis: SupportsIndex = -1, n_threads: SupportsIndex | None = None, **options: Unpack[LogitOptions]
) -> Any:
    """Logarithm of the softmax of Dask arrays.

    Parameters
    ----------
    logits, axis, n_threads, temperature, softcap, where
        As in `cross_entropy` for Dask arrays.

    Returns
    -------
    dask.array.Array, shape (..., C)
        In the chunks of the logits.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> import softxent.dask
    >>> softxent.dask.log_softmax(da.arange(3, dtype=float, chunks=1)).compute().round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    return _Call(logits, None, axis, n_threads, options, reader=read_logit_options).each_class(
        _softmax.log_softmax, shards.log_softmax
    )


@with_options
def logsumexp(
    logits: Any,
    *,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> Any:
    """Logarithm of the sum of the exponentials of each row of Dask arrays.

    Parameters
    ----------
    logits, axis, n_threads, temperature, softcap, where
        As in `cross_entropy` for Dask arrays.
    keepdims : bool, default False
        Whether the class axis stays, with length 1.

    Returns
    -------
    dask.array.Array, shape (...)
        In the chunks of the rows of the logits.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> import softxent.dask
    >>> softxent.dask.logsumexp(da.arange(3, dtype=float, chunks=1)).compute().round(4)
    np.float64(2.4076)
    """
    call = _Call(logits, None, axis, n_threads, options, reader=read_logit_options)
    lse = call.logsumexp()
    return da.expand_dims(lse, call.class_axis) if keepdims else lse


class _Operand(NamedTuple):
    """An array of a call, in chunks that fit those of the logits, and which axes of the logits its axes are.

    The entries of pairs lie along an axis of their own, after those of the logits.
    """

    array: Any
    axes: tuple[int, ...]


class _Settings(NamedTuple):
    """What a task knows besides its blocks."""

    class_axis: int
    n_classes: int
    n_threads: int
    numbers: dict[str, Any]  # options
    dtype: np.dtype  # computed in
    has_labels: bool

    def read(self, blocks: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Logits, targets and options of a task."""
        options = {**self.numbers, **{name: blocks[name] for name in ARRAYS if name in blocks}}
        targets = (blocks["indices"], blocks["probs"]) if "indices" in blocks else blocks.get("targets")
        return blocks.get("logits"), targets, options


class _Call:
    """The arrays of a call, read and brought to chunks that fit, and the graphs that are made from them."""

    def __init__(
        self,
        logits: Any,
        targets: Any,
        axis: SupportsIndex,
        n_threads: SupportsIndex | None,
        options: Any,
        reader: Callable[[Any], Any] = read_options,
        whole_rows: bool = False,
    ) -> None:
        if not isinstance(logits, da.Array):
            raise TypeError(
                f"logits must be a Dask array, got {type(logits).__name__}; the functions of softxent take others"
            )
        _, class_axis = read_logits(_stand_in(logits.dtype, logits.shape), axis)
        self.logits = _with_known_classes(logits, class_axis, whole_rows)
        self.axes = tuple(range(logits.ndim))
        self.class_axis, self.rows = class_axis, shape_without(self.axes, class_axis)
        self.in_parts = self.logits.numblocks[class_axis] > 1
        self.grad_dtype, dtype = result_dtypes(_stand_in(logits.dtype, (0,)))
        arrays = {name: _read(options[name], name) for name in ARRAYS if options.get(name) is not None}
        numbers = {name: value for name, value in options.items() if name not in ARRAYS}
        reader({**numbers, **{name: np.zeros(()) for name in arrays}})
        threads = 1 if n_threads is None else checked(n_threads, "n_threads")
        self.operands = {"logits": _Operand(self.logits, self.axes)}
        parts = dict(_parts_of(targets))
        has_labels = "targets" in parts and parts["targets"].ndim < logits.ndim
        self.settings = _Settings(class_axis, int(logits.shape[class_axis]), threads, numbers, dtype, has_labels)
        for name, array in {**parts, **arrays}.items():
            self.operands[name] = self._fitted(name, array, self._axes_of(name, array))
        self._refuse_early()

    def _axes_of(self, name: str, array: Any) -> tuple[int, ...]:
        """Which axes of the logits the axes of an array are."""
        if name in ("indices", "probs"):
            return (*self.rows, len(self.axes))
        if name == "weight" or (name == "where" and array.ndim == 1):
            return (self.class_axis,)
        if name == "where" or (name == "targets" and array.ndim == len(self.axes)):
            return self.axes
        return self.rows

    def _fitted(self, name: str, array: Any, axes: tuple[int, ...]) -> _Operand:
        """`array` in the chunks that the logits have along its axes; as it is if the shapes do not fit."""
        if array.ndim != len(axes):
            return _Operand(array, ())
        known = {axis: chunks for axis, chunks in enumerate(self.logits.chunks) if name != "logits"}
        chunks = tuple(known.get(axis, (size,)) for axis, size in zip(axes, array.shape, strict=True))
        sizes = tuple(map(sum, chunks))
        if any(_differ(mine, size) for mine, size in zip(sizes, array.shape, strict=True)):
            return _Operand(array, ())
        if isinstance(array, np.ndarray):
            if any(map(math.isnan, sizes)):
                raise ValueError(
                    f"{name} is in memory, but the chunks of logits have unknown sizes, so that it cannot be cut to "
                    "match; call logits.compute_chunk_sizes() first, or make it a Dask array in the same chunks"
                )
            return _Operand(da.from_array(array, chunks=chunks, name=False), axes)
        unknown = {i for i, pair in enumerate(zip(array.shape, sizes, strict=True)) if any(map(math.isnan, pair))}
        if any(array.numblocks[i] != len(chunks[i]) for i in unknown):
            raise ValueError(
                f"chunks of unknown size must come in the same number: logits have {self.logits.numblocks} and "
                f"{name} has {array.numblocks}; call compute_chunk_sizes() first, of whichever are unknown"
            )
        return _Operand(array.rechunk({i: chunks[i] for i in range(array.ndim) if i not in unknown}), axes)

    def _refuse_early(self) -> None:
        """Refuse what can be seen without computing, by the functions that read NumPy arrays.

        Where the rows fit, they read arrays without rows, so that no value matters.
        """
        fits = all(operand.axes or operand.array.ndim == 0 for operand in self.operands.values())
        x, targets, options = self.settings.read({name: self._stand_in(name, not fits) for name in self.operands})
        given = read_options(options)
        if targets is not None:
            read_targets(targets, x, self.class_axis, given.ignore_index, self.settings.dtype)
        given.fitted(x, self.class_axis, self.settings.dtype)

    def _stand_in(self, name: str, rows: bool) -> np.ndarray:
        """An array of the shape of an operand that takes no memory, with its rows or with none."""
        array, axes = self.operands[name]
        sizes = enumerate(array.shape)
        return _stand_in(array.dtype, tuple(size if rows or axes[i] not in self.rows else 0 for i, size in sizes))

    def _run(
        self,
        function: Callable[..., Any],
        out: Sequence[int],
        inputs: dict[str, _Operand],
        meta: Any = None,
        **how: Any,
    ) -> Any:
        """An array of what a function makes of the blocks of `inputs`. Without a `meta`, they may be anything."""
        return da.blockwise(
            partial(_in_task, function, tuple(inputs), self.settings, how),
            tuple(out),
            *(part for operand in inputs.values() for part in operand),
            align_arrays=False,
            concatenate=True,
            meta=np.empty((0,) * len(out), object) if meta is None else meta,
        )

    def _meta(self, index: Sequence[int], dtype: Any) -> np.ndarray:
        return np.empty((0,) * len(index), dtype)

    def _item(self, made: Any, key: str, dtype: Any, by_row: bool = True) -> Any:
        """One of the results of each task, as an array."""
        if made.ndim == len(self.rows) or not by_row:
            return da.map_blocks(_item, made, key, meta=np.empty((0,) * made.ndim, dtype))
        return da.blockwise(
            _item,
            self.rows,
            made,
            self.axes,
            key=key,
            concatenate=False,
            align_arrays=False,
            meta=self._meta(self.rows, dtype),
        )

    def _summed(self, made: Any, key: str) -> Any:
        """The sum of one of the results of all tasks, each a few numbers, rounded once: a tree of exact sums."""
        return da.reduction(
            made,
            chunk=partial(_part_of_sum, key=key),
            combine=_add_parts,
            aggregate=_round_sum,
            concatenate=False,
            split_every=SPLIT_EVERY,
            dtype=np.float64,
            meta=self._meta((), np.float64),
        )

    def _divisor(self, merged: _Operand | None) -> Any:
        """What the mean divides by: a float, or an array that the sum over all rows makes."""
        n_rows = math.prod(self.logits.shape[axis] for axis in self.rows)
        by_class, by_row = "weight" in self.operands, "sample_weight" in self.operands
        if not (by_class or by_row or math.isnan(n_rows)) and self.settings.numbers.get("ignore_index") is None:
            return float(n_rows)
        if merged is not None:
            inputs = {"merged": merged, **self._chosen("sample_weight")}
            return self._summed(self._run(_masses_of_merged, self.rows, inputs, by_class=by_class), "masses")
        inputs = self._chosen("sample_weight")
        if by_class or not by_row or self.settings.has_labels:
            inputs = self._chosen("targets", "indices", "probs", "weight", "sample_weight")
        has_classes = any(operand.axes == self.axes for operand in inputs.values())
        return self._summed(self._run(_masses, self.axes if has_classes else self.rows, inputs), "masses")

    def _chosen(self, *names: str) -> dict[str, _Operand]:
        return {name: operand for name, operand in self.operands.items() if name in names}

    def _merged(self) -> _Operand:
        """The merged summaries of the rows."""
        summaries = self._run(_summarize, self.axes, {**self.operands, "first_class": self._first_classes()})
        merged = da.blockwise(
            _merge,
            self.rows,
            summaries,
            self.axes,
            concatenate=False,
            align_arrays=False,
            meta=self._meta(self.rows, shards.SUMMARY),
        )
        return _Operand(merged, self.rows)

    def _first_classes(self) -> _Operand:
        sizes = self.logits.chunks[self.class_axis]
        first = np.cumsum((0, *sizes[:-1]))
        return _Operand(da.from_array(first, chunks=1, name=False), (self.class_axis,))

    def loss_and_grad(self, reduction: str, normalizer: Any, with_grad: bool) -> tuple[Any, Any]:
        mean, per_row, divisor = _loss.read_reduction(reduction, normalizer)
        merged = self._merged() if self.in_parts else None
        inputs = dict(self.operands)
        if mean and divisor is None:
            divisor = self._divisor(merged)
        if isinstance(divisor, da.Array):
            inputs["divisor"] = _Operand(divisor, ())
        how = {"mean": mean, "divisor": None if isinstance(divisor, da.Array) else divisor}
        grad = None
        meta = self._meta(self.axes, self.grad_dtype)
        if merged is None:
            made = self._run(_visit, self.axes, inputs, with_grad=with_grad, **how)
            if with_grad:
                grad = self._item(made, "grad", self.grad_dtype, by_row=False)
        else:
            made = self._run(_losses, self.rows, {"merged": merged, **self._chosen("sample_weight")})
            if with_grad:
                inputs |= {"merged": merged, "first_class": self._first_classes()}
                grad = self._run(_grad, self.axes, inputs, meta, **how)
        return self._reduced(made, mean, per_row, divisor), grad

    def _reduced(self, made: Any, mean: bool, per_row: bool, divisor: Any) -> Any:
        if per_row:
            return self._item(made, "losses", self.settings.dtype)
        total = self._summed(made, "sum")
        return total if not mean else da.map_blocks(_divide, total, divisor, meta=self._meta((), np.float64))

    def evaluation(self, reduction: str, normalizer: Any) -> Evaluation[Any]:
        mean, per_row, divisor = _loss.read_reduction(reduction, normalizer)
        has_targets = bool(self._chosen("targets", "indices"))
        if not has_targets:
            _, _, options = self.settings.read(
                {name: self._stand_in(name, rows=False) for name in self._chosen(*ARRAYS)}
            )
            rows = self._stand_in("logits", rows=False)
            evaluate_rows(rows, axis=self.class_axis, normalizer=normalizer, **options)  # refuses what changes a loss
        made = self._run(_evaluate, self.axes, self.operands)
        dtype = self.settings.dtype
        if divisor is None:
            divisor = self._summed(made, "masses")
        dtypes: dict[str, Any] = dict.fromkeys(("log_prob", "lse", "entropy", "confidence"), dtype)
        dtypes |= {"argmax": np.int64, "rank": np.int64, "correct": np.bool_, "row_weight": np.float64}
        missing = (set() if self.settings.has_labels else {"rank", "correct"}) | (
            {"log_prob"} if not has_targets else set()
        )
        fields: dict[str, Any] = {
            name: None if name in missing else self._item(made, name, dtypes[name]) for name in dtypes
        }
        loss = self._reduced(made, mean, per_row, divisor) if has_targets else None
        return Evaluation(loss=loss, normalizer=divisor, reduction=reduction, **fields)

    def each_class(self, whole: Callable[..., np.ndarray], part: Callable[..., np.ndarray]) -> Any:
        """A result with a number for each class: by one function of whole rows, or another of parts of rows."""
        meta = self._meta(self.axes, self.grad_dtype)
        if self.in_parts:
            return self._run(_of_part, self.axes, {**self.operands, "merged": self._merged()}, meta, result=part)
        return self._run(_of_rows, self.axes, self.operands, meta, result=whole)

    def logsumexp(self) -> Any:
        dtype = self.settings.dtype
        if self.in_parts:
            merged = self._merged()
            return self._run(_lse, self.rows, {"merged": merged}, self._meta(self.rows, dtype))
        made = self._run(_logsumexp, self.axes, self.operands)
        return self._item(made, "lse", dtype)


def _stand_in(dtype: Any, shape: Sequence[float]) -> np.ndarray:
    """An array of this shape that takes no memory; sizes that are unknown are 1."""
    return np.broadcast_to(np.zeros((), dtype), tuple(1 if math.isnan(size) else int(size) for size in shape))


def _differ(size: float, other: float) -> bool:
    return not (math.isnan(size) or math.isnan(other) or size == other)


def _read(value: Any, name: str) -> Any:
    """`value` as a Dask or NumPy array."""
    if isinstance(value, da.Array):
        if isinstance(value._meta, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array: the mask would be ignored; fill it, or leave rows out")
        return value
    if isinstance(value, list | tuple) and any(isinstance(part, da.Array) for part in value):
        raise TypeError(
            f"{name} must be one array, or a tuple (indices, probs) of two, NumPy or Dask arrays; got Dask arrays in a "
            f"{type(value).__name__} of {len(value)}, which would be loaded"
        )
    return read_array(value, name)


def _parts_of(targets: Any) -> Iterator[tuple[str, Any]]:
    if targets is None:
        return
    if isinstance(targets, tuple) and len(targets) == 2 and all(isinstance(t, da.Array | np.ndarray) for t in targets):
        yield "indices", _read(targets[0], "targets[0]")
        yield "probs", _read(targets[1], "targets[1]")
    else:
        yield "targets", _read(targets, "targets")


def _with_known_classes(logits: Any, class_axis: int, whole_rows: bool) -> Any:
    """The logits, in chunks with at least one class, or with all classes."""
    _read(logits, "logits")
    chunks = logits.chunks[class_axis]
    if any(map(math.isnan, chunks)):
        raise ValueError(
            f"the sizes of the chunks along the class axis, {class_axis}, must be known; call "
            "logits.compute_chunk_sizes() first"
        )
    if 0 in chunks:
        logits = logits.rechunk({class_axis: tuple(size for size in chunks if size)})
    if whole_rows and len(chunks) > 1:
        sizes = {axis: "auto" for axis in range(logits.ndim) if not math.isnan(logits.shape[axis])}
        largest = max(1, int(np.nanmax([math.prod(map(max, logits.chunks)), 1])) * logits.dtype.itemsize)
        logits = logits.rechunk({**sizes, class_axis: -1}, block_size_limit=largest)
    return logits


def _in_task(
    function: Callable[..., Any], names: tuple[str, ...], settings: _Settings, how: dict[str, Any], *blocks: Any
) -> Any:
    try:
        return function(settings, dict(zip(names, blocks, strict=True)), **how)
    except (TypeError, ValueError) as error:
        error.add_note("This is about one chunk of a Dask array; indices count from the beginning of the chunk.")
        raise


def _visit(
    settings: _Settings, blocks: dict[str, Any], mean: bool, divisor: float | None, with_grad: bool
) -> dict[str, Any]:
    """Loss and gradient of rows with all their classes."""
    x, targets, options = settings.read(blocks)
    given = read_options(options)
    if mean:
        given.normalizer = float(blocks["divisor"]) if divisor is None else divisor
    losses = np.zeros(_rows_of(x, settings))
    _, grad = _loss.visit(
        x,
        targets,
        settings.class_axis,
        "mean" if mean else "sum",
        None,
        settings.n_threads,
        given,
        with_grad,
        losses=losses,
    )
    return {"grad": grad, **_of_losses(losses, settings)}


def _rows_of(x: Any, settings: _Settings) -> tuple[int, ...]:
    return shape_without(np.shape(x), settings.class_axis)


def _exact_sum(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array(_doubles.exact_sum(values))


def _of_losses(losses: np.ndarray, settings: _Settings) -> dict[str, Any]:
    """Losses of float64: rounded, and summed up."""
    return {"losses": taken_as(losses, settings.dtype), "sum": _exact_sum(losses)}


def _masses(settings: _Settings, blocks: dict[str, Any]) -> dict[str, Any]:
    """What rows with all their classes add to the divisor of the mean."""
    _, targets, options = settings.read(blocks)
    rows = np.shape(blocks["sample_weight"]) if targets is None else np.shape(targets)
    if isinstance(targets, tuple):
        rows = np.shape(targets[0])[:-1]
    elif targets is not None and not settings.has_labels:
        rows = shape_without(rows, settings.class_axis)
    shape = (*rows[: settings.class_axis], settings.n_classes, *rows[settings.class_axis :])
    x = _stand_in(settings.dtype, shape)
    given = read_options({name: value for name, value in options.items() if name != "where"})
    return {"masses": _masses_of(x, targets, given, settings)}


def _masses_of(x: np.ndarray, targets: Any, given: Given, settings: _Settings) -> np.ndarray:
    axis = settings.class_axis
    fitted = given.fitted(x, axis, settings.dtype)
    return _exact_sum(weigh_rows(targets, fitted, shape_without(x.shape, axis), axis, settings.has_labels)[1])


def _evaluate(settings: _Settings, blocks: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate` says of rows with all their classes."""
    x, targets, options = settings.read(blocks)
    result: Any = evaluate_rows(x, targets, axis=settings.class_axis, n_threads=settings.n_threads, **options)
    masses = _masses_of(x, targets, read_options(options), settings)
    losses = {} if targets is None else _visit(settings, blocks, False, None, False)
    return {**result._asdict(), "masses": masses, **losses}


def _of_rows(settings: _Settings, blocks: dict[str, Any], result: Callable[..., np.ndarray]) -> np.ndarray:
    """A function of the softmax family, of rows with all their classes."""
    x, _, options = settings.read(blocks)
    return result(x, axis=settings.class_axis, n_threads=settings.n_threads, **options)


def _logsumexp(settings: _Settings, blocks: dict[str, Any]) -> dict[str, Any]:
    return {"lse": _of_rows(settings, blocks, _softmax.logsumexp)}


def _summarize(settings: _Settings, blocks: dict[str, Any]) -> np.ndarray:
    """The summaries of rows with a part of their classes."""
    x, targets, options = settings.read(blocks)
    where = {"first_class": int(blocks["first_class"][0]), "n_classes": settings.n_classes}
    return shards.summarize(x, targets, axis=settings.class_axis, **where, **options)


def _merge(parts: Any) -> np.ndarray:
    return shards.merge(parts)


def _losses(settings: _Settings, blocks: dict[str, Any]) -> dict[str, Any]:
    """The losses of rows whose classes were merged."""
    _, _, options = settings.read(blocks)
    return _of_losses(shards.loss(blocks["merged"], reduction="none", **options), settings)


def _masses_of_merged(settings: _Settings, blocks: dict[str, Any], by_class: bool) -> dict[str, Any]:
    """What rows whose classes were merged add to the divisor of the mean."""
    _, _, options = settings.read(blocks)
    return {"masses": _exact_sum(shards.masses(blocks["merged"], by_class, read_options(options)))}


def _grad(settings: _Settings, blocks: dict[str, Any], mean: bool, divisor: float | None) -> np.ndarray:
    """The gradient of rows with a part of their classes."""
    x, targets, options = settings.read(blocks)
    if mean and divisor is None:
        divisor = float(blocks["divisor"])
    return shards.part_of_grad(
        x,
        targets,
        blocks["merged"],
        int(blocks["first_class"][0]),
        settings.class_axis,
        mean,
        divisor,
        None,
        read_options(options),
    )


def _of_part(settings: _Settings, blocks: dict[str, Any], result: Callable[..., np.ndarray]) -> np.ndarray:
    """A function of the softmax family, of rows with a part of their classes."""
    x, _, options = settings.read(blocks)
    return result(x, blocks["merged"], axis=settings.class_axis, **options)


def _lse(settings: _Settings, blocks: dict[str, Any]) -> np.ndarray:
    return taken_as(shards.lse(blocks["merged"]), settings.dtype)


def _leaves(nested: Any) -> Iterator[Any]:
    """What is in lists, and in lists of lists."""
    if isinstance(nested, list):
        for part in nested:
            yield from _leaves(part)
    else:
        yield nested


def _item(made: Any, key: str) -> Any:
    """One of the results of a task; with its block in a list, as Dask hands over an axis that goes."""
    (results,) = _leaves(made)
    return results[key]


def _part_of_sum(results: Any, axis: Any, keepdims: bool, key: str) -> Any:
    return results[key]


def _add_parts(parts: Any, axis: Any, keepdims: bool) -> np.ndarray:
    return _exact_sum(np.concatenate(list(_leaves(parts))))


def _round_sum(parts: Any, axis: Any, keepdims: bool) -> np.float64:
    return np.float64(math.fsum(np.concatenate(list(_leaves(parts)))))


def _divide(total: np.float64, divisor: Any) -> np.float64:
    """The mean; 0 if the divisor is."""
    with np.errstate(all="ignore"):
        return np.float64(total / divisor if divisor else 0.0)
