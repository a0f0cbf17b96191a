"""The softmax family: what belongs to a row of logits alone, without a target."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex, Unpack

import numpy as np
from numpy.typing import ArrayLike

from softxent import _loss
from softxent._options import LogitOptions, read_logit_options, with_options
from softxent.call._call import NONE_NEEDED, RESULTS


@with_options
def softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    r"""Softmax: the probabilities of the classes of each row.

    Parameters
    ----------
    logits, axis
        As in `cross_entropy`.
    out : ndarray, shape (..., C), optional
        Where to write the result: any writeable array of the logits' shape and of a floating dtype, with any strides,
        or the logits themselves, which are then overwritten. If it overlaps the logits in another way, the result is
        the same as if it did not, at the cost of a copy. Two arrays count as overlapping if their memory ranges
        overlap. If it is float64, the result is computed in float64.
    n_threads, temperature, softcap, where
        As in `cross_entropy`.

    Returns
    -------
    ndarray, shape (..., C)
        `out` if that was given, else a new array of the logits' dtype (float64 for integers and bool), rounded to it
        once. A class that is not allowed has probability 0. Where the largest logit of a row is infinite, or a logit of
        an allowed class is NaN, the probabilities of all allowed classes are NaN.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; and a ValueError if `out` cannot be written to. Nothing has been written then.

    See Also
    --------
    log_softmax : the logarithms, which keep their digits where a probability is close to 1 or too small.
    softmax_vjp : products with the derivative.

    Notes
    -----
    .. math:: p_j = \frac{e^{x_j}}{\sum_k e^{x_k}}

    in float32 and float64 within 2.2 ulp, also where :math:`p_j` is a subnormal number; half precision is computed in
    float32 [1]_.

    References
    ----------
    .. [1] Goodfellow, Bengio and Courville, *Deep Learning*, MIT Press, 2016, section 6.2.2.3.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> sx.softmax([0.0, 1.0, 2.0]).round(4)
    array([0.09  , 0.2447, 0.6652])

    In place:

    >>> logits = np.array([[0.0, 1.0], [3.0, 3.0]])
    >>> sx.softmax(logits, out=logits).round(4)
    array([[0.2689, 0.7311],
           [0.5   , 0.5   ]])
    """
    return _each_class("softmax", logits, axis, out, n_threads, options)


@with_options
def log_softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    r"""Logarithm of the softmax: the logarithms of the probabilities of the classes of each row, in nats.

    Parameters
    ----------
    logits, axis, out, n_threads, temperature, softcap, where
        As in `softmax`.

    Returns
    -------
    ndarray, shape (..., C)
        As `softmax` returns it; a class that is not allowed has ``-inf``.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    See Also
    --------
    softmax : the probabilities.
    logsumexp : what is subtracted from the logits.
    log_softmax_vjp : products with the derivative.

    Notes
    -----
    For the largest logit :math:`m` it is :math:`-\log(1 + R)`, with :math:`R` the sum of the other
    :math:`e^{x_k - m}`; for other logits :math:`x_j` it is :math:`(x_j - m) - \log(1 + R)`. Neither cancels, so that
    all are within 2 ulp in float32, and within 2.1 ulp in float64.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> sx.log_softmax([0.0, 1.0, 2.0]).round(4)
    array([-2.4076, -1.4076, -0.4076])
    >>> print(sx.log_softmax(np.array([0, -30], np.float32)))  # the first probability is 1 - 9.4e-14
    [-9.357623e-14 -3.000000e+01]
    """
    return _each_class("log_softmax", logits, axis, out, n_threads, options)


@with_options
def logsumexp(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    r"""Logarithm of the sum of the exponentials of each row.

    Parameters
    ----------
    logits, axis
        As in `cross_entropy`.
    keepdims : bool, default False
        Whether the class axis stays, with length 1.
    n_threads, temperature, softcap, where
        As in `cross_entropy`.

    Returns
    -------
    ndarray, shape (...)
        float64 for logits computed in float64 and float32 for others; a 0-d array for one row. A row whose logits are
        all ``-inf`` has ``-inf``, one with a logit ``inf`` has ``inf``, and one with a NaN has NaN.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    See Also
    --------
    log_softmax : the logits less this number.
    evaluate : this number with the most probable class and the entropy.

    Notes
    -----
    Computed as :math:`m + \log(1 + R)` from the largest logit :math:`m` and the sum :math:`R` of the other
    :math:`e^{x_k - m}`. It is within 1 ulp of :math:`m` or 2.1 ulp of itself, whichever is more: if the two terms
    cancel, the digits of :math:`m` are those that count.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> sx.logsumexp([[0.0, 1.0, 2.0], [-np.inf, -np.inf, 5.0]]).round(4)
    array([2.4076, 5.    ])
    >>> print(sx.logsumexp([0.0, -50.0]))
    1.9287498479639178e-22
    """
    given = read_logit_options(options) if options else None
    lse, _ = _loss.visit(
        logits, NONE_NEEDED, axis, "none", None, n_threads, given, with_grad=False, result=RESULTS["logsumexp"]
    )
    return np.expand_dims(lse, operator.index(axis)) if keepdims else np.asarray(lse)


@with_options
def softmax_vjp(
    logits: ArrayLike,
    cotangent: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    r"""Vector-Jacobian product of the softmax, in one pass from the logits.

    Parameters
    ----------
    logits
        As in `cross_entropy`.
    cotangent : array_like, shape (..., C)
        The derivative of a number with respect to the probabilities, of any real or bool dtype. That of a class that is
        not allowed does not matter.
    axis
        As in `cross_entropy`.
    out : ndarray, shape (..., C), optional
        Where to write the result: any writeable array of the logits' shape and of a floating dtype, with any strides,
        or the logits or the cotangent themselves, which are then overwritten. If it overlaps one of them in another
        way, the result is the same as if it did not, at the cost of a copy. If it is float64, the result is computed in
        float64.
    n_threads, temperature, softcap, where
        As in `cross_entropy`.

    Returns
    -------
    ndarray, shape (..., C)
        The derivative of that number with respect to the logits: `out` if that was given, else a new array of the
        logits' dtype (float64 for integers and bool), rounded to it once. 0 for a class that is not allowed.

    Raises
    ------
    TypeError, ValueError
        As `softmax`; and a ValueError if `cotangent` has not the shape of the logits. Nothing has been written then.

    See Also
    --------
    log_softmax_vjp : the product for `log_softmax`.
    value_and_grad : for a loss, the derivative of both steps at once, which keeps more digits.

    Notes
    -----
    With the softmax :math:`p` of a row and its cotangent :math:`u`,

    .. math:: \frac{\partial}{\partial x_j} \sum_k u_k p_k = p_j \Big(u_j - \sum_k p_k u_k\Big).

    The Jacobian :math:`\operatorname{diag}(p) - p p^T` is symmetric, so that this is its product with a tangent, too.
    It is computed from :math:`u_j - u_a`, with :math:`a` the most probable class, so that a constant :math:`u` gives
    exactly 0, and a confident row keeps its digits.

    Examples
    --------
    From the probabilities of the classes to their logits, for the loss :math:`-\log p_2`:

    >>> import numpy as np
    >>> import softxent as sx
    >>> logits = np.log([0.1, 0.3, 0.6])
    >>> sx.softmax_vjp(logits, [0, 0, -1 / 0.6]).round(6)
    array([ 0.1,  0.3, -0.4])
    """
    return _each_class("product", logits, axis, out, n_threads, options, ("cotangent", cotangent))


@with_options
def log_softmax_vjp(
    logits: ArrayLike,
    cotangent: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: np.ndarray | None = None,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[LogitOptions],
) -> np.ndarray:
    r"""Vector-Jacobian product of `log_softmax`, in one pass from the logits.

    Parameters
    ----------
    logits, cotangent, axis, out, n_threads, temperature, softcap, where
        As in `softmax_vjp`.

    Returns
    -------
    ndarray, shape (..., C)
        As `softmax_vjp` returns it.

    Raises
    ------
    TypeError, ValueError
        As `softmax_vjp`.

    See Also
    --------
    softmax_vjp : the product for `softmax`.

    Notes
    -----
    With the softmax :math:`p` of a row and its cotangent :math:`u`,

    .. math:: \frac{\partial}{\partial x_j} \sum_k u_k \log p_k = u_j - p_j \sum_k u_k,

    which is minus the gradient of the cross-entropy with the target :math:`u`, and computed like that.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> sx.log_softmax_vjp(np.log([0.1, 0.3, 0.6]), [0, 0, 1]).round(6)
    array([-0.1, -0.3,  0.4])
    """
    return _each_class("gradient", logits, axis, out, n_threads, options, ("cotangent", cotangent))


def _each_class(
    name: str,
    logits: Any,
    axis: SupportsIndex,
    out: Any,
    n_threads: SupportsIndex | None,
    options: LogitOptions,
    vectors: tuple[str, Any] | None = None,
) -> np.ndarray:
    """A result with a number for each class."""
    given = read_logit_options(options) if options else None
    made: np.ndarray = _loss.visit(
        logits, NONE_NEEDED, axis, "sum", None, n_threads, given, True, out, result=RESULTS[name], vectors=vectors
    )[1]
    return made
