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

from softxent import _loss, _softmax, shards
from softxent._counting import scaled_weights, weigh_rows
from softxent._doubles import ONE, Sum
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

    Other arrays may be NumPy or Dask arrays, in any chunks: they are cut, or rechunked, to those of the logits.

    Parameters
    ----------
    logits : dask.array.Array, shape (..., C)
        As in the function of this name for NumPy arrays, in any chunks, of the rows and of the classes.
    targets : array_like or dask.array.Array, or a pair of them
        As in the function for NumPy arrays.
    axis, reduction, normalizer
        As in `cross_entropy`.
    n_threads : int, default 1
        How many threads each task may use. A scheduler runs several tasks at once, so that 1 is right nearly always.
    **options
        See `Options`.

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
        As in `cross_entropy`.

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
        As in `cross_entropy`.

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
    return _Call(logits, targets, axis, n_threads, options).evaluation(reduction, normalizer)


@with_options
def softmax(
    logits: Any, *, axis: SupportsIndex = -1, n_threads: SupportsIndex | None = None, **options: Unpack[LogitOptions]
) -> Any:
    """Softmax of Dask arrays: the probabilities of the classes of each row.

    Parameters
    ----------
    logits, axis, n_threads, temperature, softcap, where
        As in `cross_entropy`.

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
        As in `cross_entropy`.

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
        As in `cross_entropy`.
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


class _Task:
    """What a task has: the settings, and blocks of arrays by name."""

    def __init__(self, settings: _Settings, blocks: dict[str, Any]) -> None:
        self.settings, self.blocks, self.axis = settings, blocks, settings.class_axis
        self.logits: Any = blocks.get("logits")
        self.targets: Any = (blocks["indices"], blocks["probs"]) if "indices" in blocks else blocks.get("targets")
        self.given = read_options({**settings.numbers, **{name: blocks[name] for name in ARRAYS if name in blocks}})

    def options(self) -> dict[str, Any]:
        return dict(vars(self.given))

    def first_class(self) -> int:
        """Of a block with a part of the classes."""
        return int(self.blocks["first_class"][0])


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
    ) -> None:
        if not isinstance(logits, da.Array):
            raise TypeError(
                f"logits must be a Dask array, got {type(logits).__name__}; the functions of softxent take others"
            )
        _, class_axis = read_logits(_stand_in(logits.dtype, logits.shape), axis)
        self.logits = _with_known_classes(logits, class_axis)
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
        known = dict(enumerate(self.logits.chunks))
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
        task = _Task(self.settings, {name: self._stand_in(name, not fits) for name in self.operands})
        if task.targets is not None:
            read_targets(task.targets, task.logits, task.axis, task.given.ignore_index, self.settings.dtype)
        task.given.fitted(task.logits, task.axis, self.settings.dtype)

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
        """An array of what a function makes of the blocks of `inputs`. Without a `meta`, they may be anything.

        `how` are its other arguments. One that is an array is what its only block holds.
        """
        lazy = {name: _Operand(value, ()) for name, value in how.items() if isinstance(value, da.Array)}
        inputs, how = inputs | lazy, {name: value for name, value in how.items() if name not in lazy}
        return da.blockwise(
            partial(_in_task, function, tuple(inputs), tuple(lazy), self.settings, how),
            tuple(out),
            *(part for operand in inputs.values() for part in operand),
            align_arrays=False,
            concatenate=True,
            meta=self._meta(out, object) if meta is None else meta,
        )

    def _meta(self, index: Sequence[int], dtype: Any) -> np.ndarray:
        return np.empty((0,) * len(index), dtype)

    def _item(self, made: Any, key: str, dtype: Any, by_row: bool = True) -> Any:
        """One of the results of each task, as an array."""
        if made.ndim == len(self.rows) or not by_row:
            return da.map_blocks(_item, made, key, meta=self._meta(range(made.ndim), dtype))
        return self._joined(partial(_item, key=key), made, dtype).array

    def _summed(self, made: Any, key: str) -> Any:
        """The `Sum` of all tasks together, of those that each has under a key: a tree of exact sums."""
        return da.reduction(
            made,
            chunk=partial(_part_of_sum, key=key),
            combine=_add_parts,
            aggregate=_add_parts,
            concatenate=False,
            split_every=SPLIT_EVERY,
            dtype=object,
            meta=self._meta((), object),
        )

    def _divisor(self, merged: _Operand | None) -> Any:
        """What the mean divides by: a `Sum`, or an array with one that tasks find."""
        n_rows = math.prod(self.logits.shape[axis] for axis in self.rows)
        by_class, by_row = "weight" in self.operands, "sample_weight" in self.operands
        if not (by_class or by_row or math.isnan(n_rows)) and self.settings.numbers.get("ignore_index") is None:
            return Sum.of(n_rows)
        if merged is not None:
            inputs = {"merged": merged, **self._chosen("sample_weight")}
            return self._summed(self._run(_masses_of_merged, self.rows, inputs, by_class=by_class), "masses")
        inputs = self._chosen("sample_weight")
        if by_class or not by_row or self.settings.has_labels:
            inputs = self._chosen("targets", "indices", "probs", "weight", "sample_weight") or self._chosen("logits")
        has_classes = any(operand.axes == self.axes for operand in inputs.values())
        return self._summed(self._run(_masses, self.axes if has_classes else self.rows, inputs), "masses")

    def _chosen(self, *names: str) -> dict[str, _Operand]:
        return {name: operand for name, operand in self.operands.items() if name in names}

    def _joined(self, join: Callable[..., Any], made: Any, dtype: Any = object) -> _Operand:
        """What a function makes of a list of the results of the chunks of the same rows."""
        kwargs = {"concatenate": False, "align_arrays": False, "meta": self._meta(self.rows, dtype)}
        return _Operand(da.blockwise(join, self.rows, made, self.axes, **kwargs), self.rows)

    def _merged(self) -> _Operand:
        """The merged summaries of the rows."""
        inputs = {**self.operands, "first_class": self._first_classes()}
        return self._joined(shards.merge, self._run(_summarize, self.axes, inputs))

    def _first_classes(self) -> _Operand:
        sizes = self.logits.chunks[self.class_axis]
        first = np.cumsum((0, *sizes[:-1]))
        return _Operand(da.from_array(first, chunks=1, name=False), (self.class_axis,))

    def loss_and_grad(self, reduction: str, normalizer: Any, with_grad: bool) -> tuple[Any, Any]:
        mean, per_row, number = _loss.read_reduction(reduction, normalizer)
        merged = self._merged() if self.in_parts else None
        divisor = grad = None
        if mean:
            divisor = self._divisor(merged) if number is None else Sum.of(number)
        if merged is None:
            made = self._run(_visit, self.axes, self.operands, divisor=divisor, with_grad=with_grad)
            if with_grad:
                grad = self._item(made, "grad", self.grad_dtype, by_row=False)
        else:
            made = self._run(_losses, self.rows, {"merged": merged, **self._chosen("sample_weight")}, divisor=divisor)
            if with_grad:
                inputs = {**self.operands, "merged": merged, "first_class": self._first_classes()}
                grad = self._run(_grad, self.axes, inputs, self._meta(self.axes, self.grad_dtype), divisor=divisor)
        return self._reduced(made, per_row, divisor), grad

    def _reduced(self, made: Any, per_row: bool, divisor: Any) -> Any:
        if per_row:
            return self._item(made, "losses", self.settings.dtype)
        return self._number(_divide, self._summed(made, "sum"), ONE if divisor is None else divisor)

    def _number(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return da.map_blocks(function, *arguments, meta=self._meta((), np.float64))

    def evaluation(self, reduction: str, normalizer: Any) -> Evaluation[Any]:
        mean, per_row, number = _loss.read_reduction(reduction, normalizer)
        has_targets = bool(self._chosen("targets", "indices"))
        if not has_targets:
            rows = _Task(self.settings, {name: self._stand_in(name, False) for name in self._chosen("logits", *ARRAYS)})
            # This refuses what changes a loss.
            evaluate_rows(rows.logits, axis=self.class_axis, normalizer=normalizer, **rows.options())
        merged = self._merged_for_evaluation() if self.in_parts else {}
        divisor = self._divisor(merged.get("merged")) if number is None else Sum.of(number)
        how = {"divisor": divisor if mean else None, "has_targets": has_targets}
        if merged:
            made = self._run(_evaluate_merged, self.rows, merged, **how)
        else:
            made = self._run(_evaluate, self.axes, self.operands, **how)
        dtypes: dict[str, Any] = dict.fromkeys(("lse", "entropy", "confidence"), self.settings.dtype)
        dtypes |= {"argmax": np.int64, "row_weight": np.float64}
        if has_targets:
            dtypes["log_prob"] = self.settings.dtype
        if self.settings.has_labels:
            dtypes |= {"rank": np.int64, "correct": np.bool_}
        fields: dict[str, Any] = dict.fromkeys(Evaluation._fields)
        fields |= {name: self._item(made, name, dtype) for name, dtype in dtypes.items()}
        if has_targets:
            fields["loss"] = self._reduced(made, per_row, how["divisor"])
        is_known = isinstance(divisor, Sum)
        fields["normalizer"] = divisor.rounded() if is_known else self._number(Sum.rounded, divisor)
        return Evaluation(**fields | {"reduction": reduction})

    def _merged_for_evaluation(self) -> dict[str, _Operand]:
        """What `evaluate` needs of rows whose classes are in several chunks, merged: the operands of a task.

        A second visit to each chunk finds what needs the merged summaries. Weights of classes are for the loss alone.
        """
        plain = {name: operand for name, operand in self.operands.items() if name != "weight"}
        firsts = {"first_class": self._first_classes()}
        summaries = self._joined(_join_summaries, self._run(_summarize_with_labels, self.axes, plain | firsts))
        rows = {**(self._chosen("targets") if self.settings.has_labels else {}), "summaries": summaries}
        inputs = {**self._chosen("logits", "where"), **rows, **firsts}
        sums = self._joined(sum, self._run(_entropy_and_rank_sums, self.axes, inputs))
        merged = _Operand(self._item(summaries.array, "merged", object), self.rows)
        if "weight" in self.operands:
            merged = self._merged()
        return {**rows, **self._chosen("sample_weight"), "sums": sums, "merged": merged}

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


def _with_known_classes(logits: Any, class_axis: int) -> Any:
    """The logits, in chunks with at least one class."""
    _read(logits, "logits")
    chunks = logits.chunks[class_axis]
    if any(map(math.isnan, chunks)):
        raise ValueError(
            f"the sizes of the chunks along the class axis, {class_axis}, must be known; call "
            "logits.compute_chunk_sizes() first"
        )
    if 0 in chunks:
        logits = logits.rechunk({class_axis: tuple(size for size in chunks if size)})
    return logits


def _in_task(
    function: Callable[..., Any],
    names: tuple[str, ...],
    lazy: tuple[str, ...],
    settings: _Settings,
    how: dict[str, Any],
    *values: Any,
) -> Any:
    blocks = dict(zip(names, values, strict=True))
    try:
        return function(_Task(settings, blocks), **how, **{name: blocks[name] for name in lazy})
    except (TypeError, ValueError) as error:
        error.add_note("This is about one chunk of a Dask array; indices count from the beginning of the chunk.")
        raise


def _visit(task: _Task, divisor: Sum | None, with_grad: bool) -> dict[str, Any]:
    """Loss and gradient of rows with all their classes; divided, for a mean."""
    rows, shift, given = shape_without(np.shape(task.logits), task.axis), 0, task.given
    if divisor is not None:
        shift = divisor.shift()
        given.normalizer = divisor.rounded(shift)
    if shift:
        given.sample_weight = scaled_weights(given.sample_weight, rows, shift)
    losses, n_threads = np.zeros(rows), task.settings.n_threads
    reduction = "sum" if divisor is None else "mean"
    _, grad = _loss.visit(
        task.logits, task.targets, task.axis, reduction, None, n_threads, given, with_grad, losses=losses
    )
    return {"grad": grad, **_of_losses(task, losses, -shift)}


def _of_losses(task: _Task, losses: np.ndarray, exponent: int) -> dict[str, Any]:
    """Losses of float64 that were divided by 2^exponent: rounded, and summed up."""
    return {"losses": taken_as(losses, task.settings.dtype), "sum": Sum.of(losses, exponent)}


def _masses(task: _Task) -> dict[str, Any]:
    """What rows with all their classes add to the divisor of the mean."""
    settings, targets = task.settings, task.targets
    given = Given({name: value for name, value in task.options().items() if name != "where"})
    if given.sample_weight is not None:
        rows = given.sample_weight.shape
    elif isinstance(targets, tuple):
        rows = targets[0].shape[:-1]
    elif settings.has_labels:
        rows = targets.shape
    else:
        rows = shape_without(np.shape(task.logits if targets is None else targets), task.axis)
    x = _stand_in(settings.dtype, (*rows[: task.axis], settings.n_classes, *rows[task.axis :]))
    fitted = given.fitted(x, task.axis, settings.dtype)
    if given.weight is not None and settings.has_labels and settings.dtype == np.float64:
        # No sums: none is divided by a unit, so that none vanishes.
        fitted.weight, fitted.weight_unit = taken_as(given.weight, np.float64), None
    return {"masses": Sum.of(*weigh_rows(targets, fitted, rows, task.axis, settings.has_labels))}


def _evaluate(task: _Task, divisor: Sum | None, has_targets: bool) -> dict[str, Any]:
    """What `evaluate` says of rows with all their classes."""
    kwargs = {"axis": task.axis, "n_threads": task.settings.n_threads, **task.options()}
    result: Any = evaluate_rows(task.logits, task.targets, **kwargs)
    return {**result._asdict(), **(_visit(task, divisor, False) if has_targets else {})}


def _of_rows(task: _Task, result: Callable[..., np.ndarray]) -> np.ndarray:
    """A function of the softmax family, of rows with all their classes."""
    return result(task.logits, axis=task.axis, n_threads=task.settings.n_threads, **task.options())


def _logsumexp(task: _Task) -> dict[str, Any]:
    return {"lse": _of_rows(task, _softmax.logsumexp)}


def _summarize(task: _Task) -> Any:
    """The summaries of rows with a part of their classes."""
    return _summarize_with_labels(task)["merged"]


def _losses(task: _Task, divisor: Sum | None) -> dict[str, Any]:
    """The losses of rows whose classes were merged."""
    return _of_losses(task, *shards.losses_of(task.blocks["merged"], divisor, task.given))


def _masses_of_merged(task: _Task, by_class: bool) -> dict[str, Any]:
    """What rows whose classes were merged add to the divisor of the mean."""
    return {"masses": shards.masses(task.blocks["merged"], by_class, task.given)}


def _grad(task: _Task, divisor: Sum | None) -> np.ndarray:
    """The gradient of rows with a part of their classes."""
    merged, mean = task.blocks["merged"], divisor is not None
    return shards.part_of_grad(
        task.logits, task.targets, merged, task.first_class(), task.axis, mean, divisor, None, task.given
    )


def _summarize_with_labels(task: _Task) -> dict[str, Any]:
    """The summaries of rows with a part of their classes, and the logits of their labels."""
    n_classes = task.settings.n_classes
    return shards.summarize_with_labels(task.logits, task.targets, task.first_class(), n_classes, task.axis, task.given)


def _join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    merged, label_logits = ([part[name] for part in summaries] for name in ("merged", "label_logit"))
    return {"merged": shards.merge(merged), "label_logit": None if label_logits[0] is None else sum(label_logits)}


def _entropy_and_rank_sums(task: _Task) -> np.ndarray:
    """What `evaluate` needs of rows with a part of their classes, once their summaries were merged."""
    merged, label_logit = (task.blocks["summaries"][name] for name in ("merged", "label_logit"))
    return shards.entropy_and_rank_sums(
        task.logits, task.targets, merged, label_logit, task.first_class(), task.axis, task.given
    )


def _evaluate_merged(task: _Task, divisor: Sum | None, has_targets: bool) -> dict[str, Any]:
    """What `evaluate` says of rows whose classes were merged."""
    merged, sums = task.blocks["summaries"]["merged"], task.blocks["sums"]
    found = shards.evaluated(merged, sums, task.targets, task.given, task.settings.dtype)
    return found | (_losses(task, divisor) if has_targets else {})


def _of_part(task: _Task, result: Callable[..., np.ndarray]) -> np.ndarray:
    """A function of the softmax family, of rows with a part of their classes."""
    return result(task.logits, task.blocks["merged"], axis=task.axis, **task.options())


def _lse(task: _Task) -> np.ndarray:
    return taken_as(shards.lse(task.blocks["merged"]), task.settings.dtype)


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


def _add_parts(parts: Any, axis: Any, keepdims: bool) -> Sum:
    return Sum.merged(_leaves(parts))


def _divide(total: Sum, divisor: Sum) -> np.float64:
    """The mean; 0 if the divisor is."""
    return np.float64(total.over(divisor))
