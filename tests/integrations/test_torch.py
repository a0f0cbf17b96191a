"""softxent.torch: PyTorch's own samples of its functions, its derivatives of every kind, and what people trip over."""

import copy
import doctest
import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import reference
from support import run_python

import softxent as sx

torch = pytest.importorskip("torch")

from torch import func  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import softxent.torch as sxt  # noqa: E402

# What forward mode and the compiler of PyTorch use of PyTorch
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALVES = FLOATS[2:]
# Relative errors of a loss and of a gradient, next to float64; halves are computed in float32 and rounded once.
LOSS_ERROR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
GRAD_ERROR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}

of_dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
of_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls are computed here, too."""
    monkeypatch.setattr(sxt, "_is_small", lambda *arguments: False)


computed_here = pytest.mark.usefixtures("ours")
on_every_level = pytest.mark.usefixtures("ours", "level")


def by_head(logits: Any, target: Any, **options: Any) -> Any:
    """The same loss by a linear head, whose weights are the identity."""
    return sxt.linear_cross_entropy(logits, torch.eye(logits.shape[1], dtype=logits.dtype), target, **options)


of_losses = pytest.mark.parametrize("loss", [sxt.cross_entropy, by_head], ids=["logits", "head"])


def head(kind: str = "labels", dtype: Any = torch.float64) -> tuple[Any, Any, Any, Any]:
    """Input, weights and bias of a linear head, which require grad, and targets."""
    rng = torch.Generator().manual_seed(0)
    shapes = (5, 4), (3, 4), (3,)
    input, weight, bias = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    target = torch.tensor([0, 2, 1, 1, 0]) if kind == "labels" else torch.rand(5, 3, generator=rng).to(dtype)
    return *(value.to(dtype).requires_grad_() for value in (input, weight, bias)), target


def of_head(function: Callable[..., Any]) -> Callable[..., Any]:
    """With the bias among the arguments, to be differentiated by."""
    return lambda *arguments, **options: function(
        *arguments[:2], arguments[3], linear_bias=arguments[2], **options
    )  # fmt: skip


def problem(*shape: int, dtype: Any = torch.float64, kind: str = "labels", seed: int = 0) -> tuple[Any, Any]:
    """Logits of shape (N, C, ...) that require grad, and targets."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=rng, dtype=torch.float64)
    if kind == "labels":
        target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=rng)
    else:
        target = torch.rand(shape, generator=rng, dtype=torch.float64).softmax(1).to(dtype)
    return logits.to(dtype).requires_grad_(), target


def wide(value: Any) -> Any:
    """The same numbers in float64, as leaves of a graph of their own."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def assert_agrees(function: Callable[..., Any], pytorchs: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Values and gradients are PyTorch's in float64."""
    dtype = arguments[0].dtype
    result = function(*arguments, **options)
    wide_arguments, wide_options = [*map(wide, arguments)], {name: wide(value) for name, value in options.items()}
    expected = pytorchs(*wide_arguments, **wide_options)
    assert result.shape == expected.shape
    half_result = result.dtype in HALVES
    sizes = [
        value.detach().abs().double().reshape(-1)
        for value in (arguments[0], options.get("weight"))
        if value is not None
    ]
    terms = float(torch.cat([*sizes, torch.ones(1)]).max()) ** 2 + 1
    error = (GRAD_ERROR if half_result else LOSS_ERROR)[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=error, atol=error * terms, equal_nan=True)
    inputs = [value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad]
    wide_inputs = [value for value in wide_arguments if isinstance(value, torch.Tensor) and value.requires_grad]
    upstream = torch.rand(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    upstream = upstream.to(result.dtype)
    grads = torch.autograd.grad(result, inputs, upstream)
    expected_grads = torch.autograd.grad(expected, wide_inputs, upstream.double())
    for grad, expected_grad, value in zip(grads, expected_grads, inputs, strict=True):
        assert (grad.dtype, grad.shape) == (value.dtype, value.shape)
        scale = max(terms, float(expected_grad.abs().max()) if expected_grad.numel() else 0.0)
        torch.testing.assert_close(
            grad.double(), expected_grad, rtol=GRAD_ERROR[dtype], atol=LOSS_ERROR[dtype] * scale, equal_nan=True
        )


# PyTorch's own samples


def database(module: str, name: str) -> Any:
    pytest.importorskip("expecttest")  # what PyTorch's own tests need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(__import__(f"torch.testing._internal.{module}", fromlist=[name]), name)


@on_every_level
@of_dtypes
@pytest.mark.parametrize(
    "name", ["nn.functional.cross_entropy", "nn.functional.linear_cross_entropy", "log_softmax", "softmax"]
)
def test_samples_of_functions(name: str, dtype: Any) -> None:
    count = 0
    for info in database("common_methods_invocations", "op_db"):
        if info.name == name and "chunked" not in info.variant_test_name:
            for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
                arguments, options = [sample.input, *sample.args], dict(sample.kwargs)
                options.pop("dtype", None)
                function = getattr(sxt, name.rpartition(".")[2])
                assert_agrees(function, info.op, *arguments, **options)
                if name.endswith("entropy"):
                    assert_agrees(function, info.op, *arguments[:-1], arguments[-1].detach(), **options)
                count += 1
    assert count >= 10


@computed_here
@pytest.mark.parametrize("name", ["log_softmax", "softmax"])
def test_dtype_is_what_the_logits_are_converted_to(name: str) -> None:
    function, pytorchs = getattr(sxt, name), getattr(functional, name)
    for given in (torch.arange(6).reshape(2, 3), torch.randn(2, 3, dtype=torch.float16)):
        for dtype in FLOATS:
            result = function(given, 1, dtype=dtype)
            assert result.dtype is dtype
            torch.testing.assert_close(result, pytorchs(given.double(), 1).to(dtype))


def module_info() -> Any:
    (info,) = [info for info in database("common_modules", "module_db") if info.module_cls is torch.nn.CrossEntropyLoss]
    return info


@on_every_level
@of_dtypes
def test_samples_of_the_module(dtype: Any) -> None:
    info, count = module_info(), 0
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True):
        options = sample.constructor_input.kwargs
        input, target = (
            value.detach().requires_grad_() if value.is_floating_point() else value
            for value in sample.forward_input.args
        )
        weight = options.get("weight")
        module = sxt.CrossEntropyLoss(**options)
        pytorchs = torch.nn.CrossEntropyLoss(**{**options, "weight": wide(weight)})
        torch.testing.assert_close(
            module(input, target).double(), pytorchs(wide(input), wide(target)), rtol=1e-5, atol=2e-5
        )
        assert_agrees(
            lambda input, target, module=module, **_: module(input, target),
            lambda input, target, pytorchs=pytorchs, **_: pytorchs(input, target),
            *(input, target),
            **({} if weight is None else {"weight": weight}),
        )
        count += 1
    assert count > 50


