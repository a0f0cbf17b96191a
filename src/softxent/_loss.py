"""What a user calls: the loss, and the loss with its gradient.

Each call makes one attempt with the arrays as they came. A kernel takes them or, having written nothing, says that it
cannot; only then are the arguments read with care, refused with a reason, or prepared.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent import _threads
from softxent._dispatch import active as _kernels
from softxent._inputs import (
    Pair,
    read_labels,
    read_logits,
    read_out,
    read_targets,
    read_vectors,
    result_dtypes,
    shape_without,
)
from softxent._options import Given, MeanCall, Options, RowsCall, SumCall, read_number, read_options, with_options
from softxent.call._call import NONE_NEEDED, OVERLAPS, RESULTS, team_size

NATIVE_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # in the byte order of the machine
NATIVE_HALF = np.dtype(np.float16)
MEAN = "mean"  # looked for by identity, which is quick: the default of every function is this object
# Whether each divides by the weight of the rows, and whether it returns the loss of each row.
REDUCTIONS = {"mean": (True, False), "sum": (False, False), "none": (False, True)}


@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[MeanCall]) -> float: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[SumCall]) -> float: ...
@overload
def cross_entropy(logits: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[RowsCall]) -> np.ndarray: ...
@with_options
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> float | np.ndarray:
    r"""Softmax cross-entropy loss.

    Parameters
    ----------
    logits : array_like, shape (..., C)
        Unnormalised log-probabilities, the classes along `axis`; shape ``(C,)`` is one example. float16,
        bfloat16 (of ``ml_dtypes``), float32 or float64; integers and bool are computed in float64, half-precision
        numbers in float32. Any strides and byte order.
    targets : array_like, shape (...) or (..., C), or a pair of arrays
        With the shape of `logits` less the class axis: class labels, of any integer dtype, in ``[0, C)``. With the
        shape of `logits`: one distribution over the classes per row, one-hot or soft, of any real or bool dtype, read
        in the precision that the logits are computed in. A tuple ``(indices, probs)`` of two ndarrays, integers and
        real numbers, both of the shape of `logits` less the class axis and with one axis more at the end: a
        distribution that has probs at the classes indices; repeated classes are added, all other classes get 0. The
        rows of a distribution need not sum to one.
    axis : int, default -1
        The axis of the classes. Shapes are given here with C last; with ``axis=1``, ``(N, C, H, W)`` logits take
        ``(N, H, W)`` labels. No array is copied as a whole.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean over all rows that count, weighted with `sample_weight` and, if given, the `weight` of their targets;
        the sum; or the loss of each row.
    normalizer : float, optional
        "mean" divides the sum by this instead of the total weight of the rows that count: for instance the number of
        tokens of a batch of which this is a part. If the divisor is 0, loss and gradient are 0.
    n_threads : int, optional
        How many threads this call may use; see `set_num_threads`.
    **options
        See `Options`.

    Returns
    -------
    loss : float or ndarray
        For "mean" and "sum" a float accumulated in double precision, 0.0 if there are no rows. For "none" an array of
        shape (...), float64 for logits computed in float64 and float32 for others; a 0-d array for one example.

    Raises
    ------
    TypeError
        An argument has a type or dtype that cannot be used, such as labels that are floats.
    ValueError
        The shapes do not fit, `logits` has no such axis, there is no class, `reduction` is not known, a label is
        neither a class nor `ignore_index`, or an option has no meaning with the others.

    See Also
    --------
    value_and_grad : the loss and its gradient in one pass.

    Notes
    -----
    For logits :math:`x` and targets :math:`t` of one row,

    .. math:: L = -\sum_k t_k \log p_k, \qquad p_k = \frac{e^{x_k}}{\sum_j e^{x_j}},

    which for a label :math:`y` is :math:`\log \sum_j e^{x_j} - x_y` [1]_. It is computed as
    :math:`\log(1 + R) + (m - x_y)`, with :math:`m` the largest logit and :math:`R` the sum of the other
    :math:`e^{x_j - m}`, so that a small loss keeps all its digits.

    References
    ----------
    .. [1] Goodfellow, Bengio and Courville, *Deep Learning*, MIT Press, 2016, section 6.2.2.3.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> logits = np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]])
    >>> round(sx.cross_entropy(logits, [2, 0]), 6)
    0.366985
    >>> sx.cross_entropy(logits, [[0, 0, 1], [1, 0, 0]], reduction="none").round(6)
    array([0.510826, 0.223144])

    Rows that do not count, and others that count double:

    >>> round(sx.cross_entropy(logits, [2, -100], ignore_index=-100), 6)
    0.510826
    >>> round(sx.cross_entropy(logits, [2, 0], sample_weight=[1, 2]), 6)
    0.319038
    """
    given = read_options(options) if options else None
    loss: float | np.ndarray = visit(logits, targets, axis, reduction, normalizer, n_threads, given, False)[0]
    return loss


@overload
def value_and_grad(
    logits: ArrayLike, targets: ArrayLike | Pair, *, out: np.ndarray | None = None, **call: Unpack[MeanCall]
) -> tuple[float, np.ndarray]: ...
@overload
def value_and_grad(
    logits: ArrayLike, targets: ArrayLike | Pair, *, out: np.ndarray | None = None, **call: Unpack[SumCall]
) -> tuple[float, np.ndarray]: ...
@overload
def value_and_grad(
    logits: ArrayLike, targets: ArrayLike | Pair, *, out: np.ndarray | None = None, **call: Unpack[RowsCall]
) -> tuple[np.ndarray, np.ndarray]: ...
@with_options
def value_and_grad(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> tuple[float | np.ndarray, np.ndarray]:
    r"""Softmax cross-entropy loss and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, axis, reduction, normalizer
        As in `cross_entropy`.
    out : ndarray, shape (..., C), optional
        Where to write the gradient: any writeable array of the logits' shape and one of the floating dtypes above, with
        any strides, or the logits themselves, which are then overwritten. If it overlaps an input in another way, the
        result is the same as if it did not, at the cost of a copy of the gradient. Two arrays count as overlapping if
        their memory ranges overlap.
    n_threads, **options
        As in `cross_entropy`.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    grad : ndarray, shape (..., C)
        The gradient of the reduced loss, of the sum for "none". `out` if that was given, else a new array of the
        logits' dtype (float64 for integers and bool), rounded to it once.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; and a ValueError if `out` cannot be written to. Nothing has been written then.

    See Also
    --------
    cross_entropy : the loss alone; allocates nothing of the logits' size.

    Notes
    -----
    With :math:`p` the softmax of a row of logits and :math:`t` its target (for a label :math:`y`, one at :math:`y`),

    .. math:: \frac{\partial L}{\partial x_j} = p_j \sum_k t_k - t_j,

    divided by the number of rows for "mean" [1]_. If :math:`p_j > 1/2`, it is computed from the sum of the other
    classes, so that the gradient of a confident row keeps all its digits.

    References
    ----------
    .. [1] Goodfellow, Bengio and Courville, *Deep Learning*, MIT Press, 2016, section 6.5.9.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> loss, grad = sx.value_and_grad(np.log([0.1, 0.3, 0.6]), 2)
    >>> round(loss, 6)
    0.510826
    >>> grad.round(6)
    array([ 0.1,  0.3, -0.4])

    In place, allocating nothing:

    >>> logits = np.log([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]])
    >>> loss, grad = sx.value_and_grad(logits, [2, 0], out=logits)
    >>> grad is logits
    True
    """
    given = read_options(options) if options else None
    return visit(logits, targets, axis, reduction, normalizer, n_threads, given, True, out)


def read_reduction(reduction: str, normalizer: Any) -> tuple[bool, bool, float | None]:
    """Whether the loss is a mean, whether it is one for each row, and what was given to divide by."""
    try:
        mean, per_row = REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}") from None
    if normalizer is None:
        return mean, per_row, None
    divisor = read_number("normalizer", normalizer, " or None")
    if not mean:
        raise ValueError(f"normalizer is what reduction='mean' divides by, got it with reduction={reduction!r}")
    return mean, per_row, divisor


def visit(
    logits: Any,
    targets: Any,
    axis: SupportsIndex,
    reduction: str,
    normalizer: Any,
    n_threads: SupportsIndex | None,
    given: Given | None,
    with_grad: bool,
    out: Any = None,
    diagnostics: tuple[np.ndarray, ...] | None = None,
    result: int = RESULTS["gradient"],
    vectors: tuple[str, Any] | None = None,
    hess: np.ndarray | None = None,
    losses: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Loss and gradient (None if not wanted), or another result. What a kernel takes as it is goes to it at once.

    `vectors` are what a product is taken with, after the name of the argument. `hess` is where a diagonal goes, and
    `losses`, of float64, where the loss of each row goes as it is summed up, beside a loss that is reduced.
    """
    mean, per_row = True, False
    if normalizer is not None or reduction is not MEAN:
        mean, per_row, normalizer = read_reduction(reduction, normalizer)
    if normalizer is not None:
        given = given or Given({})
        given.normalizer = normalizer
    threads = _threads.setting if n_threads is None else _threads.checked(n_threads, "n_threads")
    if (
        type(logits) is np.ndarray
        and (logits.dtype in NATIVE_FLOATS or logits.dtype == NATIVE_HALF)
        and (not per_row or logits.ndim > 0)  # the modulus below; else a kernel refuses scalars
        and type(axis) is int
        and -64 <= axis < 64  # no array has more axes; a C integer holds it
        and not (_threads.in_forked_child and threads != 1)
    ):
        if per_row:
            dtype = logits.dtype if logits.dtype != NATIVE_HALF else np.float32
            losses = np.empty(shape_without(logits.shape, axis % logits.ndim), dtype)
        grad = np.empty(logits.shape, logits.dtype) if with_grad and out is None else out
        v = None if vectors is None else vectors[1]
        loss = _kernels.run(logits, targets, axis, losses, grad, mean, threads, given, diagnostics, result, v, hess)
        if type(loss) is float:
            return (losses if per_row else loss), grad
        del grad  # before its like is allocated again
        if per_row:
            losses = None
    return _visit_with_care(
        logits, targets, axis, given, mean, per_row, threads, with_grad, out, diagnostics, result, vectors, hess, losses
    )


