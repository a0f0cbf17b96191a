"""The contenders of the softmax family and of second derivatives: see peers.py.

Each set-up has a function for each task that its library can do, and returns the one that is asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases import Task
from problems import RESULTS, Array, Entry, Problem

import softxent as sx

Calls = dict[Task, Callable[[], Sequence[Any]]]


def enter_softxent(problem: Problem) -> Entry:
    x, labels, out = problem.logits, problem.labels, problem.out
    options: dict[str, Any] = {"n_threads": problem.n_threads}
    if problem.class_axis != x.ndim - 1:
        options["axis"] = problem.class_axis
    v, second_out, probs = needed(problem)
    calls: Calls = {
        "softmax": lambda: (sx.softmax(x, out=out, **options),),
        "log_softmax": lambda: (sx.log_softmax(x, out=out, **options),),
        "logsumexp": lambda: (sx.logsumexp(x, **options),),
        "hess": lambda: sx.value_grad_and_hess(x, labels, out=(out, second_out), **options),
        "hvp": lambda: (sx.hvp(x, labels, v, out=out, **options),),
        "hvp_of_probs": lambda: (sx.hvp(None, labels, v, probs=probs, out=out, **options),),
    }
    return Entry(calls[problem.task], problem.results, scratch=(probs,))


def needed(problem: Problem) -> tuple[Array, Array, Array]:
    """The vectors, the second array for results, and the probabilities, each empty if the task does not need it."""
    nothing = np.empty(0, problem.logits.dtype)
    probs = sx.softmax(problem.logits, axis=problem.class_axis) if problem.task == "hvp_of_probs" else nothing
    return (
        problem.vectors if "product" in problem.results else nothing,
        problem.second_out if "diagonal" in problem.results else nothing,
        probs,
    )


def enter_numpy(problem: Problem) -> Entry:
    """The usual formulas. Whatever can be written over is."""
    x, at_labels, axis, out = problem.logits, problem.at_labels, problem.class_axis, problem.out
    v, second_out, probs = needed(problem)
    n_rows = problem.labels.size
    peak = np.empty_like(x.max(axis=axis, keepdims=True))
    total = np.empty_like(peak)
    work = np.empty_like(x) if problem.task in ("log_softmax", "hvp", "hvp_of_probs") else out

    def exponentials(into: Array) -> None:
        np.max(x, axis=axis, keepdims=True, out=peak)
        np.subtract(x, peak, out=out)
        np.exp(out, out=into)
        np.sum(into, axis=axis, keepdims=True, out=total)

    def softmax() -> Sequence[Any]:
        exponentials(out)
        np.divide(out, total, out=out)
        return (out,)

    def log_softmax() -> Sequence[Any]:
        exponentials(work)
        np.log(total, out=total)
        np.subtract(out, total, out=out)
        return (out,)

    def logsumexp() -> Sequence[Any]:
        exponentials(out)
        return (np.squeeze(np.log(total) + peak, axis),)

    def hess() -> Sequence[Any]:
        exponentials(out)
        at_label = x[at_labels] - peak.squeeze(axis)
        np.divide(out, total, out=out)
        np.subtract(1, out, out=second_out)
        np.multiply(second_out, out, out=second_out)
        np.divide(second_out, n_rows, out=second_out)
        np.divide(out, n_rows, out=out)
        out[at_labels] -= 1 / n_rows
        return np.mean(np.log(total.squeeze(axis)) - at_label, dtype=np.float64), out, second_out

    def product(p: Array) -> Sequence[Any]:
        np.multiply(p, v, out=work)
        np.sum(work, axis=axis, keepdims=True, out=total)
        np.subtract(v, total, out=work)
        np.multiply(work, p, out=out)
        np.divide(out, n_rows, out=out)
        return (out,)

    calls: Calls = {
        "softmax": softmax,
        "log_softmax": log_softmax,
        "logsumexp": logsumexp,
        "hess": hess,
        "hvp": lambda: product(*softmax()),
        "hvp_of_probs": lambda: product(probs),
    }
    return Entry(calls[problem.task], problem.results, scratch=(peak, total, work, probs))


def enter_scipy(problem: Problem) -> Entry:
    from scipy import special

    x, axis = problem.logits, problem.class_axis
    calls: Calls = {
        "softmax": lambda: (special.softmax(x, axis=axis),),
        "log_softmax": lambda: (special.log_softmax(x, axis=axis),),
        "logsumexp": lambda: (special.logsumexp(x, axis=axis),),
    }
    return Entry(calls[problem.task], problem.results)


def enter_scikit_learn(problem: Problem) -> Entry:
    """Gradient and diagonal, without the loss."""
    from sklearn._loss.loss import HalfMultinomialLoss  # private: it may move or change

    x, out, second_out = problem.logits, problem.out, problem.second_out
    criterion = HalfMultinomialLoss(n_classes=x.shape[1])
    labels = problem.labels.astype(x.dtype)
    weights = np.full(len(x), 1 / len(x), x.dtype)

    def hess() -> Sequence[Any]:
        criterion.gradient_hessian(labels, x, weights, out, second_out, problem.n_threads)
        return out, second_out

    return Entry(hess, ("gradient", "diagonal"), scratch=(weights,))


def enter_torch(problem: Problem) -> Entry:
    """A product is the gradient of the gradient; from what was kept, it is that of the same graph again."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(problem.n_threads)
    x, labels, axis = torch.from_numpy(problem.logits), torch.from_numpy(problem.labels), problem.class_axis
    out, v = torch.from_numpy(problem.out), torch.from_numpy(problem.vectors)
    leaf = x.detach().requires_grad_()

    def gradient() -> Any:
        return torch.autograd.grad(cross_entropy(leaf, labels), leaf, create_graph=True)[0]

    kept = gradient() if problem.task == "hvp_of_probs" else leaf
    calls: Calls = {
        "softmax": lambda: (torch.softmax(x, axis, out=out),),
        "log_softmax": lambda: (torch.log_softmax(x, axis, out=out),),
        "logsumexp": lambda: (torch.logsumexp(x, axis),),
        "hvp": lambda: torch.autograd.grad(gradient(), leaf, v),
        "hvp_of_probs": lambda: torch.autograd.grad(kept, leaf, v, retain_graph=True),
    }
    return Entry(calls[problem.task], problem.results, to_numpy=lambda tensor: tensor.detach().double().numpy())