@pytest.mark.parametrize("small", [True, False])
def test_error_inputs_of_the_module_raise_the_same(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(sxt, "_is_small", lambda *arguments: False)
    errors = database("common_modules", "module_error_inputs_torch_nn_CrossEntropyLoss")(
        module_info(), device="cpu", dtype=torch.float32, requires_grad=False, training=True
    )
    assert len(errors) >= 7
    for error in errors:
        sample = error.module_error_input
        module = sxt.CrossEntropyLoss(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*sample.forward_input.args, **sample.forward_input.kwargs)


# Derivatives


KINDS = ("labels", "probabilities")
OPTIONS = {
    "plain": {},
    "weight and smoothing": {"weight": torch.tensor([0.5, 2.0, 0.1]).double(), "label_smoothing": 0.2},
    "temperature and z_loss": {"temperature": 1.7, "z_loss": 0.1},
}


@computed_here
@of_reductions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck(reduction: str, kind: str, options: dict[str, Any]) -> None:
    """First and second derivatives, backward, forward, one over the other, and many at once."""
    logits, target = problem(2, 3, 2, kind=kind)
    target.requires_grad_(kind == "probabilities")
    rows = (torch.rand(2, 2, dtype=torch.float64) + 0.5).requires_grad_()

    def loss(logits: Any, target: Any, rows: Any) -> Any:
        return sxt.cross_entropy(logits, target, reduction=reduction, sample_weight=rows, **options)

    def unweighted(logits: Any, target: Any) -> Any:
        return sxt.cross_entropy(logits, target, reduction=reduction, **options)

    for function, arguments in ((loss, (logits, target, rows)), (unweighted, (logits, target))):
        assert torch.autograd.gradcheck(
            function, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True, check_rev_over_rev=True)


@computed_here
@of_reductions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck_of_the_head(reduction: str, kind: str, options: dict[str, Any]) -> None:
    *parts, target = head(kind)
    rows = torch.rand(5, dtype=torch.float64) + 0.5
    loss = of_head(sxt.linear_cross_entropy)

    def weighted(*parts: Any) -> Any:
        return loss(*parts[:3], target, reduction=reduction, sample_weight=parts[3], **options)

    def unweighted(*arguments: Any) -> Any:
        return loss(*arguments, reduction=reduction, **options)

    for function, arguments in (
        (weighted, (*parts, rows)),
        (weighted, (*parts, rows.clone().requires_grad_())),
        (unweighted, (*parts, target.requires_grad_(kind == "probabilities"))),
    ):
        assert torch.autograd.gradcheck(
            function, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )
        assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True, check_rev_over_rev=True)


@computed_here
@pytest.mark.parametrize("leading", [(), (2, 3)])
@of_reductions
def test_gradcheck_of_the_head_of_any_axes(reduction: str, leading: tuple[int, ...]) -> None:
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((*leading, 4), (3, 4))]
    labels = torch.randint(3, leading)

    def loss(input: Any, weight: Any) -> Any:
        return sxt.linear_cross_entropy(input, weight, labels, reduction=reduction)

    assert torch.autograd.gradcheck(loss, parts)
    assert torch.autograd.gradgradcheck(loss, parts)


