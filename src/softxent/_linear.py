"""The linear head: loss and derivatives for logits = inputs @ linear_weight.T + linear_bias, without the logits.

The rows are visited a chunk at a time: logits into a buffer, loss and gradient in place, then the products that make
the gradients of inputs and weights of it. Rows that do not count are left out before any product. All arguments are
read before anything is written.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsFloat, SupportsIndex, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from softxent._head import MEMORY, Gradients, Head, multiply_hessian, read_real, visit
from softxent._inputs import Pair, read_out, result_dtypes
from softxent._options import (
    LinearMeanCall,
    LinearProductCall,
    LinearRowsCall,
    LinearSumCall,
    Options,
    read_options,
    with_options,
)
from softxent._second_order import read_smooth_options
from softxent.call._call import share_memory


class LinearGradients(NamedTuple):
    """The gradients of the loss of a linear head; those that were not asked for are None.

    Attributes
    ----------
    inputs : ndarray, shape (..., D), or None
        With respect to the inputs.
    linear_weight : ndarray, shape (C, D), or None
        With respect to the weights.
    linear_bias : ndarray, shape (C,), or None
        With respect to the bias.
    """

    inputs: Any = None
    linear_weight: Any = None
    linear_bias: Any = None


NAMES = LinearGradients._fields
Out = LinearGradients | tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


@overload
def linear_cross_entropy(
    inputs: Any, linear_weight: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[LinearMeanCall]
) -> float: ...
@overload
def linear_cross_entropy(
    inputs: Any, linear_weight: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[LinearSumCall]
) -> float: ...
@overload
def linear_cross_entropy(
    inputs: Any, linear_weight: ArrayLike, targets: ArrayLike | Pair, **call: Unpack[LinearRowsCall]
) -> np.ndarray: ...
@with_options
def linear_cross_entropy(
    inputs: Any,
    linear_weight: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    linear_bias: ArrayLike | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    memory: SupportsFloat = MEMORY,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> float | np.ndarray:
    r"""Softmax cross-entropy loss of a linear head, without an array of its logits.

    Parameters
    ----------
    inputs : array_like, shape (..., D), or a matrix of shape (N, D)
        What the logits are made of: features, or the last hidden layer. float16, bfloat16 (of ``ml_dtypes``), float32
        or float64; integers and bool are computed in float64. Any strides. Or an object that is no array but has
        ``shape``, ``dtype``, ``T`` and ``@``, such as a SciPy sparse matrix.
    linear_weight : array_like, shape (C, D)
        The weights of each class, of any of these dtypes and with any strides: for weights of shape (D, C), pass
        ``weights.T``, which copies nothing.
    targets : array_like, shape (...) or (..., C), or a pair of arrays
        As the targets of `cross_entropy`, for logits of shape (..., C): class labels, a distribution per row, or a pair
        ``(indices, probs)``.
    linear_bias : array_like, shape (C,), optional
        Is added to the logits of each row; of any real or bool dtype.
    reduction, normalizer
        As in `cross_entropy`.
    memory : float, default 48 MiB
        How many bytes the logits and products that are held at once may take; it decides how many rows make a chunk. A
        chunk has at least one row.
    n_threads : int, optional
        How many threads softxent's part of this call may use; see `set_num_threads`. The threads of the products are
        those of NumPy's BLAS.
    **options
        See `Options`.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it for these logits, computed in float64 if inputs or weights are of float64 or
        integers, else in float32.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; and if inputs, weights and bias do not fit together.

    See Also
    --------
    linear_value_and_grad : the loss and its gradients.

    Notes
    -----
    The logits are

    .. math:: x_{nc} = \sum_d a_{nd} w_{cd} + b_c

    for inputs :math:`a`, weights :math:`w` and bias :math:`b`. Rows that do not count, since they are ignored or have
    no weight, are not multiplied.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> inputs, linear_weight = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(sx.linear_cross_entropy(inputs, linear_weight, [0, 1]), 6)
    0.810309
    >>> round(sx.cross_entropy(inputs @ linear_weight.T, [0, 1]), 6)
    0.810309
    """
    head = Head(inputs, linear_weight, targets, linear_bias, memory, n_threads, read_options(options))
    head.read_reduction(reduction, normalizer)
    with np.errstate(all="ignore"):
        return visit(head, None)


@overload
def linear_value_and_grad(
    inputs: Any,
    linear_weight: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    wrt: Any = None,
    out: Out | None = None,
    accumulate: bool = False,
    **call: Unpack[LinearMeanCall],
) -> tuple[float, LinearGradients]: ...
@overload
def linear_value_and_grad(
    inputs: Any,
    linear_weight: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    wrt: Any = None,
    out: Out | None = None,
    accumulate: bool = False,
    **call: Unpack[LinearSumCall],
) -> tuple[float, LinearGradients]: ...
@overload
def linear_value_and_grad(
    inputs: Any,
    linear_weight: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    wrt: Any = None,
    out: Out | None = None,
    accumulate: bool = False,
    **call: Unpack[LinearRowsCall],
) -> tuple[np.ndarray, LinearGradients]: ...
@with_options
def linear_value_and_grad(
    inputs: Any,
    linear_weight: ArrayLike,
    targets: ArrayLike | Pair,
    *,
    linear_bias: ArrayLike | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    wrt: Any = None,
    out: Out | None = None,
    accumulate: bool = False,
    memory: SupportsFloat = MEMORY,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> tuple[float | np.ndarray, LinearGradients]:
    r"""Softmax cross-entropy loss of a linear head and its gradients, without an array of its logits.

    Parameters
    ----------
    inputs, linear_weight, targets, linear_bias, reduction, normalizer
        As in `linear_cross_entropy`.
    wrt : str or sequence of str, optional
        What to differentiate by: "inputs", "linear_weight", "linear_bias", or several of them. Without it, by those
        that `out` has an array for; without both, by all that there are, but not by inputs that are not an array. Each
        of the first two costs a product of matrices as large as the one that makes the logits.
    out : tuple of three ndarrays, or None for any of them, optional
        Where to write the gradients of inputs, weights and bias: a `LinearGradients` of an earlier call, or a plain
        tuple. Writeable arrays of the shapes of these, each of any floating dtype and with any strides, that overlap
        neither each other nor an argument. The gradient of the weights is summed up in its array if that is of the
        dtype computed in and contiguous along an axis, else in an array of its own.
    accumulate : bool, default False
        Add the gradients to what `out` holds, as for a batch in several parts. Each must have an array in `out`.
    memory, n_threads, **options
        As in `linear_cross_entropy`.

    Returns
    -------
    loss : float or ndarray
        As `linear_cross_entropy` returns it, to the bit.
    grads : LinearGradients
        A named tuple of the gradients of the reduced loss, of the sum for "none", with respect to `inputs`,
        `linear_weight` and `linear_bias`, None for those not asked for. Arrays of `out`, or new ones of the dtype of
        what they belong to (float64 for integers and bool), rounded to it once.

    Raises
    ------
    TypeError, ValueError
        As `linear_cross_entropy`; and if `wrt` or `out` make no sense. Nothing has been written then.

    See Also
    --------
    linear_cross_entropy : the loss alone.
    linear_hvp : products with the second derivative.

    Notes
    -----
    With the gradient :math:`g_{nc} = \partial L / \partial x_{nc}` of the logits that `value_and_grad` returns,

    .. math:: \frac{\partial L}{\partial w_{cd}} = \sum_n g_{nc} a_{nd}, \qquad
              \frac{\partial L}{\partial b_c} = \sum_n g_{nc}, \qquad
              \frac{\partial L}{\partial a_{nd}} = \sum_c g_{nc} w_{cd}.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> inputs, linear_weight = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss, grads = sx.linear_value_and_grad(inputs, linear_weight, [0, 1], wrt="linear_weight")
    >>> grads.linear_weight.round(4)
    array([[-0.2888,  0.0634],
           [ 0.0777, -0.5317],
           [ 0.2112,  0.4683]])

    The mean over a batch that comes in two parts:

    >>> total = sx.LinearGradients(linear_weight=np.zeros((3, 2)))
    >>> for row, label in zip(inputs, [0, 1]):
    ...     loss, _ = sx.linear_value_and_grad(row, linear_weight, label, normalizer=2, out=total, accumulate=True)
    >>> bool(np.allclose(total.linear_weight, grads.linear_weight))
    True
    """
    head = Head(inputs, linear_weight, targets, linear_bias, memory, n_threads, read_options(options))
    head.read_reduction(reduction, normalizer)
    given, arrays = _read_outs(head, wrt, out, accumulate)
    with np.errstate(all="ignore"):
        gradients = Gradients(head, arrays, accumulate)
        loss = visit(head, gradients)
        gradients.finish()
    return loss, LinearGradients(**{**arrays, **given})


@overload
def linear_hvp(
    inputs: Any,
    linear_weight: ArrayLike | None,
    targets: ArrayLike | Pair,
    vectors: ArrayLike,
    *,
    bias_vector: None = None,
    **call: Unpack[LinearProductCall],
) -> np.ndarray: ...
@overload
def linear_hvp(
    inputs: Any,
    linear_weight: ArrayLike | None,
    targets: ArrayLike | Pair,
    vectors: ArrayLike,
    *,
    bias_vector: ArrayLike,
    **call: Unpack[LinearProductCall],
) -> tuple[np.ndarray, np.ndarray]: ...
@with_options
def linear_hvp(
    inputs: Any,
    linear_weight: ArrayLike | None,
    targets: ArrayLike | Pair,
    vectors: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    bias_vector: ArrayLike | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    normalizer: SupportsFloat | None = None,
    probs: ArrayLike | None = None,
    memory: SupportsFloat = MEMORY,
    n_threads: SupportsIndex | None = None,
    **options: Unpack[Options],
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    r"""Product of the Hessian of the loss of a linear head, with respect to its weights, with a vector.

    Parameters
    ----------
    inputs, linear_weight, targets
        As in `linear_cross_entropy`.
    vectors : array_like, shape (C, D)
        What to multiply by, of any real or bool dtype, in the shape of the weights.
    linear_bias
        As in `linear_cross_entropy`.
    bias_vector : array_like, shape (C,), optional
        The same for the bias: the Hessian is then that with respect to weights and bias together.
    reduction, normalizer
        As in `cross_entropy`.
    probs : array_like, shape (..., C), optional
        What `softmax` returns for the logits, with the same `temperature` and `where`: for many products at the same
        weights, as in a Newton-CG method, which then need two products of matrices each instead of three, and no
        exponentials. The weights are not used then, and may be None. Not with `z_loss`.
    memory, n_threads, **options
        As in `linear_cross_entropy`.

    Returns
    -------
    ndarray, shape (C, D), or a tuple of two, shapes (C, D) and (C,)
        The product, and with `bias_vector` its part for the bias: new arrays of the dtype computed in.

    Raises
    ------
    TypeError, ValueError
        As `linear_cross_entropy` and `hvp`.

    See Also
    --------
    hvp : the same with respect to logits.

    Notes
    -----
    For inputs :math:`a`, with the softmax :math:`p` of the logits and the vector's own "logits"
    :math:`u_{nc} = \sum_d a_{nd} v_{cd} + v_c`,

    .. math:: (H v)_{cd} = \sum_n T_n p_{nc} \Big(u_{nc} - \sum_k p_{nk} u_{nk}\Big) a_{nd},

    divided by the number of rows for "mean", with the sum :math:`T_n` of the target of a row.

    Examples
    --------
    >>> import numpy as np
    >>> import softxent as sx
    >>> inputs, linear_weight = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> vectors = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    >>> sx.linear_hvp(inputs, linear_weight, [0, 1], vectors).round(4)
    array([[ 0.122 ,  0.    ],
           [-0.0328,  0.    ],
           [-0.0892,  0.    ]])
    >>> probs = sx.softmax(inputs @ linear_weight.T)
    >>> sx.linear_hvp(inputs, None, [0, 1], vectors, probs=probs).round(4)
    array([[ 0.122 ,  0.    ],
           [-0.0328,  0.    ],
           [-0.0892,  0.    ]])
    """
    given = read_smooth_options(options, probs)
    head = Head(inputs, linear_weight, targets, linear_bias, memory, n_threads, given, probs)
    head.read_reduction(reduction if reduction != "none" else "sum", normalizer)
    along = read_real(vectors, "vectors", (head.n_classes, head.n_inputs))
    bias_along = None if bias_vector is None else read_real(bias_vector, "bias_vector", (head.n_classes,))
    with np.errstate(all="ignore"):
        product, bias_product = multiply_hessian(head, along, bias_along)
    return product if bias_along is None else (product, bias_product)


def _read_wrt(head: Head, wrt: Any, out: tuple[Any, ...] | None) -> list[str]:
    """The names of what to differentiate by."""
    has = dict(zip(NAMES, (not head.is_operand, True, head.bias is not None), strict=True))
    if wrt is None:
        return [name for i, name in enumerate(NAMES) if (has[name] if out is None else out[i] is not None)]
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    for name in names:
        if name not in NAMES:
            raise ValueError(f"wrt must be of {', '.join(map(repr, NAMES))}, got {name!r}")
    return names


def _read_outs(head: Head, wrt: Any, out: Any, accumulate: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of the caller, and plain ones for all gradients that are wanted: those, or new ones."""
    if out is not None and (not isinstance(out, tuple) or len(out) != len(NAMES)):
        raise TypeError(
            "out must be a tuple of three arrays, or None for any of them: the gradients of "
            f"{', '.join(NAMES)}; got {type(out).__name__}"
        )
    names = _read_wrt(head, wrt, out)
    belongs_to: dict[str, Any] = dict(zip(NAMES, (head.inputs, head.weight, head.bias), strict=True))
    given = {name: array for name, array in zip(NAMES, out or (), strict=False) if array is not None}
    for name in {*names, *given}:
        if name not in names:
            raise ValueError(f"out has an array for {name}, which wrt does not name")
        if name == "inputs" and head.is_operand:
            raise ValueError("inputs must be an array to be differentiated by; pass wrt without 'inputs'")
        if belongs_to[name] is None:
            raise ValueError(f"there is no {name} to differentiate by")
        if accumulate and name not in given:
            raise ValueError(f"accumulate adds to the arrays in out, and there is none for {name}")
    plain = {name: read_out(array, belongs_to[name].shape, f"out.{name}", name) for name, array in given.items()}
    for name, array in plain.items():
        for other, taken in [*head.arrays(), *((f"out.{each}", plain[each]) for each in plain if each != name)]:
            if array.size and taken.size and share_memory(array, taken):
                raise ValueError(f"out.{name} must not overlap {other}")
    order: Any = "F" if head.is_operand else "C"

    def new(of: np.ndarray) -> np.ndarray:
        return np.empty(of.shape, result_dtypes(of)[0], order)

    return given, {name: plain[name] if name in plain else new(belongs_to[name]) for name in names}