def _visit_with_care(
    logits: Any,
    targets: Any,
    axis: SupportsIndex,
    given: Given | None,
    mean: bool,
    per_row: bool,
    threads: int,
    with_grad: bool,
    out: Any,
    diagnostics: tuple[np.ndarray, ...] | None,
    result: int,
    vectors: tuple[str, Any] | None,
    hess: np.ndarray | None,
    losses: np.ndarray | None,
) -> tuple[Any, Any]:
    """`visit` for any arguments: they are refused with a reason, or brought to a form that a kernel takes."""
    x, class_axis = read_logits(logits, axis, "probs" if result == RESULTS["product of probs"] else "logits")
    grad_dtype, dtype = result_dtypes(x)
    read = read_targets if diagnostics is None else read_labels
    t, v = targets, None
    if vectors is not None:
        v = read_vectors(vectors[1], vectors[0], x.shape)
    if targets is not NONE_NEEDED:
        t = read(targets, x, class_axis, None if given is None else given.ignore_index, dtype)
    given = None if given is None else given.fitted(x, class_axis, dtype)
    if per_row:
        losses = np.empty(shape_without(x.shape, class_axis), dtype)
    grad = None
    if out is not None:
        grad = read_out(out, x.shape)
    elif with_grad:
        grad = np.empty(x.shape, grad_dtype)

    def run(into: np.ndarray | None, hess: np.ndarray | None) -> float | int:
        return run_kernel(x, t, class_axis, losses, into, mean, threads, given, diagnostics, result, v, hess)

    loss = run(grad, hess)
    if type(loss) is not float and loss == OVERLAPS and grad is not None:  # a loss may be 2.0
        apart, hess_apart = np.empty_like(grad), None if hess is None else np.empty_like(hess)
        loss = run(apart, hess_apart)
        if type(loss) is float:
            np.copyto(grad, apart)
            if hess is not None and hess_apart is not None:
                np.copyto(hess, hess_apart)
    total = done(loss)
    return (losses if per_row else total), (grad if out is None else out)


def run_kernel(
    x: np.ndarray, t: Any, class_axis: int, losses: np.ndarray | None, into: Any, mean: bool, threads: int, *rest: Any
) -> float | int:
    """`Kernels.run`, in a forked child on a new thread."""
    n_classes = x.shape[class_axis]
    n_threads = team_size(x.size // n_classes, n_classes, threads)
    arguments = (x, t, class_axis, losses, into, mean, n_threads, *rest)
    if _threads.in_forked_child and n_threads > 1:
        return _threads.on_new_thread(_kernels.run, *arguments)
    return _kernels.run(*arguments)


def done(loss: float | int) -> float:
    """What a kernel returns for arguments that were read: its status is then a loss."""
    if type(loss) is not float:
        raise RuntimeError("the arguments were changed by another thread during the call")
    return loss
