"""The same loss for PyTorch tensors on the CPU, with PyTorch's signatures and meanings.

Each computation is an operator of PyTorch's dispatcher, which torch.compile and torch.export can see, and a Function
that knows its derivatives: those of row_losses are `gradient`, those of `gradient` are `product`; softmax and
log_softmax have their vector-Jacobian products. `_ReducedLoss` is the path of training: one visit to each row gives the
reduced loss and its gradient. Everything else adds up row_losses. What the logits are made of is one tensor, they
themselves, or the three of a linear head; whatever a head has no operator for goes by way of its logits.

Nothing is written to a tensor of the caller's. Calls that are too small to gain are PyTorch's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional

import softxent as sx
from softxent import _threads
from softxent._options import OF_LOGITS, OPTIONS, LogitOptions, Options, nearest, with_options

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ModuleNotFoundError:  # NumPy has no such type of its own: bfloat16 is then widened to float32
    _bfloat16 = None

__all__ = ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy", "log_softmax", "softmax"]

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


# From tensors to arrays and back, without a copy


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.float().numpy() if _bfloat16 is None else tensor.view(torch.uint16).numpy().view(_bfloat16)
    return tensor.numpy()


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A large array of NumPy's is faster to fill than one of PyTorch's: NumPy asks for huge pages."""
    if dtype is torch.bfloat16 and array.itemsize == 2:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array).to(dtype)


def _loss_dtype(*values: Tensor) -> torch.dtype:
    """Losses of halves are float32: a half would lose their digits."""
    return torch.float64 if any(value.dtype is torch.float64 for value in values) else torch.float32


def _given(names: tuple[str, ...], values: Sequence[Any], n_threads: int | None) -> dict[str, Any]:
    """The arguments of a function of softxent: options that are not as by default, and the threads."""
    if n_threads is None:
        n_threads = _threads.setting or torch.get_num_threads()
    given: dict[str, Any] = {"n_threads": n_threads}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            given[name] = _array(value)
        elif value != OPTIONS[name].default:
            given[name] = value
    return given


# The operators. All take an axis, a number of threads, which may be None, and the options in the order of the list.

OF_LOSS = tuple(OPTIONS)
ROWS_AT = 4 + OF_LOSS.index("sample_weight")  # among the arguments of row_losses and gradient


def _compute_row_losses(input: Tensor, target: Tensor, axis: int, n_threads: int | None, *options: Any) -> Tensor:
    given = _given(OF_LOSS, options, n_threads)
    losses = sx.cross_entropy(_array(input), _array(target), axis=axis, reduction="none", **given)
    return _tensor(losses, _loss_dtype(input))


def _compute_gradient(input: Tensor, target: Tensor, axis: int, n_threads: int | None, *options: Any) -> Tensor:
    """The gradient of the sum of the losses."""
    given = _given(OF_LOSS, options, n_threads)
    _, grad = sx.value_and_grad(_array(input), _array(target), axis=axis, reduction="sum", **given)
    return _tensor(grad, input.dtype)


def _compute_product(
    input: Tensor, target: Tensor, vectors: Tensor, axis: int, n_threads: int | None, *options: Any
) -> Tensor:
    """The Hessian of each row of the sum of the losses, times a vector."""
    given = _given(OF_LOSS, options, n_threads)
    product = sx.hvp(_array(input), _array(target), _array(vectors), axis=axis, reduction="sum", **given)
    return _tensor(product, input.dtype)


# What the logits are made of: themselves, or the input, the weights and the bias of a linear head
Logits = Sequence[Any]


def _unpacked(arguments: Sequence[Any]) -> tuple[list[Any], Tensor, str, list[bool], int, int | None, Sequence[Any]]:
    """Those of the two operators below."""
    *logits, target, reduction, wanted, axis, n_threads = arguments[: -len(OF_LOSS)]
    return logits, target, reduction, wanted, axis, n_threads, arguments[-len(OF_LOSS) :]