@computed_here
@pytest.mark.parametrize("function", [sxt.log_softmax, sxt.softmax], ids=["log_softmax", "softmax"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}, {"where": True}], ids=["plain", "temperature", "where"])
def test_gradcheck_of_the_family(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """The third derivative, too."""
    logits, _ = problem(2, 3, 2)
    allowed = torch.ones(2, 3, 2, dtype=torch.bool)
    if "where" in options:
        allowed = logits.detach() < logits.detach().amax(1, keepdim=True)
        options = {"where": allowed}

    def call(logits: Any) -> Any:
        return torch.where(allowed, function(logits, 1, **options), 0)

    assert torch.autograd.gradcheck(
        call, logits, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(call, logits, check_fwd_over_rev=True)

    def slope(logits: Any) -> Any:
        return torch.autograd.grad(call(logits).square().sum(), logits, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, logits)


@computed_here
def test_second_derivatives_are_those_of_softxent() -> None:
    """At a confident row, where p (1 - p) from a rounded p is 0."""
    logits = torch.tensor([[0.0, -18.0, -20.0]], requires_grad=True)
    label = torch.tensor([0])
    (grad,) = torch.autograd.grad(sxt.cross_entropy(logits, label), logits, create_graph=True)
    (second,) = torch.autograd.grad(grad, logits, torch.tensor([[1.0, 0, 0]]))
    expected = sx.hvp(logits.detach().numpy(), [0], [[1.0, 0, 0]])
    np.testing.assert_array_equal(second.numpy(), expected)
    assert second[0, 0] > 1e-8


@computed_here
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_func(reduction: str) -> None:
    def by(function: Callable[..., Any]) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
        def loss(logits: Any, target: Any) -> Any:
            return function(logits, target, reduction=reduction, label_smoothing=0.1).sum()

        return lambda logits: loss(logits, target[0]), loss

    logits, target = problem(6, 3, 5)
    logits = logits.detach().mT.contiguous()
    (one, each), (their_one, their_each) = by(sxt.cross_entropy), by(functional.cross_entropy)
    for transform in (
        func.grad,
        func.jacfwd,
        func.hessian,
        lambda f: func.jacrev(func.jacrev(f)),
        lambda f: func.jacrev(func.jacfwd(f)),
        lambda f: func.jacfwd(func.jacfwd(f)),
    ):
        torch.testing.assert_close(transform(one)(logits[0]), transform(their_one)(logits[0]))
    for dims in ((0, 0), (2, None), (0, None)):
        batch, labels = logits.movedim(0, dims[0]), target if dims[1] == 0 else target[0]
        torch.testing.assert_close(
            func.vmap(func.grad(each), in_dims=dims)(batch, labels),
            func.vmap(func.grad(their_each), in_dims=dims)(batch, labels),
        )
    torch.testing.assert_close(
        func.grad(lambda x: func.vmap(each)(x, target).sum())(logits),
        func.grad(lambda x: func.vmap(their_each)(x, target).sum())(logits),
    )


@computed_here
@of_reductions
def test_torch_func_of_the_head(reduction: str) -> None:
    *parts, target = head()
    input, weight, bias = (part.detach() for part in parts)
    inputs = torch.stack([input, 2 * input])

    def results(function: Callable[..., Any]) -> list[Any]:
        def loss(weight: Any, input: Any = input) -> Any:
            return function(input, weight, target, linear_bias=bias, reduction=reduction).sum()

        return [
            func.grad(loss)(weight),
            func.vmap(func.grad(loss), in_dims=(None, 0))(weight, inputs),
            func.hessian(loss)(weight),
            func.jvp(loss, (weight,), (weight,))[1],
        ]

    for ours, theirs in zip(results(sxt.linear_cross_entropy), results(functional.linear_cross_entropy), strict=True):
        torch.testing.assert_close(ours, theirs)


@computed_here
def test_what_has_no_derivative_says_so() -> None:
    logits, labels = problem(4, 3)
    capped = sxt.cross_entropy(logits, labels, softcap=5.0)
    with pytest.raises(ValueError, match="softcap has no second derivative here"):
        torch.autograd.grad(capped, logits, create_graph=True)[0].sum().backward()
    for function in (sxt.softmax, sxt.log_softmax):
        slope = torch.autograd.grad(function(logits, 1, softcap=5.0)[0, 0], logits, create_graph=True)[0]
        with pytest.raises(ValueError, match=r"^softcap has no "):
            slope.sum().backward()
        with pytest.raises(ValueError, match=r"^softcap has no "):
            func.jvp(lambda x, function=function: function(x, 1, softcap=5.0), (logits,), (logits,))
    slope = torch.autograd.grad(sxt.cross_entropy(logits, labels), logits, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.square().sum(), logits, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"no third derivative; torch\.nn\.functional\.cross_entropy has one"):
        curvature.sum().backward()
    with pytest.raises(NotImplementedError, match=r"no forward mode of forward mode"):
        func.jacfwd(func.jacfwd(lambda x: sxt.cross_entropy(x, labels, z_loss=0.1)))(logits.detach())
    with pytest.raises(ValueError, match=r"^weight must be the same for all calls that vmap makes"):
        func.vmap(lambda w: sxt.cross_entropy(logits, labels, w, z_loss=0.1))(torch.ones(2, 3))
    soft = problem(4, 3, kind="probabilities")[1].requires_grad_()
    where = torch.tensor([True, True, False])
    smoothed = sxt.cross_entropy(logits, soft, label_smoothing=0.1, where=where)
    with pytest.raises(ValueError, match=r"^target must not require grad where label_smoothing and where"):
        smoothed.backward()


# torch.compile and the dispatcher


@computed_here
def test_operators_pass_opcheck() -> None:
    logits, labels = problem(4, 3, 2)
    soft = problem(4, 3, 2, kind="probabilities")[1].requires_grad_()
    vectors, rows = torch.randn_like(logits), torch.rand(4, 2, dtype=torch.float64)
    weight, where = torch.rand(3, dtype=torch.float64), torch.ones(4, 3, 2, dtype=torch.bool)
    plain = (1.0, None, None, None, None, -100, 0.0, 0.0)
    of_probabilities = (1.3, None, where, weight, rows, None, 0.0, 0.1)
    of_logits = (1.3, None, where)
    *parts, of_rows = head()
    detached = [part.detach() for part in parts]
    operators = torch.ops.softxent
    for operator, arguments in (
        (operators.row_losses, (logits, labels, 1, None, *plain)),
        (operators.row_losses, (logits, soft, 1, 1, *of_probabilities)),
        (operators.gradient, (logits, labels, 1, None, *plain)),
        (operators.gradient, (logits, soft, 1, None, *of_probabilities)),
        (operators.product, (logits.detach(), labels, vectors, 1, None, *plain)),
        (operators.reduced_loss, (logits.detach(), labels, "mean", [True], 1, None, *plain)),
        (operators.reduced_loss, (logits.detach(), labels, "sum", [False], 1, None, *plain)),
        (operators.linear_loss, (*parts, of_rows, "none", [False] * 3, 1, None, *plain)),
        (operators.linear_loss, (*parts[:2], None, of_rows, "none", [False] * 3, 1, 1, *plain)),
        (operators.linear_loss, (*detached, of_rows, "mean", [True, False, True], 1, None, *plain)),
        (operators.softmax, (logits, 1, None, *of_logits)),
        (operators.log_softmax, (logits, 1, None, 1.0, None, None)),
        (operators.softmax_vjp, (logits, torch.rand_like(logits).requires_grad_(), 1, None, *of_logits)),
        (operators.log_softmax_vjp, (logits, vectors, 1, None, *of_logits)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(operator.default, arguments)


@computed_here
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_torch_compile_without_a_graph_break() -> None:
    layer = torch.nn.Linear(5, 6)
    features, labels = torch.randn(8, 5), torch.randint(6, (8,))

    def step(loss: Callable[..., Any], options: dict[str, Any]) -> list[Any]:
        layer.zero_grad()
        value = loss(layer(features), labels, **options).sum()
        value.backward()
        return [value.detach(), layer.weight.grad.clone()]

    for options in ({}, {"reduction": "none"}, {"weight": torch.rand(6), "label_smoothing": 0.2, "reduction": "sum"}):
        compiled = torch.compile(sxt.cross_entropy, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(step(compiled, options), step(functional.cross_entropy, options))
    both = torch.compile(lambda x: sxt.softmax(x, 0) + sxt.log_softmax(x, 0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(both(features), functional.softmax(features, 0) + functional.log_softmax(features, 0))
    unknown = torch.compile(sxt.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for target in (labels % 5, torch.rand(8, 5)):
        torch.testing.assert_close(unknown(features, target), functional.cross_entropy(features, target))
    exported = torch.export.export(sxt.CrossEntropyLoss(), (features, labels % 5)).module()
    torch.testing.assert_close(exported(features, labels % 5), functional.cross_entropy(features, labels % 5))


@computed_here
@of_reductions
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_head_makes_no_logits(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *parts, target = head()
    expected = of_head(functional.linear_cross_entropy)(*parts, target, reduction=reduction).sum()
    expected_grads = torch.autograd.grad(expected, parts)
    monkeypatch.setattr(sxt, "_logits_of", None)
    loss = of_head(sxt.linear_cross_entropy)
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        found = call(*parts, target, reduction=reduction).sum()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, parts), expected_grads)
        with torch.no_grad():
            torch.testing.assert_close(call(*parts, target, reduction=reduction).sum(), expected)


@computed_here
@of_reductions
def test_only_the_gradients_that_are_needed_are_computed(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(*arguments: Any, out: Any, **options: Any) -> Any:
        asked.append([array is not None for array in out])
        return sx.linear_value_and_grad(*arguments, out=out, **options)

    face = {"linear_value_and_grad": watched, "linear_cross_entropy": sx.linear_cross_entropy}
    monkeypatch.setattr(sxt, "sx", type("Face", (), {name: staticmethod(value) for name, value in face.items()}))
    *parts, target = head()
    for needed in ([True, False, False], [False, True, True], [False, False, False]):
        for part, is_needed in zip(parts, needed, strict=True):
            part.requires_grad_(is_needed)
        loss = of_head(sxt.linear_cross_entropy)(*parts, target, reduction=reduction)
        assert loss.requires_grad == any(needed)
        if any(needed):
            loss.sum().backward()
            assert asked.pop() == needed
        assert not asked
        assert [part.grad is not None and part.grad.any().item() for part in parts] == needed
        for part in parts:
            part.grad = None


# What people trip over


@computed_here
@pytest.mark.parametrize(
    "loss", [by_head, sxt.cross_entropy, lambda x, y: sxt.cross_entropy(x, y, reduction="none").mean()]
)
def test_no_tensor_of_the_callers_is_written_to(loss: Callable[..., Any]) -> None:
    """tanh keeps its result for its own backward; and a second loss on the same logits sees them as they were."""
    weights = torch.randn(7, 5, requires_grad=True)
    features, labels = torch.randn(16, 7), torch.randint(5, (16,))

    def grad(of: Callable[..., Any]) -> tuple[Any, Any]:
        logits = torch.tanh(features @ weights)
        before = logits.detach().clone()
        total = of(logits, labels) + 2 * of(logits, (labels + 1) % 5)
        (found,) = torch.autograd.grad(total, weights)
        assert torch.equal(logits, before)
        return total.detach(), found

    torch.testing.assert_close(grad(loss), grad(functional.cross_entropy))


@computed_here
@of_losses
def test_backward_again(loss: Callable[..., Any]) -> None:
    """retain_graph: gradients that were handed over belong to the caller, who may write to them."""
    logits, labels = problem(6, 5)
    expected = torch.autograd.grad(functional.cross_entropy(logits, labels), logits)[0]
    value = loss(logits, labels)
    for _ in range(3):
        (grad,) = torch.autograd.grad(value, logits, retain_graph=True)
        torch.testing.assert_close(grad, expected)
        grad.fill_(torch.nan)
    value = loss(logits, labels)
    for times in (1, 2, 3):  # .grad adds up, in place
        value.backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, times * expected)
    logits.grad.zero_()
    value.backward()
    torch.testing.assert_close(logits.grad, expected)


@computed_here
@of_losses
def test_the_gradient_becomes_that_of_a_leaf_without_a_copy(
    loss: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Face:
        @staticmethod
        def value_and_grad(*arguments: Any, **options: Any) -> Any:
            result = sx.value_and_grad(*arguments, **options)
            made.append(result[1])
            return result

        @staticmethod
        def linear_value_and_grad(*arguments: Any, **options: Any) -> Any:
            result = sx.linear_value_and_grad(*arguments, **options)
            made.append(result[1].inputs)
            return result

    logits, labels = problem(6, 5)
    monkeypatch.setattr(sxt, "sx", Face)
    loss(logits, labels).backward()
    assert np.shares_memory(made[0], logits.grad.numpy())
    logits.grad = None
    (3 * loss(logits, labels)).backward()
    assert np.shares_memory(made[1], logits.grad.numpy())


@computed_here
@of_losses
@of_reductions
def test_logits_that_were_changed_before_backward_are_an_error(loss: Callable[..., Any], reduction: str) -> None:
    logits, labels = problem(6, 5)
    changed = 2 * logits
    value = loss(changed, labels, reduction=reduction).sum()
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@on_every_level
@of_dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind: str, dtype: Any) -> None:
    """Transposed, every other, broadcast, windows that overlap; channels last."""
    rng = torch.Generator().manual_seed(3)
    memory = torch.randn(60, generator=rng, dtype=torch.float64).to(dtype)
    views = [
        memory.reshape(6, 10).T,
        memory.reshape(6, 10)[::2, 1::3],
        memory[:5].expand(4, 5),
        memory[:4, None].expand(4, 5),
        memory.as_strided((8, 5), (3, 1)),
        memory.reshape(2, 5, 3, 2).contiguous(memory_format=torch.channels_last),
        memory.reshape(2, 3, 5, 2).transpose(1, 2),
        memory[:0].reshape(0, 5),
        memory[:5],
    ]
    for view in views:
        shape = view.shape
        target = torch.randint(shape[1 % len(shape)], shape[:1] + shape[2:] if len(shape) > 1 else (), generator=rng)
        if kind == "probabilities":
            target = torch.rand(shape, generator=rng).softmax(-1).to(dtype)
        base = view.detach()

        def loss(function: Callable[..., Any], logits: Any, target: Any) -> Any:
            return function(logits, target, reduction="sum")

        found, expected = base.requires_grad_(), wide(base.requires_grad_())
        ours, theirs = loss(sxt.cross_entropy, found, target), loss(functional.cross_entropy, expected, wide(target))
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(ours, found)[0], torch.autograd.grad(theirs, expected)[0]
        torch.testing.assert_close(grads[0].double(), grads[1], rtol=GRAD_ERROR[dtype], atol=1e-5)


@on_every_level
@of_dtypes
@of_reductions
def test_strides_of_the_head(reduction: str, dtype: Any) -> None:
    """Transposed, every other, broadcast, windows that overlap; weights of shape (D, C); more axes of rows."""
    rng = torch.Generator().manual_seed(3)
    memory = torch.randn(120, generator=rng, dtype=torch.float64).to(dtype)
    theirs = functional.linear_cross_entropy
    for input in (
        memory[:30].reshape(5, 6).T,
        memory.reshape(12, 10)[::2, ::2],
        memory[:5].expand(4, 5),
        memory.as_strided((8, 5), (3, 1)),
        memory.reshape(2, 5, 12)[..., ::2].mT,
        memory[:0].reshape(0, 5),
        memory[:5],
    ):
        for weight in (memory[:35].reshape(7, 5), memory[-35:].reshape(5, 7).T, memory[:70].reshape(7, 10)[:, 1::2]):
            target = torch.randint(7, input.shape[:-1], generator=rng)
            arguments = input.detach().requires_grad_(), weight.detach().requires_grad_(), target
            if input.dim() < 3:
                assert_agrees(sxt.linear_cross_entropy, theirs, *arguments, reduction=reduction)
                continue
            assert_agrees(
                sxt.linear_cross_entropy,
                lambda x, w, y, **_: theirs(x.flatten(0, 1), w, y.flatten(), reduction=reduction).view(
                    y.shape if reduction == "none" else ()
                ),
                *arguments,
                reduction=reduction,
            )


@computed_here
@of_losses
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_scaling_comes_before_rounding(dtype: Any, reduction: str, loss: Callable[..., Any]) -> None:
    """The gradient of a mean over many rows is below the smallest float16; scaled by 65536 it is not."""
    logits, labels = problem(4096, 3, dtype=dtype)
    scale = 65536.0 * 8
    losses = loss(logits, labels, reduction=reduction)
    (grad,) = torch.autograd.grad(losses.mean() * scale, logits)
    _, expected = reference(logits.detach().double().numpy(), labels.numpy())
    expected = torch.from_numpy(expected * scale)
    torch.testing.assert_close(grad.double(), expected, rtol=GRAD_ERROR[dtype], atol=1e-5)
    assert (grad == 0).float().mean() < 0.01


@computed_here
@of_losses
@of_dtypes
def test_weights_of_rows_by_the_incoming_gradient(dtype: Any, loss: Callable[..., Any]) -> None:
    logits, labels = problem(7, 5, dtype=dtype)
    rows = torch.linspace(-1, 2, 7)
    (grad,) = torch.autograd.grad((loss(logits, labels, reduction="none") * rows).sum(), logits)
    given = sxt._array(logits)
    _, expected = sx.value_and_grad(given, labels.numpy(), sample_weight=rows.numpy(), reduction="sum")
    np.testing.assert_array_equal(sxt._array(grad).astype(float), expected.astype(float))


@computed_here
@of_losses
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_loss_alone_costs_no_gradient(mode: Any, loss: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = problem(6, 5)
    if mode is torch.enable_grad:
        logits = logits.detach()
    alone = {name: staticmethod(getattr(sx, name)) for name in ("cross_entropy", "linear_cross_entropy")}
    monkeypatch.setattr(sxt, "sx", type("Face", (), alone))
    with mode():
        value = loss(logits, labels)
    assert not value.requires_grad
    assert value.item() == sx.cross_entropy(logits.detach().numpy(), labels.numpy())
    with pytest.raises(AttributeError):
        loss(logits.detach().requires_grad_(), labels)


@computed_here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: Any) -> None:
    layer, features, labels = torch.nn.Linear(5, 6), torch.randn(8, 5), torch.randint(6, (8,))
    with torch.autocast("cpu", dtype):
        logits = layer(features)
        ours, theirs = (f(logits, labels) for f in (sxt.cross_entropy, functional.cross_entropy))
    assert logits.dtype is dtype
    assert ours.dtype is theirs.dtype is torch.float32
    torch.testing.assert_close(ours, theirs)
    (grad,), (their_grad,) = (torch.autograd.grad(loss, layer.weight, retain_graph=True) for loss in (ours, theirs))
    torch.testing.assert_close(grad, their_grad, rtol=0.02, atol=1e-3)


@computed_here
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_of_the_head(dtype: Any) -> None:
    """A hidden layer in half precision beside weights in float32: nothing else is rounded."""
    layer, features, labels = torch.nn.Linear(5, 4), torch.randn(8, 5), torch.randint(3, (8,))
    weight = torch.randn(3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype):
        hidden = layer(features)
        hidden.retain_grad()
        loss = sxt.linear_cross_entropy(hidden, weight, labels)
        assert_agrees(sxt.linear_cross_entropy, functional.linear_cross_entropy, hidden.detach(), weight, labels)
    loss.backward()
    assert (loss.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, dtype, torch.float32)


@computed_here
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    """Nothing of the logits' size is kept between the passes."""
    layer, features, labels = torch.nn.Linear(5, 6), torch.randn(8, 5, requires_grad=True), torch.randint(6, (8,))
    loss = checkpoint(lambda x: sxt.cross_entropy(layer(x), labels), features, use_reentrant=reentrant)
    loss.backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    functional.cross_entropy(layer(features), labels).backward()
    torch.testing.assert_close(found, layer.weight.grad)


@computed_here
def test_the_gradient_is_seen_by_saved_tensor_hooks() -> None:
    """Or a checkpoint would keep it, and offloading would not move it."""
    logits, labels = problem(6, 5)
    packed = []

    def pack(tensor: Any) -> Any:
        packed.append(tensor.detach().clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda at: packed[at]):
        loss = sxt.cross_entropy(logits, labels)
    (grad,) = torch.autograd.grad(loss, logits)
    assert any(torch.equal(tensor, grad) for tensor in packed)


@of_dtypes
def test_training_curves_are_equal(dtype: Any) -> None:
    """A hundred steps of a small network, in float64 to 12 digits."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1024, 12, generator=rng).to(dtype)
    labels = (features[:, :10] + torch.randn(1024, 10, generator=rng).to(dtype)).argmax(1)

    def curve(criterion: Any) -> Any:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)).to(dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = criterion(network(features), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses, dtype=torch.float64)

    ours = curve(sxt.CrossEntropyLoss(label_smoothing=0.1))
    theirs = curve(torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    assert ours[-1] < 0.8 * ours[0]
    error = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=error, atol=0)


# Meanings


@computed_here
@of_losses
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_empty_mean_is_nan(smoothing: float, loss: Callable[..., Any]) -> None:
    logits, labels = problem(4, 3)
    ignored = torch.full_like(labels, -100)
    for arguments in (
        (logits, ignored),
        (logits[:0], labels[:0]),
        (logits[:0], logits[:0].detach()),
        (logits, labels, torch.zeros(3, dtype=torch.float64)),
    ):
        options = {"label_smoothing": smoothing, "weight": arguments[2] if len(arguments) > 2 else None}
        for function in (loss, functional.cross_entropy):
            assert function(*arguments[:2], **options).isnan()
            assert function(*arguments[:2], **options, reduction="sum") == 0
            assert function(*(a.detach() for a in arguments[:2]), **options).isnan()
    loss(logits, ignored, label_smoothing=smoothing).backward()
    assert (logits.grad == 0).all()


@computed_here
@of_reductions
def test_smoothing_of_rows_that_do_not_sum_to_one(reduction: str) -> None:
    logits, _ = problem(4, 3, 2)
    target = torch.rand(4, 3, 2, dtype=torch.float64, requires_grad=True)
    options = {"reduction": reduction, "label_smoothing": 0.3, "weight": torch.tensor([1.0, 2.0, 0.5]).double()}
    assert_agrees(sxt.cross_entropy, functional.cross_entropy, logits, target, **options)


@computed_here
@of_reductions
def test_options_of_softxent(reduction: str) -> None:
    logits, labels = problem(6, 5, 2)
    labels[0, 0] = -100
    where = torch.rand(6, 5, 2, generator=torch.Generator().manual_seed(0)) < 0.7
    where.scatter_(1, labels.clamp(min=0)[:, None], True)
    options = {
        "temperature": 1.7,
        "softcap": 6.0,
        "where": where,
        "z_loss": 0.05,
        "label_smoothing": 0.1,
        "weight": torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]).double(),
        "sample_weight": torch.rand(6, 2, dtype=torch.float64),
    }
    loss = sxt.cross_entropy(logits, labels, reduction=reduction, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    arrays = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    expected, expected_grad = reference(
        logits.detach().numpy(), labels.numpy(), reduction, axis=1, ignore_index=-100, **arrays
    )
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(grad.numpy(), expected_grad, rtol=1e-12, atol=1e-15)
    flat = logits.detach().movedim(1, -1).contiguous().requires_grad_()  # more axes of rows
    options["where"] = where.movedim(1, -1)
    by_head = sxt.linear_cross_entropy(flat, torch.eye(5, dtype=torch.float64), labels, reduction=reduction, **options)
    torch.testing.assert_close(by_head, loss)
    (flat_grad,) = torch.autograd.grad(by_head.sum(), flat)
    torch.testing.assert_close(flat_grad.movedim(-1, 1), grad)
    of_classes = torch.tensor([True, True, False, True, True])
    for name in ("softmax", "log_softmax"):
        given = {"temperature": 1.7, "softcap": 6.0, "where": of_classes}
        ours = getattr(sxt, name)(logits, 1, **given)
        theirs = getattr(sx, name)(logits.detach().numpy(), axis=1, **{**given, "where": of_classes.numpy()})
        np.testing.assert_array_equal(ours.detach().numpy(), theirs)
    module = sxt.CrossEntropyLoss(temperature=1.7, softcap=6.0, z_loss=0.05, n_threads=1, reduction=reduction)
    torch.testing.assert_close(
        module(logits, labels, where=where),
        sxt.cross_entropy(logits, labels, reduction=reduction, temperature=1.7, softcap=6.0, z_loss=0.05, where=where),
    )


@on_every_level
def test_losses_keep_their_digits() -> None:
    confident = torch.tensor([[0.0, -30.0]], requires_grad=True)
    loss = sxt.cross_entropy(confident, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(9.357623e-14, rel=1e-6)
    assert confident.grad[0, 0].item() == pytest.approx(-9.357623e-14, rel=1e-6)
    equal = torch.zeros(1, 131072, dtype=torch.float16)
    assert sxt.cross_entropy(equal, torch.tensor([0])).item() == pytest.approx(np.log(131072), rel=1e-6)


@pytest.mark.parametrize("small", [True, False])
def test_error_inputs_of_the_head_raise_the_same(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(sxt, "_is_small", lambda *arguments: False)
    infos = [
        info for info in database("common_methods_invocations", "op_db") if info.name.endswith("linear_cross_entropy")
    ]
    for error in infos[0].error_inputs("cpu"):
        sample = error.sample_input
        matches = "^target must be labels" if sample.input.dim() > 2 else error.error_regex  # more axes are taken here
        with pytest.raises((RuntimeError, ValueError), match=matches):
            sxt.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)


def test_small_calls_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sxt, "_loss", None)
    logits, labels = problem(4, 3, dtype=torch.float32)
    assert torch.equal(sxt.cross_entropy(logits, labels), functional.cross_entropy(logits, labels))
    assert torch.equal(sxt.softmax(logits, 1), functional.softmax(logits, 1))
    for dtype in HALVES:
        half = logits.detach().to(dtype).requires_grad_()
        loss = sxt.cross_entropy(half, labels, torch.ones(3, dtype=dtype))
        assert loss.dtype is torch.float32
        assert torch.autograd.grad(loss, half)[0].dtype is dtype
        *parts, target = head(dtype=dtype)
        loss = of_head(sxt.linear_cross_entropy)(*parts, target)
        assert loss.dtype is torch.float32
        torch.testing.assert_close(loss, of_head(functional.linear_cross_entropy)(*map(wide, parts), target).float())
    with pytest.raises(TypeError):  # an option that PyTorch has not
        sxt.cross_entropy(logits, labels, temperature=2.0)


@pytest.mark.parametrize("shape", [(6500, 2), (2000, 10), (1000, 100), (300, 1000)])
def test_large_calls_are_computed_here(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "cross_entropy", None)
    logits, labels = problem(*shape, dtype=torch.float32)
    loss, grad = sx.value_and_grad(logits.detach().numpy(), labels.numpy())
    ours = sxt.cross_entropy(logits, labels)
    assert ours.item() == pytest.approx(loss, rel=1e-7)
    np.testing.assert_array_equal(torch.autograd.grad(ours, logits)[0].numpy(), grad)


def test_large_calls_of_the_head_are_computed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "linear_cross_entropy", None)
    input, weight, labels = torch.randn(3000, 4), torch.randn(30, 4, requires_grad=True), torch.randint(30, (3000,))
    loss, grads = sx.linear_value_and_grad(input.numpy(), weight.detach().numpy(), labels.numpy(), wrt="linear_weight")
    ours = sxt.linear_cross_entropy(input, weight, labels)
    assert ours.item() == pytest.approx(loss, rel=1e-7)
    np.testing.assert_array_equal(torch.autograd.grad(ours, weight)[0].numpy(), grads.linear_weight)


@computed_here
def test_more_than_pytorch_takes() -> None:
    logits, labels = problem(4, 3, dtype=torch.float32)
    expected = sxt.cross_entropy(logits, labels)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(sxt.cross_entropy(logits, labels.to(dtype)), expected)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        sxt.cross_entropy(logits, labels, weight), functional.cross_entropy(logits, labels, weight.float())
    )


@computed_here
def test_what_pytorch_takes_besides() -> None:
    logits = torch.randn(5)
    for target in (torch.tensor([1]), torch.tensor(1)):
        torch.testing.assert_close(sxt.cross_entropy(logits, target), functional.cross_entropy(logits, target))
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        loss = sxt.cross_entropy(logits, torch.tensor(1), size_average=False)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, torch.tensor(1), reduction="sum"))
    soft, weight = logits.softmax(0), torch.ones(5, requires_grad=True)
    sxt.cross_entropy(logits, soft, weight).backward()
    assert weight.grad is not None
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        torch.testing.assert_close(sxt.softmax(logits), logits.softmax(0))
    torch.testing.assert_close(sxt.softmax(torch.tensor(2.0), 0), torch.tensor(1.0))


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = problem(2000, 10, dtype=torch.bfloat16)
    expected = sxt.cross_entropy(logits, labels)
    (grad,) = torch.autograd.grad(expected, logits)
    monkeypatch.setattr(sxt, "_bfloat16", None)
    found = sxt.cross_entropy(logits, labels)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, logits)[0], grad)


@computed_here
def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    watched = type(
        "Face", (), {"cross_entropy": staticmethod(lambda *_, n_threads, **__: used.append(n_threads) or 0.5)}
    )
    monkeypatch.setattr(sxt, "sx", watched)
    logits, labels = torch.randn(4, 3), torch.randint(3, (4,))
    sxt.cross_entropy(logits, labels)
    sxt.cross_entropy(logits, labels, n_threads=3)
    sx.set_num_threads(2)
    try:
        sxt.cross_entropy(logits, labels)
    finally:
        sx.set_num_threads(None)
    assert used == [torch.get_num_threads(), 3, 2]


# Refusals


ELSEWHERE = {
    "one on meta": lambda: torch.randn(4, 3, device="meta"),
    "one of layout torch.sparse_coo": lambda: torch.randn(4, 3).to_sparse(),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.randn(2, 3)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_tensors_elsewhere_are_refused(kind: str) -> None:
    input, labels = ELSEWHERE[kind](), torch.tensor([0, 1, 2, 0])
    for call in (sxt.cross_entropy, sxt.CrossEntropyLoss()):
        message = (
            rf"^input must be a dense tensor on the CPU, got {kind}; use torch\.nn\.functional\.cross_entropy for it$"
        )
        with pytest.raises(TypeError, match=message):
            call(input, labels)
    with pytest.raises(TypeError, match=rf"got {kind}; use torch\.nn\.functional\.softmax for it$"):
        sxt.softmax(input, 1)
    message = rf"^linear_weight must be a dense tensor on the CPU, got {kind}; use torch\.nn\.functional\.linear_cross"
    with pytest.raises(TypeError, match=message):
        sxt.linear_cross_entropy(torch.randn(4, 3), input, labels)


def test_refusals() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(TypeError, match=r"^input must be a tensor, got ndarray$"):
        sxt.cross_entropy(logits.numpy(), labels)
    for wrong, error, message in (
        ({"target": torch.tensor([0, 1, 7, 0])}, ValueError, r"^targets\[2\] = 7 is not a class"),
        ({"target": labels.float()}, ValueError, "^target must be labels, integers of shape .4,., or probabilities"),
        ({"input": logits.long()}, TypeError, "^input must be float16, bfloat16, float32 or float64, got torch.int64$"),
        ({"input": logits[:, :0]}, ValueError, "^the logits must have at least one class, got shape .4, 0.$"),
        ({"reduction": "average"}, ValueError, "^reduction must be 'mean', 'sum' or 'none', got 'average'$"),
        (
            {"weight": torch.ones(3, requires_grad=True)},
            ValueError,
            r"^weight must not require grad: pass weight.detach",
        ),
        ({"target": logits.softmax(1), "ignore_index": 1}, ValueError, "^ignore_index needs labels"),
        ({"label_smoothing": 1.5}, ValueError, "^label_smoothing must be a share"),
        ({"heat": 2.0}, TypeError, "heat"),
        ({"z_loss": -1.0}, ValueError, "^z_loss must be finite and not negative"),
        ({"n_threads": 0}, ValueError, "^n_threads must be at least 1"),
    ):
        call = {"input": logits, "target": labels, "z_loss": 0.1, **wrong}
        with pytest.raises(error, match=message):
            sxt.cross_entropy(call.pop("input"), call.pop("target"), **call)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        sxt.cross_entropy(logits, torch.tensor([0, 1, 7, 0]))
    head = {"input": torch.randn(4, 2), "linear_weight": torch.randn(3, 2), "target": labels, "z_loss": 0.1}
    for wrong, error, message in (
        ({"linear_weight": torch.randn(2, 3)}, ValueError, r"^linear_weight must be of shape \(C, D\) for input of"),
        (
            {"linear_weight": torch.randn(3, 1, 2)},
            ValueError,
            r"^linear_weight must be .*, got \(3, 1, 2\) and \(4, 2\)$",
        ),
        ({"linear_weight": torch.ones(3, 2).int()}, TypeError, "^linear_weight must be float16, bfloat16, float32 or"),
        ({"linear_weight": [1.0]}, TypeError, "^linear_weight must be a tensor, got list$"),
        ({"linear_weight": torch.randn(0, 2)}, ValueError, "^the logits must have at least one class"),
        ({"linear_bias": torch.randn(4)}, ValueError, r"^linear_bias must be of shape \(3,\), got \(4,\)$"),
        ({"target": labels[:3]}, ValueError, r"^targets must be"),
        ({"target": torch.rand(4, 3), "ignore_index": 1}, ValueError, "^ignore_index needs labels"),
        ({"input": torch.randn(2, 4, 2), "z_loss": 0.0}, ValueError, "^targets"),
    ):
        with pytest.raises(error, match=message):
            sxt.linear_cross_entropy(**{**head, **wrong})
    with pytest.raises(TypeError, match=r"^dim must be an integer, got None$"):
        sxt.softmax(logits, temperature=2.0)
    with pytest.raises(IndexError, match="Dimension out of range"):
        sxt.softmax(logits, 2)


def test_signatures_are_pytorchs() -> None:
    for name in ("cross_entropy", "linear_cross_entropy", "log_softmax", "softmax"):
        own, theirs = (inspect.signature(getattr(module, name)).parameters for module in (sxt, functional))
        assert list(own)[: len(theirs)] == list(theirs)
        assert [own[name].default for name in theirs] == [parameter.default for parameter in theirs.values()]
        assert {"n_threads", *sx.LogitOptions.__annotations__} <= set(own)
        if name.endswith("entropy"):
            assert set(sx.Options.__annotations__) <= set(own)


def test_the_module_is_one_of_pytorchs() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module, theirs = sxt.CrossEntropyLoss(weight, temperature=2.0), torch.nn.CrossEntropyLoss(weight)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    module.load_state_dict(theirs.state_dict())
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(module(logits, labels), theirs(logits / 2, labels))
    assert torch.equal(copy.deepcopy(module)(logits, labels), module(logits, labels))


def test_docstring_examples() -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(sxt) if test.examples]
    assert {test.name for test in tests} == {f"softxent.torch.{name}" for name in sxt.__all__}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


# Processes


IN_WORKERS = """
import torch
from softxent.torch import cross_entropy

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        x = torch.linspace(-1, 1, 3000).reshape(1000, 3).mul(i).requires_grad_()
        loss = cross_entropy(x, torch.arange(1000) % 3)
        loss.backward()
        return loss.detach(), x.grad

here = [Rows()[i] for i in range(4)]
for workers in (0, 1):
    loader = torch.utils.data.DataLoader(Rows(), batch_size=None, num_workers=workers)
    there = list(loader)
    assert all(torch.equal(a, b) for pair in zip(here, there) for a, b in zip(*pair))
print("equal")
"""


def test_in_the_workers_of_a_loader() -> None:
    result = run_python(IN_WORKERS, {**os.environ, "PYTHONWARNINGS": "ignore"})
    assert result.stdout == "equal\n", result.stderr


DISTRIBUTED = """
import copy
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from softxent.torch import CrossEntropyLoss

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = torch.nn.Linear(5, 10)
alone = copy.deepcopy(layer)
x, y = torch.randn(2048, 5), torch.randint(10, (2048,))
half = slice(1024 * rank, 1024 * (rank + 1))
model = DistributedDataParallel(layer)
CrossEntropyLoss()(model(x[half]), y[half]).backward()
torch.nn.CrossEntropyLoss()(alone(x), y).backward()
torch.testing.assert_close(layer.weight.grad, alone.weight.grad)
print("equal")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert output == "equal\n", errors
