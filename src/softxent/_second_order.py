"""The second derivative of the loss: its diagonal, beside loss and gradient, and its products with vectors."""

from __future__ import annotations

from typing import Any, Literal, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent import _loss
from softxent._inputs import Pair, read_logits, read_out, result_dtypes
from softxent._options import Given, MeanCall, Options, RowsCall, SumCall, read_number, read_options, with_options
from softxent.call._call import RESULTS, share_memory

Out = tuple[np.ndarray, np.ndarray]


@overload
def value_grad_and_hess(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    hess_factor: SupportsFloat = 1.0,
    out: Out | None = None,
    **call: Unpack[MeanCall],
) -> tuple[float, np.ndarray, np.ndarray]: ...
@overload
def value_grad_and_hess(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    hess_factor: SupportsFloat = 1.0,
    out: Out | None = None,
    **call: Unpack[SumCall],
) -> tuple[float, np.ndarray, np.ndarray]: ...
@overload
def value_grad_and_hess(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    hess_factor: SupportsFloat = 1.0,
    out: Out | None = None,
    **call: Unpack[RowsCall],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
@with_options
def value_grad_and_hess(
    logits: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    hess_factor: SupportsFloat = 1.0,
    out: Out | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> tuple[float | np.ndarray, np.ndarray, np.ndarray]:
    r"""Softmax cross-entropy loss, its gradient and the diagonal of each row's Hessian, in one pass.

    Parameters
    ----------
    logits, targets, axis, reduction, normalizer
        As in `cross_entropy`.
    hess_factor : float, default 1.0
        The diagonal, not the gradient, is multiplied by this before it is rounded. XGBoost's own objective has 2,
        LightGBM's :math:`C / (C - 1)`.
    out : tuple of two ndarrays, shape (..., C), optional
        Where to write gradient and diagonal: writeable arrays of the logits' shape, each of any floating dtype and with
        any strides, that do not overlap each other. One of them may be the logits, which are then overwritten. If one
        overlaps an input in another way, the result is the same as if it did not, at the cost of copies of both.
    n_threads, **options
        As in `cross_entropy`.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    grad : ndarray, shape (..., C)
        As `value_and_grad` returns it, to the bit.
    hess : ndarray, shape (..., C)
        The second derivative of the reduced loss, of the sum for "none", with respect to each logit: of the dtype of
        the gradient, unless `out` has another.

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`; and a ValueError if `softcap` is given, whose second derivative is not computed.

    See Also
    --------
    hvp : products of the whole Hessian of each row with a vector.

    Notes
    -----
    With the softmax :math:`p` of a row and the sum :math:`T = \sum_k t_k` of its target,

    .. math:: \frac{\partial^2 L}{\partial x_j^2} = T p_j (1 - p_j),

    divided by the number of rows for "mean". If :math:`p_j > 1/2`, then :math:`1 - p_j` is computed from the sum of the
    other classes, so that the diagonal of a confident row keeps its digits.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> loss, grad, hess = sx.value_grad_and_hess(np.log([0.1, 0.3, 0.6]), 2)
    >>> hess.round(6)
    array([0.09, 0.21, 0.24])
    >>> print(sx.value_grad_and_hess(np.array([0, -18, -20], np.float32), 0)[2])
    [1.7291132e-08 1.5229979e-08 2.0611537e-09]
    """
    given = read_smooth_options(options) if options else None
    if not (type(hess_factor) is float and hess_factor == 1):
        given = given or Given({})
        given.hess_factor = read_number("hess_factor", hess_factor, positive=True)
    x, class_axis = read_logits(logits, axis)
    grad, hess = _read_pair_of_outs(out, x.shape)
    if hess is None:
        hess = np.empty(x.shape, result_dtypes(x)[0])
    loss, grad = _loss.visit(
        x, targets, class_axis, reduction, normalizer, n_threads, given, True, grad, None, RESULTS["hessian"],
        hess=np.asarray(hess),
    )  # fmt: skip
    return loss, grad, hess


@with_options
def hvp(
    logits: ArrayLike | None,
    targets: ArrayLike | Pair,
    vectors: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    probs: ArrayLike | None = None,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    r"""Product of each row's Hessian of the loss with a vector, in one pass.

    Parameters
    ----------
    logits, targets
        As in `cross_entropy`.
    vectors : array_like, shape (..., C)
        One vector for each row, of any real or bool dtype.
    axis, reduction, normalizer
        As in `cross_entropy`.
    probs : array_like, shape (..., C), optional
        What `softmax` returns for the logits, with the same `temperature` and `where`: for many products at the same
        logits, as in a Newton-CG method, which then need no exponentials. The logits are not used then, and may be
        None. Not with `z_loss`.
    out : ndarray, shape (..., C), optional
        Where to write the products: any writeable array of the logits' shape and of a floating dtype, with any strides,
        or the logits, the vectors or the probabilities themselves, which are then overwritten. If it overlaps an input
        in another way, the result is the same as if it did not, at the cost of a copy.
    n_threads, **options
        As in `cross_entropy`.

    Returns
    -------
    ndarray, shape (..., C)
        `out` if that was given, else a new array of the dtype of the logits, or of `probs` (float64 for integers and
        bool), rounded to it once.

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`; and a ValueError if `vectors` has not the shape of the logits, or if an option is given
        that has no meaning here: `softcap`, whose second derivative is not computed, or `z_loss` with `probs`.

    See Also
    --------
    value_grad_and_hess : the diagonal of the Hessian.
    softmax_vjp : the same product without a target.

    Notes
    -----
    With the softmax :math:`p` of a row, the sum :math:`T = \sum_k t_k` of its target and the vector :math:`v`,

    .. math:: \sum_k \frac{\partial^2 L}{\partial x_j \partial x_k} v_k = T p_j \Big(v_j - \sum_k p_k v_k\Big),

    divided by the number of rows for "mean". The Hessian of several rows is block-diagonal: this is the product of each
    block. It is computed from :math:`v_j - v_a`, with :math:`a` the most probable class, so that a constant :math:`v`
    gives exactly 0.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> logits = np.log([0.1, 0.3, 0.6])
    >>> sx.hvp(logits, 2, [1, 0, 0]).round(6)
    array([ 0.09, -0.03, -0.06])
    >>> sx.hvp(None, 2, [1, 0, 0], probs=sx.softmax(logits)).round(6)
    array([ 0.09, -0.03, -0.06])
    """
    given = read_smooth_options(options, probs) if options else None
    result = RESULTS["product"]
    if probs is not None:
        logits, result = probs, RESULTS["product of probs"]
    product: np.ndarray = _loss.visit(
        logits, targets, axis, reduction if reduction != "none" else "sum", normalizer, n_threads, given, True, out,
        result=result, vectors=("vectors", vectors),
    )[1]  # fmt: skip
    return product


def read_smooth_options(options: Any, probs: Any = None) -> Given:
    """As read_options, where the second derivative is needed, of logits or of given probabilities."""
    given = read_options(options)
    if given.softcap is not None:
        raise ValueError("softcap has no second derivative here: leave it out, or take differences of gradients")
    if probs is not None and given.z_loss:
        raise ValueError("z_loss needs the logits, got it with probs")
    return given


def _read_pair_of_outs(out: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out must be a tuple of two arrays, (grad, hess), got {type(out).__name__}")
    grad, hess = (read_out(array, shape, f"out[{i}]") for i, array in enumerate(out))
    if share_memory(grad, hess):
        raise ValueError("out must be two arrays that do not overlap each other")
    return out