def _reduced_by(compute: Callable[..., tuple[Any, list[Tensor]]]) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    """An operator for a loss, and the gradients that are wanted of its reduction."""

    def kernel(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
        logits, target, reduction, wanted, axis, n_threads, options = _unpacked(arguments)
        call: dict[str, Any] = {"reduction": reduction, **_given(OF_LOSS, options, n_threads)}
        mean = reduction == "mean"
        if mean and target.is_floating_point():
            call["normalizer"] = target.numel() // target.shape[axis]
        loss, grads = compute(logits, target, wanted, axis, call)
        if mean and loss == 0 and _divisor(target, axis, options) == 0:
            loss = np.nan
        return torch.as_tensor(loss, dtype=_loss_dtype(*logits[:2])), grads

    return kernel


def _compute_loss(
    logits: Logits, target: Tensor, wanted: list[bool], axis: int, call: dict[str, Any]
) -> tuple[Any, list[Tensor]]:
    (input,) = logits
    if not any(wanted):
        return sx.cross_entropy(_array(input), _array(target), axis=axis, **call), []
    loss, grad = sx.value_and_grad(_array(input), _array(target), axis=axis, **call)
    return loss, [_tensor(grad, input.dtype)]


def _compute_linear_loss(
    head: Logits, target: Tensor, wanted: list[bool], axis: int, call: dict[str, Any]
) -> tuple[Any, list[Tensor]]:
    """The gradients are of the dtype computed in, to be rounded once the incoming one is known."""
    input, linear_weight, linear_bias = head
    arrays = _array(input), _array(linear_weight), _array(target)
    if linear_bias is not None:
        call["linear_bias"] = _array(linear_bias)
    if not any(wanted):
        return sx.linear_cross_entropy(*arrays, **call), []
    dtype = np.float64 if _loss_dtype(input, linear_weight) is torch.float64 else np.float32
    out: Any = tuple(
        np.empty(value.shape, dtype) if is_wanted else None for value, is_wanted in zip(head, wanted, strict=True)
    )
    loss, _ = sx.linear_value_and_grad(*arrays, out=out, **call)
    return loss, [torch.from_numpy(grad) for grad in compress(out, wanted)]


def _each_class(function: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """An operator by a function of the softmax family."""

    def kernel(input: Tensor, *arguments: Any) -> Tensor:
        *vectors, axis, n_threads = arguments[: -len(OF_LOGITS)]
        given = _given(OF_LOGITS, arguments[-len(OF_LOGITS) :], n_threads)
        return _tensor(function(_array(input), *map(_array, vectors), axis=axis, **given), input.dtype)

    return kernel


# How the types of the list of options are written in the schema of an operator
TYPES = {
    "SupportsFloat": "float",
    "SupportsFloat | None": "float?",
    "SupportsIndex | None": "int?",
    "ArrayLike | None": "Tensor?",
}
LIBRARY = torch.library.Library("softxent", "DEF")


def _define(name: str, arguments: str, options: tuple[str, ...], returns: str, kernel: Any, fake: Any) -> Any:
    """An operator of the dispatcher."""
    types = [f"{TYPES[Options.__annotations__[option].__forward_arg__]} {option}" for option in options]
    signature = f"({arguments}, SymInt axis, int? n_threads, {', '.join(types)}) -> {returns}"
    LIBRARY.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"softxent::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.softxent, name).default


def _like_logits(input: Tensor, *arguments: Any) -> Tensor:
    return input.new_empty(input.shape)


def _like_losses(input: Tensor, target: Tensor, axis: int, *arguments: Any) -> Tensor:
    return input.new_empty(_without(input.shape, axis), dtype=_loss_dtype(input))


def _like_reduced(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    logits, target, reduction, wanted, axis, *_ = _unpacked(arguments)
    dtype, new = _loss_dtype(*logits[:2]), logits[0].new_empty
    of_grads = dtype if len(logits) > 1 else logits[0].dtype
    of_loss = new(_rows_of(target, axis) if reduction == "none" else (), dtype=dtype)
    return of_loss, [new(value.shape, dtype=of_grads) for value in compress(logits, wanted)]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


# Derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [value if isinstance(value, Tensor) else None for value in inputs]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.numbers = [None if isinstance(value, Tensor) else value for value in inputs]


def _kept(ctx: Any) -> list[Any]:
    return [number if tensor is None else tensor for tensor, number in zip(ctx.saved_tensors, ctx.numbers, strict=True)]


def _batch_rule(call: Callable[..., Tensor], axis_at: int, of_classes: int | None) -> Callable[..., Any]:
    """What torch.func.vmap does: rows are independent, so that a batch is one more axis of rows."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        moved = list(arguments)
        for i, (value, dim) in enumerate(zip(arguments, in_dims, strict=True)):
            if isinstance(value, Tensor) and i != of_classes:
                moved[i] = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            elif dim is not None:
                raise ValueError("weight must be the same for all calls that vmap makes, got a weight for each")
        moved[axis_at] += 1
        return call(*moved), 0

    return rule


def _option(options: Any, name: str) -> Any:
    return options[OF_LOSS.index(name)]


def _with(options: Any, **changes: Any) -> tuple[Any, ...]:
    return tuple(changes.get(name, value) for name, value in zip(OF_LOSS, options, strict=True))


def _unweighted(function: Any, input: Tensor, target: Tensor, axis: int, n_threads: int | None, options: Any) -> Tensor:
    return function(input, target, axis, n_threads, *_with(options, sample_weight=None))


def _of_options(of_rows: Tensor | None) -> Iterator[Tensor | None]:
    """Derivatives with respect to the options: only the weights of rows have one."""
    return (of_rows if name == "sample_weight" else None for name in OF_LOSS)


def _sum(terms: list[Tensor]) -> Tensor:
    total, *rest = terms
    for term in rest:
        total = total + term
    return total


def _of_logits(options: Any) -> tuple[Any, ...]:
    return tuple(_option(options, name) for name in OF_LOGITS)


def _weights(options: Any, axis: int, ndim: int) -> Tensor | float:
    """Weights of classes and of rows, for all logits."""
    weight, sample_weight = _option(options, "weight"), _option(options, "sample_weight")
    of_classes = 1.0 if weight is None else weight.reshape(-1, *(1 for _ in range(axis + 1, ndim)))
    return of_classes if sample_weight is None else of_classes * sample_weight.unsqueeze(axis)


def _refuse_softcap(softcap: float | None, derivative: str) -> None:
    if softcap is not None:
        raise ValueError(f"softcap has no {derivative} here: leave it out, or cap the logits by PyTorch's tanh")


def _slope_of_target(input: Tensor, axis: int, n_threads: int | None, options: Any) -> Tensor:
    """The derivative of the sum of the losses with respect to distributions."""
    if _option(options, "label_smoothing"):
        raise ValueError("target must not require grad where label_smoothing and where are given")
    wide = input.to(_loss_dtype(input))
    return -_weights(options, axis, input.dim()) * _log_softmax(wide, axis, n_threads, *_of_logits(options))


def _derivatives(
    needs: Sequence[bool],
    input: Tensor,
    target: Tensor,
    axis: int,
    n_threads: int | None,
    options: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Of the sum of the losses, with respect to logits and distributions. Both can be differentiated again."""
    of_input = _gradient(input, target, axis, n_threads, *options) if needs[0] else None
    of_target = _slope_of_target(input, axis, n_threads, options) if needs[1] else None
    return of_input, of_target


def _times_rows(options: Any, upstream: Tensor) -> tuple[Any, ...]:
    """The options, and each row times its derivative, which the kernel applies before it rounds."""
    sample_weight = _option(options, "sample_weight")
    return _with(options, sample_weight=upstream if sample_weight is None else upstream * sample_weight)


class _RowLosses(Function):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, target, axis, n_threads, *options = _kept(ctx)
        grads = _derivatives(ctx.needs_input_grad, input, target, axis, n_threads, _times_rows(options, upstream))
        of_rows = None
        if ctx.needs_input_grad[ROWS_AT]:
            of_rows = upstream * _unweighted(_row_losses, input, target, axis, n_threads, options)
        return *grads, None, None, *_of_options(of_rows)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        input, target, axis, n_threads, *options = _kept(ctx)
        grads = _derivatives([t is not None for t in tangents], input, target, axis, n_threads, options)
        dtype = _loss_dtype(input)
        pairs = zip(grads, tangents[:2], strict=True)
        terms = [(grad.to(dtype) * tangent).sum(axis) for grad, tangent in pairs if grad is not None]
        if tangents[ROWS_AT] is not None:
            terms.append(tangents[ROWS_AT] * _unweighted(_row_losses, input, target, axis, n_threads, options))
        return _sum(terms).to(dtype)


class _Gradient(Function):
    """Linear in the target and in the weights of rows, which take part in derivatives, too."""

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, target, axis, n_threads, *options = _kept(ctx)
        of_input = of_target = of_rows = None
        if ctx.needs_input_grad[0]:
            of_input = _product(input, target, upstream, axis, n_threads, *options)
        if ctx.needs_input_grad[1]:
            # The derivative of log_softmax along `upstream`, times minus the weights.
            along = _along_log_softmax(input, upstream, axis, n_threads, _of_logits(options))
            of_target = -_weights(options, axis, input.dim()) * along
        if ctx.needs_input_grad[ROWS_AT]:
            gradient = _unweighted(_gradient, input, target, axis, n_threads, options)
            of_rows = (gradient.to(_loss_dtype(input)) * upstream).sum(axis)
        return of_input, of_target, None, None, *_of_options(of_rows)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        input, target, axis, n_threads, *options = _kept(ctx)
        of_input, of_target, of_rows = tangents[0], tangents[1], tangents[ROWS_AT]
        terms = []
        if of_input is not None:
            terms.append(_product(input, target, of_input, axis, n_threads, *options))
        if of_target is not None:
            terms.append(_gradient(input, of_target, axis, n_threads, *_with(options, z_loss=0.0)))
        if of_rows is not None:
            terms.append(_gradient(input, target, axis, n_threads, *_with(options, sample_weight=of_rows)))
        return _sum(terms)


def _no_third_derivative(ctx: Any, *arguments: Any) -> Any:
    raise NotImplementedError(
        "softxent.torch.cross_entropy has no third derivative; torch.nn.functional.cross_entropy has one"
    )


class _Product(Function):
    backward = staticmethod(_no_third_derivative)
    jvp = staticmethod(_no_third_derivative)


def _asks_for_more(upstream: Tensor) -> bool:
    """Whether a backward pass is to be differentiated, or is many at once."""
    many = torch._C._functorch.is_legacy_batchedtensor(upstream)  # torch.autograd.grad(is_grads_batched=True)
    return many or torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def _gradients(
    logits: Logits, wanted: list[bool], target: Tensor, axis: int, n_threads: int | None, options: Any, more: bool
) -> list[Tensor]:
    """Of the sum of the losses, with respect to what the logits are made of; can be differentiated if `more`."""
    if len(logits) == 1:
        return [_gradient(*logits, target, axis, n_threads, *options)]
    if not more:
        grads: list[Tensor] = _linear_loss(*logits, target, "sum", wanted, axis, n_threads, *options)[1]
        return grads
    grad = _gradient(_logits_of(*logits), target, axis, n_threads, *options)
    input, linear_weight = (value.to(grad.dtype) for value in logits[:2])
    rows = grad.reshape(-1, grad.shape[-1])
    products = grad @ linear_weight, rows.mT @ input.reshape(-1, input.shape[-1]), rows.sum(0)
    return list(compress(products, wanted))


def _placed(grads: Iterable[Tensor], logits: Logits, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients beside what they belong to, in its dtype, and None where there is none."""
    rest = iter(grads)
    return [next(rest).to(value.dtype) if is_wanted else None for value, is_wanted in zip(logits, wanted, strict=True)]


class _ReducedLoss(Function):
    """The mean or the sum, with the gradients from the same visit, of what the logits are made of."""

    @staticmethod
    def forward(ctx: Any, operator: Any, *arguments: Any) -> Tensor:
        loss, grads = operator(*arguments)
        _keep(ctx, (*arguments, *grads), loss)
        ctx.operator, ctx.n_grads, ctx.grads_are_ours = operator, len(grads), True
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        kept = _kept(ctx)
        arguments, grads = kept[: -ctx.n_grads], kept[-ctx.n_grads :]
        logits, target, reduction, wanted, axis, n_threads, options = _unpacked(arguments)
        # The gradients are handed over once, without their version: what becomes of them then is not ours to know.
        # Another backward pass computes them again.
        are_ours, ctx.grads_are_ours = ctx.grads_are_ours, False
        more = _asks_for_more(upstream)
        factor = None if more or torch.compiler.is_compiling() else upstream.item()
        if factor == 1 or (factor is not None and grads[0].dtype not in HALVES):  # which are to be rounded once
            if not are_ours:
                _, grads = ctx.operator(*arguments)
            grads = [grad.data if factor == 1 else grad.data.mul_(factor) for grad in grads]
        else:
            rows = upstream.double()
            if reduction == "mean":
                rows = rows / _divisor(target, axis, options)
            weighted = _times_rows(options, rows.expand(_rows_of(target, axis)))
            grads = _gradients(logits, wanted, target, axis, n_threads, weighted, more)
        return None, *_placed(grads, logits, wanted), *(None for _ in arguments[len(logits) :])


def _linear_backward(ctx: Any, upstream: Tensor, _: Any) -> Any:
    """Of the losses of the rows of a linear head, which are computed once more."""
    arguments = _kept(ctx)
    logits, target, _, _, axis, n_threads, options = _unpacked(arguments)
    wanted = list(ctx.needs_input_grad[: len(logits)])
    weighted = _times_rows(options, upstream)
    grads = _gradients(logits, wanted, target, axis, n_threads, weighted, _asks_for_more(upstream))
    return *_placed(grads, logits, wanted), *(None for _ in arguments[len(logits) :])


def _rows_of(target: Tensor, axis: int) -> tuple[int, ...]:
    return _without(target.shape, axis) if target.is_floating_point() else tuple(target.shape)


def _divisor(target: Tensor, axis: int, options: Any) -> Tensor:
    """What PyTorch's mean divides by, with distributions not the weight of the classes."""
    weight, sample_weight = _option(options, "weight"), _option(options, "sample_weight")
    if target.is_floating_point():
        rows = torch.ones((), dtype=torch.float64).expand(_rows_of(target, axis))
    else:
        counts = target != _option(options, "ignore_index")
        rows = counts.double()
        if weight is not None:
            rows = rows * weight.double()[torch.where(counts, target, 0).long()]
    return (rows if sample_weight is None else rows * sample_weight).sum()


def _logits_of(input: Tensor, linear_weight: Tensor | None = None, linear_bias: Tensor | None = None) -> Tensor:
    """The array that a linear head does without."""
    if linear_weight is None:
        return input
    dtype = _loss_dtype(input, linear_weight)
    bias = None if linear_bias is None else linear_bias.to(dtype)
    with torch.autocast("cpu", enabled=False):
        return functional.linear(input.to(dtype), linear_weight.to(dtype), bias)


# The softmax family. With p the softmax, u a cotangent and v a tangent, their derivatives are
# softmax_vjp(u) = p (u - <p, u>) / temperature and log_softmax_vjp(u) = (u - p sum(u)) / temperature.


def _allowed(value: Tensor, where: Tensor | None) -> Tensor:
    return value if where is None else torch.where(where, value, 0)


def _centred(value: Tensor, p: Tensor, axis: int) -> Tensor:
    return value - (p * value).sum(axis, keepdim=True)


def _along_log_softmax(input: Tensor, tangent: Tensor, axis: int, n_threads: int | None, options: Any) -> Tensor:
    """The derivative of log_softmax along a tangent."""
    temperature, softcap, where = options
    _refuse_softcap(softcap, "such derivative")
    p = _softmax(input, axis, n_threads, *options)
    return _allowed(_centred(_allowed(tangent, where), p, axis), where) / temperature


class _SoftmaxVjp(Function):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, cotangent, axis, n_threads, *options = _kept(ctx)
        temperature, softcap, where = options
        _refuse_softcap(softcap, "second derivative")
        of_input = of_cotangent = None
        if ctx.needs_input_grad[0]:
            p = _softmax(input, axis, n_threads, *options)
            u, v = _allowed(cotangent, where), _allowed(upstream, where)
            slope = (v * _centred(u, p, axis) - (p * v).sum(axis, keepdim=True) * u) / temperature
            of_input = _softmax_vjp(input, slope, axis, n_threads, *options)
        if ctx.needs_input_grad[1]:
            of_cotangent = _softmax_vjp(input, upstream, axis, n_threads, *options)
        return of_input, of_cotangent, *(None for _ in range(5))

    @staticmethod
    def jvp(ctx: Any, of_input: Any, of_cotangent: Any, *rest: None) -> Tensor:
        input, cotangent, axis, n_threads, *options = _kept(ctx)
        temperature, softcap, where = options
        _refuse_softcap(softcap, "forward mode")
        terms = []
        if of_input is not None:
            p = _softmax(input, axis, n_threads, *options)
            dp = _softmax_vjp(input, of_input, axis, n_threads, *options)
            u = _allowed(cotangent, where)
            terms.append((dp * _centred(u, p, axis) - p * (dp * u).sum(axis, keepdim=True)) / temperature)
        if of_cotangent is not None:
            terms.append(_softmax_vjp(input, of_cotangent, axis, n_threads, *options))
        return _sum(terms)


class _LogSoftmaxVjp(Function):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, cotangent, axis, n_threads, *options = _kept(ctx)
        _refuse_softcap(options[1], "second derivative")
        of_input = of_cotangent = None
        if ctx.needs_input_grad[0]:
            total = _allowed(cotangent, options[2]).sum(axis, keepdim=True)
            of_input = -_softmax_vjp(input, upstream * total, axis, n_threads, *options) / options[0]
        if ctx.needs_input_grad[1]:
            of_cotangent = _along_log_softmax(input, upstream, axis, n_threads, options)
        return of_input, of_cotangent, *(None for _ in range(5))

    @staticmethod
    def jvp(ctx: Any, of_input: Any, of_cotangent: Any, *rest: None) -> Tensor:
        input, cotangent, axis, n_threads, *options = _kept(ctx)
        _refuse_softcap(options[1], "forward mode")
        terms = []
        if of_input is not None:
            total = _allowed(cotangent, options[2]).sum(axis, keepdim=True)
            terms.append(-_softmax_vjp(input, of_input, axis, n_threads, *options) * total / options[0])
        if of_cotangent is not None:
            terms.append(_log_softmax_vjp(input, of_cotangent, axis, n_threads, *options))
        return _sum(terms)


class _Softmax(Function):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, *call = _kept(ctx)
        return _softmax_vjp(input, upstream, *call), *(None for _ in call)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
        input, *call = _kept(ctx)
        _refuse_softcap(call[3], "forward mode")
        return _softmax_vjp(input, tangent, *call)  # the Jacobian is symmetric


class _LogSoftmax(Function):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        input, *call = _kept(ctx)
        return _log_softmax_vjp(input, upstream, *call), *(None for _ in call)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *rest: None) -> Tensor:
        input, axis, n_threads, *options = _kept(ctx)
        return _along_log_softmax(input, tangent, axis, n_threads, options)


# The operators, to be called. Under torch.compile it is the operator itself, which has the same derivatives: a Function
# with a forward mode is not traced.


def _operator(
    name: str,
    function: Any,
    arguments: str,
    options: tuple[str, ...],
    kernel: Callable[..., Tensor],
    fake: Callable[..., Tensor] = _like_logits,
) -> Callable[..., Tensor]:
    operator = _define(name, arguments, options, "Tensor", kernel, fake)

    def run(*arguments: Any) -> Tensor:
        return operator(*arguments)

    def call(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if not torch.is_grad_enabled() and _is_plain(arguments):
            return operator(*arguments)
        _refuse_nested_forward_mode()
        return function.apply(*arguments)

    forward: Any = run
    forward.__signature__ = inspect.signature(run)  # PyTorch asks for it in each call, and to find it takes long
    axis_at = arguments.count(",") + 1
    of_classes = axis_at + 2 + options.index("weight") if "weight" in options else None
    function.forward = staticmethod(forward)
    function.setup_context = staticmethod(_keep)
    function.vmap = staticmethod(_batch_rule(call, axis_at, of_classes))
    qualified = f"softxent::{name}"
    torch.library.register_autograd(qualified, function.backward, setup_context=_keep, lib=LIBRARY)
    torch.library.register_vmap(qualified, function.vmap, lib=LIBRARY)
    return call


def _refuse_nested_forward_mode() -> None:
    """There the derivative of a Function's jvp is 0, without an error."""
    if torch._C._are_functorch_transforms_active():
        modes = [level.key() for level in torch._C._functorch.get_interpreter_stack()]
        if modes.count(torch._C._functorch.TransformType.Jvp) > 1:
            raise NotImplementedError("there is no forward mode of forward mode here: take jacfwd of jacrev")


LOGITS, TARGET = "Tensor input", "Tensor input, Tensor target"
_row_losses = _operator("row_losses", _RowLosses, TARGET, OF_LOSS, _compute_row_losses, _like_losses)
_gradient = _operator("gradient", _Gradient, TARGET, OF_LOSS, _compute_gradient)
_product = _operator("product", _Product, f"{TARGET}, Tensor vectors", OF_LOSS, _compute_product)
REDUCTION, REDUCED = "Tensor target, str reduction, bool[] wanted", "(Tensor, Tensor[])"
_reduced_loss = _define(
    "reduced_loss", f"{LOGITS}, {REDUCTION}", OF_LOSS, REDUCED, _reduced_by(_compute_loss), _like_reduced
)
HEAD = f"{LOGITS}, Tensor linear_weight, Tensor? linear_bias"
_linear_loss = _define(
    "linear_loss", f"{HEAD}, {REDUCTION}", OF_LOSS, REDUCED, _reduced_by(_compute_linear_loss), _like_reduced
)
torch.library.register_autograd("softxent::linear_loss", _linear_backward, setup_context=_keep, lib=LIBRARY)
_softmax = _operator("softmax", _Softmax, LOGITS, OF_LOGITS, _each_class(sx.softmax))
_log_softmax = _operator("log_softmax", _LogSoftmax, LOGITS, OF_LOGITS, _each_class(sx.log_softmax))
_softmax_vjp = _operator(
    "softmax_vjp", _SoftmaxVjp, f"{LOGITS}, Tensor cotangent", OF_LOGITS, _each_class(sx.softmax_vjp)
)
_log_softmax_vjp = _operator(
    "log_softmax_vjp", _LogSoftmaxVjp, f"{LOGITS}, Tensor cotangent", OF_LOGITS, _each_class(sx.log_softmax_vjp)
)


# What users call


@with_options
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    n_threads: int | None = None,
    **options: Unpack[LogitOptions],
) -> Tensor:
    r"""Softmax cross-entropy loss: `torch.nn.functional.cross_entropy`, for dense tensors on the CPU.

    Parameters
    ----------
    input : Tensor, shape (C,), (N, C) or (N, C, d1, ...)
        The logits, float16, bfloat16, float32 or float64, with any strides. They are not written to.
    target : Tensor, shape (), (N,) or (N, d1, ...), or the shape of `input`
        Labels, of any integer dtype; or probabilities, of a floating dtype.
    weight : Tensor, shape (C,), optional
        A weight for each class.
    size_average, reduce : bool, optional
        Old ways to write `reduction`.
    ignore_index : int, default -100
        The label of rows that do not count.
    reduction : {"mean", "sum", "none"}, default "mean"
        With labels, the mean divides by the weights of the labels of the rows that count; with probabilities, by the
        number of rows, or by the sum of `sample_weight`.
    label_smoothing : float, default 0.0
        The share of each target, in ``[0, 1]``, that is taken from it; each class gets ``label_smoothing / C``.
    sample_weight : Tensor, shape of labels, optional
        A weight for each row, that its loss is multiplied by. May require grad.
    z_loss, temperature, softcap, where
        As in `cross_entropy`.
    n_threads : int, optional
        How many threads this call may use, by default those that `softxent.set_num_threads` or
        `torch.set_num_threads` has set.

    Returns
    -------
    Tensor
        A scalar or, for "none", a tensor of the shape of labels: float64 for float64 logits, else float32, for
        half precision too. The mean is NaN if no row counts.

    Raises
    ------
    TypeError
        `input` is on another device, sparse, quantized or nested.
    RuntimeError, ValueError, IndexError
        What PyTorch raises for the same call; or, with an option that PyTorch has not, a TypeError or a ValueError.

    See Also
    --------
    CrossEntropyLoss : the same as a module.
    softxent.cross_entropy : the same for arrays, with the formula.

    Notes
    -----
    If `input` requires grad, the gradient is computed in the same visit to each row, and handed over in the backward
    pass [1]_. Small calls are PyTorch's own. Derivatives of second order, forward mode, `torch.func` and
    `torch.compile` work; the third derivative does not exist, and with `softcap` not the second.

    References
    ----------
    .. [1] Goodfellow, Bengio and Courville, *Deep Learning*, MIT Press, 2016, section 6.5.9.

    Examples
    --------
    >>> import torch
    >>> from softxent.torch import cross_entropy
    >>> input = torch.tensor([[0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]).log().requires_grad_()
    >>> loss = cross_entropy(input, torch.tensor([2, 0]))
    >>> loss.backward()
    >>> print(f"{loss.item():.6f}", input.grad)
    0.366985 tensor([[ 0.0500,  0.1500, -0.2000],
            [-0.1000,  0.0500,  0.0500]])
    """
    _refuse_elsewhere(input, "cross_entropy")
    how: str = reduction
    if size_average is not None or reduce is not None:
        how = torch.nn._reduction.legacy_get_string(size_average, reduce)
    by_pytorch = not options and sample_weight is None and not z_loss and n_threads is None
    theirs = (target, weight, None, ignore_index, None, how, label_smoothing)
    if by_pytorch and _is_small(input.shape, 1, 3000 if how == "none" else 1300, 200):
        if input.dtype not in HALVES:  # straight, since a call of a function is felt here
            return functional.cross_entropy(input, *theirs)
        return _by_functional(functional.cross_entropy, (input,), *theirs)
    try:
        return _loss(
            (input,), target, how, n_threads, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, z_loss=z_loss, **options,
        )  # fmt: skip
    except (NotImplementedError, TypeError, ValueError):
        if not by_pytorch:
            raise
        # PyTorch refuses it in its own words, or takes it.
        return _by_functional(functional.cross_entropy, (input,), *theirs)


@with_options
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: torch.nn.LinearCrossEntropyOptions | None = None,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    n_threads: int | None = None,
    **of_logits: Unpack[LogitOptions],
) -> Tensor:
    r"""Loss of a linear head without an array of its logits: `torch.nn.functional.linear_cross_entropy`, on the CPU.

    Parameters
    ----------
    input : Tensor, shape (D,), (N, D) or (..., D)
        What the logits are made of, float16, bfloat16, float32 or float64, with any strides.
    linear_weight : Tensor, shape (C, D)
        The weights of each class, of any of these dtypes.
    target : Tensor, shape (), (N,) or (...), or the same with an axis of C more
        Labels, of any integer dtype; or probabilities, of a floating dtype.
    linear_bias : Tensor, shape (C,), optional
        Is added to the logits of each row.
    weight, reduction
        As in `cross_entropy`.
    ignore_index : int, optional
        The label of rows that do not count, by default -100. Not with probabilities.
    label_smoothing
        As in `cross_entropy`.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Is not used: the rows are visited in chunks whatever it says.
    sample_weight, z_loss, temperature, softcap, where
        As in `cross_entropy`.
    n_threads : int, optional
        As in `cross_entropy`, for all but the products of matrices, whose threads are those of NumPy's BLAS.

    Returns
    -------
    Tensor
        A scalar or, for "none", a tensor of the shape of labels: float64 if `input` or `linear_weight` are, else
        float32. The mean is NaN if no row counts.

    Raises
    ------
    TypeError, RuntimeError, ValueError, IndexError
        As `cross_entropy`.

    See Also
    --------
    softxent.linear_value_and_grad : the same for arrays.

    Notes
    -----
    The gradients of what requires grad are computed in the same visit to each row as the loss, and with
    ``reduction="none"`` in the backward pass. Small calls, and those with `linear_weight` of more than two axes, are
    PyTorch's own. Derivatives of any kind work that `cross_entropy` has; but all except backward, and those with
    respect to `target` and `sample_weight`, make an array of the logits.

    Examples
    --------
    >>> import torch
    >>> from softxent.torch import linear_cross_entropy
    >>> input, linear_weight = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    >>> loss = linear_cross_entropy(input, linear_weight, torch.tensor([2, 0]))
    >>> loss.backward()
    >>> print(f"{loss.item():.6f}", linear_weight.grad)
    1.634800 tensor([[ 0.2112, -0.4550],
            [ 0.0777,  0.3326],
            [-0.2888,  0.1224]])
    """
    _refuse_elsewhere(input, "linear_cross_entropy")
    _refuse_elsewhere(linear_weight, "linear_cross_entropy", "linear_weight")
    # PyTorch's takes no input of more axes.
    by_pytorch = not of_logits and sample_weight is None and not z_loss and n_threads is None and input.dim() <= 2
    logits = (input, linear_weight, linear_bias)
    theirs: dict[str, Any] = {
        "linear_bias": linear_bias, "weight": weight, "reduction": reduction, "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }  # fmt: skip
    if by_pytorch and _is_small(input.shape[:-1] + linear_weight.shape[:1], -1, 3000, 200):
        return _by_functional(functional.linear_cross_entropy, logits[:2], target, **theirs)
    try:
        return _loss(
            logits, target, reduction, n_threads, weight=weight, sample_weight=sample_weight,
            ignore_index=-100 if ignore_index is None else ignore_index, label_smoothing=label_smoothing,
            z_loss=z_loss, **of_logits,
        )  # fmt: skip
    except (NotImplementedError, TypeError, ValueError):
        if not by_pytorch:
            raise
        return _by_functional(functional.linear_cross_entropy, logits[:2], target, **theirs)


@with_options
def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    n_threads: int | None = None,
    **options: Unpack[LogitOptions],
) -> Tensor:
    r"""Logarithm of the softmax: `torch.nn.functional.log_softmax`, for dense tensors on the CPU.

    Parameters
    ----------
    input : Tensor
        The logits, float16, bfloat16, float32 or float64, with any strides.
    dim : int
        The axis of the classes.
    _stacklevel : int
        For PyTorch's warning if `dim` is left out.
    dtype : torch.dtype, optional
        What the logits are converted to first.
    n_threads, temperature, softcap, where
        As in `cross_entropy`.

    Returns
    -------
    Tensor
        Of the shape of `input` and its dtype, or `dtype`, rounded to it once.

    Raises
    ------
    TypeError, ValueError, RuntimeError, IndexError
        As `cross_entropy`.

    See Also
    --------
    softmax : the probabilities.
    softxent.log_softmax : the same for arrays, with the formula.

    Notes
    -----
    Small calls are PyTorch's own. Derivatives of any order, forward mode, `torch.func` and `torch.compile` work; with
    `softcap` only the first derivative.

    Examples
    --------
    >>> import torch
    >>> from softxent.torch import log_softmax
    >>> log_softmax(torch.tensor([0.0, 1.0, 2.0]), dim=0)
    tensor([-2.4076, -1.4076, -0.4076])
    """
    return _of_family("log_softmax", _log_softmax, input, dim, _stacklevel, dtype, n_threads, options)


@with_options
def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    n_threads: int | None = None,
    **options: Unpack[LogitOptions],
) -> Tensor:
    r"""Softmax: `torch.nn.functional.softmax`, for dense tensors on the CPU.

    Parameters
    ----------
    input, dim, _stacklevel, dtype, n_threads, temperature, softcap, where
        As in `log_softmax`.

    Returns
    -------
    Tensor
        As `log_softmax` returns it.

    Raises
    ------
    TypeError, ValueError, RuntimeError, IndexError
        As `cross_entropy`.

    See Also
    --------
    log_softmax : the logarithms.
    softxent.softmax : the same for arrays, with the formula.

    Examples
    --------
    >>> import torch
    >>> from softxent.torch import softmax
    >>> softmax(torch.tensor([0.0, 1.0, 2.0]), dim=0)
    tensor([0.0900, 0.2447, 0.6652])
    """
    return _of_family("softmax", _softmax, input, dim, _stacklevel, dtype, n_threads, options)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    r"""Softmax cross-entropy loss as a module: `torch.nn.CrossEntropyLoss`, for dense tensors on the CPU.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `cross_entropy`. `weight` is a buffer of the module, as in PyTorch.
    temperature, softcap, z_loss, n_threads
        As in `cross_entropy`.

    See Also
    --------
    cross_entropy : the function that it calls.

    Examples
    --------
    >>> import torch
    >>> from softxent.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion(torch.zeros(2, 3), torch.tensor([2, 0]))
    tensor(1.0986)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
        *,
        temperature: float = 1.0,
        softcap: float | None = None,
        z_loss: float = 0.0,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        given = {"temperature": temperature, "softcap": softcap, "z_loss": z_loss}
        self.options: dict[str, Any] = {name: value for name, value in given.items() if value != OPTIONS[name].default}
        self.n_threads = n_threads

    def forward(
        self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None, where: Tensor | None = None
    ) -> Tensor:
        """The loss of these logits; `sample_weight` and `where` as in `cross_entropy`."""
        options = self.options if where is None else {**self.options, "where": where}
        reduction: Any = self.reduction
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=reduction,
            label_smoothing=self.label_smoothing, sample_weight=sample_weight, n_threads=self.n_threads, **options,
        )  # fmt: skip


def _refuse_unknown(options: Any) -> None:
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"got an unexpected keyword argument {name!r}{nearest(name)}")


def _is_float(value: Tensor | None) -> bool:
    return value is not None and value.is_floating_point()


def _by_functional(
    function: Callable[..., Tensor], logits: Sequence[Tensor], *arguments: Any, **options: Any
) -> Tensor:
    """PyTorch's own, with losses in float32 for halves."""
    if logits[0].dtype in HALVES or logits[-1].dtype in HALVES:
        dtype = _loss_dtype(*logits)

        def widened(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        logits, arguments = [*map(widened, logits)], tuple(map(widened, arguments))
        options = {name: widened(value) for name, value in options.items()}
    return function(*logits, *arguments, **options)


def _is_small(shape: Sequence[int], axis: int, rows: int, logits_for_a_row: int) -> bool:
    """Whether there are fewer rows than this, some logits counting as one row more: PyTorch is faster then.

    Rows of few classes, which PyTorch computes one by one, count in part; rows that are not side by side, over which
    its vectors go, do not count. All these numbers are measured.
    """
    n_logits = math.prod(shape)
    if n_logits < 9 * rows:  # whatever their rows are
        return True
    worth = n_logits / logits_for_a_row
    if len(shape) < 2 or axis in (-1, len(shape) - 1):
        worth += n_logits / max(shape[-1], 10)
    return worth < rows


def _refuse_elsewhere(value: Any, function: str, name: str = "input") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_cpu and value.layout is torch.strided and not (value.is_quantized or value.is_nested):
        return
    kind = f"one on {value.device}"
    if value.is_nested:
        kind = "a nested tensor"
    elif value.is_quantized:
        kind = "a quantized tensor"
    elif value.is_cpu:
        kind = f"one of layout {value.layout}"
    raise TypeError(f"{name} must be a dense tensor on the CPU, got {kind}; use torch.nn.functional.{function} for it")


def _refuse_dtype(value: Tensor, name: str = "input") -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def _for_all_logits(where: Tensor | None, shape: Sequence[int], axis: int) -> Tensor | None:
    if where is None:
        return None
    if where.dim() == 1 < len(shape):
        where = where.reshape(-1, *(1 for _ in shape[axis + 1 :]))
    return where.expand(shape)


def _of_family(
    name: str,
    function: Any,
    input: Tensor,
    dim: int | None,
    stacklevel: int,
    dtype: torch.dtype | None,
    n_threads: int | None,
    options: Any,
) -> Tensor:
    _refuse_elsewhere(input, name)
    by_pytorch = not options and n_threads is None
    by_functional = getattr(functional, name)
    if by_pytorch and (dim is None or not -input.dim() <= dim < input.dim() or _is_small(input.shape, dim, 5000, 2500)):
        return by_functional(input, dim, stacklevel + 2, dtype)
    converted = input if dtype is None else input.to(dtype)
    try:
        if dim is None:
            raise TypeError("dim must be an integer, got None")
        _refuse_unknown(options)
        _refuse_dtype(converted)
        axis = range(input.dim())[dim]
        options = {**options, "where": _for_all_logits(options.get("where"), input.shape, axis)}
        values = (options.get(option, OPTIONS[option].default) for option in OF_LOGITS)
        return function(converted, axis, n_threads, *values)
    except (NotImplementedError, TypeError, ValueError):
        if not by_pytorch:
            raise
        return by_functional(input, dim, stacklevel + 2, dtype)


def _shape_and_axis(input: Tensor, linear_weight: Tensor | None = None, _: Any = None) -> tuple[torch.Size, int]:
    """Of the logits: their shape, and which axis that of the classes is."""
    _refuse_dtype(input)
    shape = input.shape
    if linear_weight is not None:
        _refuse_dtype(linear_weight, "linear_weight")
        if not shape or linear_weight.dim() != 2 or linear_weight.shape[1] != shape[-1]:
            raise ValueError(
                "linear_weight must be of shape (C, D) for input of shape (..., D), "
                f"got {tuple(linear_weight.shape)} and {tuple(shape)}"
            )
        return shape[:-1] + linear_weight.shape[:1], len(shape) - 1
    return shape, 1 if len(shape) > 1 else 0


def _loss(logits: Logits, target: Tensor, reduction: str, n_threads: int | None, **given: Any) -> Tensor:
    shape, axis = _shape_and_axis(*logits)
    _refuse_unknown(given)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if shape and not shape[axis]:
        raise ValueError(f"the logits must have at least one class, got shape {tuple(shape)}")
    has_labels = not target.is_floating_point()
    if target.shape == shape if has_labels else target.shape != shape:  # sizes that torch.compile does not know
        raise ValueError(
            f"target must be labels, integers of shape {_without(shape, axis)}, or probabilities, "
            f"floating-point numbers of shape {tuple(shape)}, got {target.dtype} of shape {tuple(target.shape)}"
        )
    if _is_float(given["weight"]) and given["weight"].requires_grad:
        raise ValueError("weight must not require grad: pass weight.detach()")
    if "where" in given:
        given["where"] = _for_all_logits(given["where"], shape, axis)
    if not has_labels:
        if given["ignore_index"] >= 0:
            raise ValueError("ignore_index needs labels, got it with probabilities")
        given["ignore_index"] = None
        smoothing = given["label_smoothing"]
        if 0 < smoothing <= 1 and given.get("where") is None:
            # PyTorch gives each class a share of 1, and not of the sum of its row.
            target = target.to(_loss_dtype(*logits[:2])) * (1 - smoothing) + smoothing / shape[axis]
            given["label_smoothing"] = 0.0
    options = tuple(given.get(name, option.default) for name, option in OPTIONS.items())
    sample_weight = given["sample_weight"]
    values = (*logits, target, sample_weight)
    needs = [_is_float(value) and value.requires_grad and torch.is_grad_enabled() for value in values]
    wanted, others = needs[: len(logits)], needs[len(logits) :]
    is_compiling = torch.compiler.is_compiling()
    is_plain = is_compiling or _is_plain(values)
    is_head = len(logits) > 1
    if reduction != "none" and (has_labels or sample_weight is None) and is_plain and not is_compiling:
        reduced = _linear_loss if is_head else _reduced_loss
        if not any(needs):
            return reduced(*logits, target, reduction, wanted, axis, n_threads, *options)[0]
        if not any(others):
            return _ReducedLoss.apply(reduced, *logits, target, reduction, wanted, axis, n_threads, *options)
    if is_head and is_plain and not any(others):
        losses, _ = _linear_loss(*logits, target, "none", [False] * len(logits), axis, n_threads, *options)
    else:
        losses = _row_losses(_logits_of(*logits), target, axis, n_threads, *options)
    if reduction == "none":
        return losses
    total = losses.sum(dtype=torch.float64)
    if reduction == "mean":
        total = total / _divisor(target, axis, options)
    return total.to(losses.dtype)


def _is_plain(values: Iterable[Any]) -> bool:
    """Whether nothing but backward will be asked for: no torch.func, no forward mode."""
    if torch._C._are_functorch_transforms_active():
        return False
    return all(forward_ad.unpack_dual(value).tangent is None for value in values if isinstance(value, Tensor))
