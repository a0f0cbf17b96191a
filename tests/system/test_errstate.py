"""No call warns or raises because of a floating-point flag, whatever `np.errstate` says."""

from typing import Any

import numpy as np
import pytest
from support import FLOATS, HALVES, REDUCTIONS, assert_same_results

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DTYPES = FLOATS + HALVES
LONGEST = np.finfo(np.longdouble)
TINY_PROBS = np.array([[0, 1], [1, 2], [2, 0]]), np.array([[1e-50, 1], [1e-320, 1e-30], [1e300, 0.5]])
# Numbers that overflow, underflow or are invalid on the way from the dtype that they come in.
CASES: dict[str, dict[str, Any]] = {
    "confident rows": {},
    "weights of classes": {"weight": np.array([1e-50, 1, 1e300])},
    "weights of rows": {"sample_weight": np.array([LONGEST.smallest_subnormal, LONGEST.max, 1])},
    "probs": {"targets": TINY_PROBS},
    "distributions": {"targets": np.array([[1e-50, 1, 0], [1e300, 0, 1e-320], [0, np.nan, np.inf]])},
    "numbers": {"temperature": LONGEST.eps + np.longdouble(1), "z_loss": LONGEST.smallest_subnormal},
    "ignored rows": {"ignore_index": 2, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_good_calls_give_the_same(dtype: str, case: str) -> None:
    with np.errstate(all="ignore"):
        logits = np.array([[100, 0, -3e4], [0, -6e-8, 3e4], [-1, np.inf, np.nan]]).astype(dtype)
    arguments = {"targets": np.array([0, 1, 2]), **CASES[case]}
    functions = [sx.cross_entropy, sx.value_and_grad]
    if "targets" not in CASES[case]:
        functions.append(sx.evaluate)
    for function in functions:
        for reduction in REDUCTIONS:
            with np.errstate(all="ignore"):
                expected = function(logits, reduction=reduction, **arguments)
            with np.errstate(all="raise"):
                result = function(logits, reduction=reduction, **arguments)
            if function is sx.cross_entropy:
                result, expected = [result], [expected]
            assert_same_results(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_an_evaluation_sums_up(dtype: str) -> None:
    with np.errstate(all="raise"):
        sure = sx.evaluate(np.array([[100, 0]], dtype), [0])
        impossible = sx.evaluate(np.array([[-np.inf, 0]], dtype), [0])
        nothing = sx.evaluate(np.array([[0, 0]], dtype), [-1], ignore_index=-1)
        assert (sure.perplexity, sure.accuracy) == (1, 1)
        assert (impossible.perplexity, impossible.accuracy) == (np.inf, 0)
        assert np.isnan([nothing.perplexity, nothing.accuracy]).all()
        assert "rows=1" in repr(impossible)


@pytest.mark.parametrize("labels", [[0.0, np.nan], [1e300, 0.0], np.array([0, 2.5], "float16")], ids=str)
def test_a_refusal_is_its_own_error(labels: Any) -> None:
    with np.errstate(all="raise"), pytest.raises(TypeError, match=r"^targets of shape \(2,\) are class labels"):
        sx.cross_entropy(np.zeros((2, 3)), labels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_family(dtype: str) -> None:
    with np.errstate(all="ignore"):
        logits = np.array([[100, 0, -3e4], [0, -6e-8, 3e4], [-1, np.inf, np.nan], [-np.inf] * 3]).astype(dtype)
        vectors = np.array([[1e4, 0, -1], [np.inf, 0, 0], [0, 0, np.nan], [6e-8, 1, 2]]).astype(dtype)
    labels = np.array([0, 1, 2, 0])
    functions: list[Any] = [
        lambda: [sx.softmax(logits), sx.log_softmax(logits), sx.logsumexp(logits)],
        lambda: [sx.softmax_vjp(logits, vectors), sx.log_softmax_vjp(logits, vectors)],
        lambda: [sx.hvp(logits, labels, vectors), sx.hvp(None, labels, vectors, probs=sx.softmax(logits))],
        lambda: list(sx.value_grad_and_hess(logits, labels)),
        lambda: list(sx.evaluate(logits)[2:4]),
        lambda: [sx.Evaluation.merge([sx.evaluate(logits, labels)] * 2).loss],
    ]
    for function in functions:
        with np.errstate(all="ignore"):
            expected = function()
        with np.errstate(all="raise"):
            assert_same_results(function(), expected)
