"""The loop of an author, `pytest -m smoke`: every level, kernel, kind of target and option once, in seconds.

Each call is compared with the reference. The folders have the same promises in full.
"""

import inspect
import re
from typing import Any

import numpy as np
import pytest
from support import CALLS, FLOATS, GRADIENTS, HALVES, assert_matches, assert_same_bits, assert_same_results, problem

import softxent as sx

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("level", "several_threads")]

# The narrow kernel, the middle one and the wide one, along the last axis and along another one, and a row that threads
# share.
SHAPES = [((37, 10), -1), ((3, 11, 9), 1), ((9, 130), -1), ((5, 300), -1), ((3, 700), 0), ((1, 17_000), -1)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_call(name: str, shape: tuple[int, ...], axis: int) -> None:
    for dtype in FLOATS + HALVES:
        arguments = CALLS[name].arguments(shape, dtype, axis)
        result = CALLS[name](**arguments)
        assert_matches(result[0], result[1] if name in GRADIENTS else None, **arguments)
        assert_same_bits(sx.cross_entropy(**arguments), result[0])
        assert_same_results(CALLS[name](**arguments, n_threads=2), result)
        if name in GRADIENTS:
            assert_same_results(CALLS[name](**arguments, out=arguments["logits"]), result)


@pytest.mark.parametrize("n_classes", [10, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_evaluation(dtype: str, n_classes: int) -> None:
    logits, labels = problem((37, n_classes), dtype=dtype)
    log_p = logits - np.log(np.exp(logits.astype(float)).sum(axis=1, keepdims=True))
    result = sx.evaluate(logits, labels)
    for actual, expected in (
        (result.log_prob, log_p[np.arange(37), labels]),
        (result.lse, (logits - log_p)[:, 0]),
        (result.entropy, -(np.exp(log_p) * log_p).sum(axis=1)),
        (result.perplexity, np.exp(result.loss)),
        (result.accuracy, np.mean(logits.argmax(axis=1) == labels)),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_array_equal(result.argmax, logits.argmax(axis=1))


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_the_family(shape: tuple[int, ...], axis: int) -> None:
    """Each function of logits alone, and of the second derivative, by what it is of the others."""
    for dtype in FLOATS:
        arguments = CALLS["labels, temperature"].arguments(shape, dtype, axis)
        labels, options = arguments["targets"], {name: arguments[name] for name in ("axis", "temperature")}
        x, v = arguments["logits"], np.cos(arguments["logits"])
        p, lse = sx.softmax(x, **options), sx.logsumexp(x, keepdims=True, **options)
        tolerance = {"rtol": 1e-4 if dtype == "float32" else 1e-12, "atol": 1e-5 if dtype == "float32" else 1e-13}
        np.testing.assert_allclose(p, np.exp(x / options["temperature"] - lse), **tolerance)
        np.testing.assert_allclose(sx.log_softmax(x, **options), x / options["temperature"] - lse, **tolerance)
        product = p * (v - (p * v).sum(axis=axis, keepdims=True)) / options["temperature"]
        np.testing.assert_allclose(sx.softmax_vjp(x, v, **options), product, **tolerance)
        log_product = (v - p * v.sum(axis=axis, keepdims=True)) / options["temperature"]
        np.testing.assert_allclose(sx.log_softmax_vjp(x, v, **options), log_product, **tolerance)
        second = product / options["temperature"]
        for kept in ({"logits": x}, {"logits": None, "probs": p}):
            hvp = sx.hvp(targets=labels, vectors=v, reduction="sum", **kept, **options)
            np.testing.assert_allclose(hvp, second, **tolerance)
        hess = sx.value_grad_and_hess(x, labels, reduction="sum", **options)[2]
        np.testing.assert_allclose(hess, p * (1 - p) / options["temperature"] ** 2, **tolerance)


@pytest.mark.parametrize("n_classes", [10, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_digits_and_infinities(dtype: str, n_classes: int) -> None:
    """A confident row, one with a NaN, one with no chance of its label."""
    logits = np.zeros((40, n_classes), dtype)
    logits[0, 1] = 30
    logits[1, 2] = np.nan
    logits[2, 1] = -np.inf
    losses, grad = sx.value_and_grad(logits, np.ones(40, int), reduction="none")
    rest = (n_classes - 1) * np.exp(-30.0)
    np.testing.assert_allclose(losses[:3], [rest, np.nan, np.inf], rtol=1e-6)
    np.testing.assert_allclose(grad[0, :2], [rest / (n_classes - 1), -rest], rtol=1e-6)
    assert np.isnan(grad[1]).all()
    np.testing.assert_allclose(grad[2, :2], [1 / (n_classes - 1), -1], rtol=1e-6)
    np.testing.assert_allclose(grad[3:, 1], 1 / n_classes - 1, rtol=1e-6)


REFUSED: dict[str, Any] = {
    "logits": np.zeros((2, 3), complex),
    "targets": np.array([0, 3]),
    "axis": 2,
    "weight": np.ones(4),
    "sample_weight": np.ones(3),
    "ignore_index": 0.5,
    "label_smoothing": 1.5,
    "temperature": 0,
    "softcap": -1,
    "z_loss": -1,
    "where": np.ones((2, 3)),
    "normalizer": -1,
    "reduction": "average",
    "out": np.zeros((3, 2)),
    "n_threads": 0,
}


def test_every_argument_can_be_refused() -> None:
    assert set(REFUSED) == set(inspect.signature(sx.value_and_grad).parameters)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal(name: str) -> None:
    """It names the argument, and comes before anything is written."""
    out = np.full((2, 3), 7.0)
    arguments = {"logits": np.zeros((2, 3)), "targets": np.array([0, 1]), "out": out, name: REFUSED[name]}
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(name)}\\b"):
        sx.value_and_grad(**arguments)
    np.testing.assert_array_equal(out, 7.0)
    np.testing.assert_array_equal(REFUSED["out"], 0.0)