def enter_jax(problem: Problem) -> Entry:
    """A product is the derivative of the gradient along the vector; what is kept is its linear part."""
    import jax
    import jax.numpy as jnp

    axis = problem.class_axis
    x, labels, v = jnp.asarray(problem.logits), jnp.asarray(problem.labels, dtype=np.int32), problem.vectors

    def loss(x: jax.Array) -> jax.Array:
        at_label = jnp.take_along_axis(x, jnp.expand_dims(labels, axis), axis=axis).squeeze(axis)
        return jnp.mean(jax.nn.logsumexp(x, axis=axis) - at_label)

    def hess(x: jax.Array) -> Sequence[jax.Array]:
        value, gradient = jax.value_and_grad(loss)(x)
        p = jax.nn.softmax(x, axis=axis)
        return value, gradient, p * (1 - p) / problem.labels.size

    gradient = jax.grad(loss)
    functions: dict[Task, Callable[[Any], Any]] = {
        "softmax": lambda x: (jax.nn.softmax(x, axis=axis),),
        "log_softmax": lambda x: (jax.nn.log_softmax(x, axis=axis),),
        "logsumexp": lambda x: (jax.nn.logsumexp(x, axis=axis),),
        "hess": hess,
        "hvp": lambda x: (jax.jvp(gradient, (x,), (v,))[1],),
        "hvp_of_probs": lambda v: (along(v),),
    }
    argument = x
    if problem.task == "hvp_of_probs":
        along = jax.linearize(gradient, x)[1]
        argument = jnp.asarray(v)
    compiled = jax.jit(functions[problem.task])
    return Entry(lambda: [value.block_until_ready() for value in compiled(argument)], problem.results)


ONNX_NODES: dict[Task, str] = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}


def enter_onnxruntime(problem: Problem) -> Entry:
    import onnxruntime
    from onnx import helper

    x, axis, (name,) = problem.logits, problem.class_axis, RESULTS[problem.task]
    out = np.empty_like(x.max(axis=axis)) if problem.task == "logsumexp" else problem.out
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    attributes = {"axes": [axis], "keepdims": 0} if problem.task == "logsumexp" else {"axis": axis}
    graph = helper.make_graph(
        [helper.make_node(ONNX_NODES[problem.task], ["logits"], [name], **attributes)],
        problem.task,
        [helper.make_tensor_value_info("logits", element, x.shape)],
        [helper.make_tensor_value_info(name, element, out.shape)],
    )
    opset = helper.make_opsetid("", 13)
    # The oldest format that holds this opset: an installed runtime may be older than the installed onnx.
    model = helper.make_model(graph, opset_imports=[opset], ir_version=helper.find_min_ir_version_for([opset]))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.n_threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = not problem.keep_nothing
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Binding spares the copies into and out of the runtime's own tensors.
    binding = session.io_binding()
    binding.bind_input("logits", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output(name, "cpu", 0, x.dtype.type, out.shape, out.ctypes.data)

    def run() -> Sequence[Any]:
        session.run_with_iobinding(binding)
        return (out,)

    return Entry(run, (name,))
