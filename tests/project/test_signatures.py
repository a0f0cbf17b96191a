"""What `help`, notebooks and editors see of the public functions, and the list of options that they share."""

import inspect
import os
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import reference
from support import ROOT, assert_same_results

import softxent as sx
from softxent import _options

FUNCTIONS = [sx.cross_entropy, sx.value_and_grad, sx.evaluate, sx.value_grad_and_hess, sx.hvp]
FAMILY = [sx.softmax, sx.log_softmax, sx.logsumexp, sx.softmax_vjp, sx.log_softmax_vjp]
LINEAR = [sx.linear_cross_entropy, sx.linear_value_and_grad, sx.linear_hvp]
NAMED = ["logits", "targets", "axis", "reduction", "normalizer", "n_threads"]
ALLOWED = np.array([True, True, False])
VALUES: dict[str, Any] = {
    "weight": [1, 2, 3],
    "sample_weight": [1, 2],
    "ignore_index": 0,
    "label_smoothing": 0.1,
    "temperature": 2,
    "softcap": 3,
    "z_loss": 0.1,
    "where": ALLOWED,
}

of_functions = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
of_all = pytest.mark.parametrize("function", [*FUNCTIONS, *FAMILY], ids=lambda function: function.__name__)


def test_each_option_is_everywhere() -> None:
    names = list(_options.OPTIONS)
    assert names == list(sx.Options.__annotations__)
    assert set(names) == set(VALUES)
    documentation = (ROOT / "docs" / "options.md").read_text("utf-8")
    benchmark = (ROOT / "bench" / "options.py").read_text("utf-8")
    for name, option in _options.OPTIONS.items():
        assert f"    {name} : " in inspect.getdoc(sx.Options).replace("\n", "\n    ")
        assert re.search(rf"^## .*`{name}`", documentation, re.MULTILINE), name
        assert f'"{name}": call(' in benchmark
        assert inspect.signature(reference).parameters[name].default == option.default


@pytest.mark.parametrize("name", VALUES)
def test_each_option_is_read_and_counts(name: str) -> None:
    """And what it is by default is what a call without it does."""
    logits, labels = np.array([[1.0, 2, 3], [3, 1, 0.5]]), np.array([1, 0])
    plain = sx.value_and_grad(logits, labels)
    assert_same_results(sx.value_and_grad(logits, labels, **{name: _options.OPTIONS[name].default}), plain)
    loss, grad = sx.value_and_grad(logits, labels, **{name: VALUES[name]})
    assert not np.allclose(grad, plain[1])
    true_loss, true_grad = reference(logits, labels, **{name: VALUES[name]})
    assert loss == pytest.approx(true_loss, rel=1e-14)
    np.testing.assert_allclose(grad, true_grad, rtol=1e-14, atol=1e-16)
    with pytest.raises(TypeError, match=f"^{name} "):
        sx.cross_entropy(logits, labels, **{name: "nonsense" if name in ("softcap", "ignore_index") else object()})


@of_functions
def test_signatures_are_short_and_complete(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    own = ("out", "vectors", "probs", "hess_factor")
    named = [name for name in signature.parameters if name not in (*_options.OPTIONS, *own)]
    assert named == NAMED
    assert ("out" in signature.parameters) == (function not in (sx.cross_entropy, sx.evaluate))
    for name, option in _options.OPTIONS.items():
        parameter = signature.parameters[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == option.default
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    assert len(str(signature)) < 800
    assert all(len(parameter.annotation) < 40 for parameter in signature.parameters.values())
    assert "weight: 'ArrayLike | None' = None" in str(signature)
    assert "label_smoothing: 'SupportsFloat' = 0.0" in str(signature)


@pytest.mark.parametrize("function", FAMILY, ids=lambda function: function.__name__)
def test_signatures_of_the_family(function: Callable[..., Any]) -> None:
    names = list(inspect.signature(function).parameters)
    assert names[0] == "logits"
    assert names[-4:] == ["n_threads", "temperature", "softcap", "where"]
    assert set(names[1:-4]) <= {"cotangent", "axis", "out", "keepdims"}
    assert tuple(sx.LogitOptions.__annotations__) == ("temperature", "softcap", "where")
    hints = typing.get_type_hints(function)
    assert hints["options"] == typing.Unpack[sx.LogitOptions]


@of_all
def test_help_has_every_parameter(function: Callable[..., Any]) -> None:
    """Once, in the order of the signature."""
    page = pydoc.plain(pydoc.render_doc(function))
    assert page.splitlines()[0].endswith(f"{function.__name__} in module softxent")
    parameters = page.partition("Parameters\n    ----------\n")[2].partition("\n    Returns\n")[0]
    assert re.findall(r"^    (\w+) : ", parameters, re.MULTILINE) == list(inspect.signature(function).parameters)
    assert "See `Options`" not in page
    assert "As in `cross_entropy`.\n" not in parameters
    assert "As in `softmax`.\n" not in parameters
    assert ("The share of each target, in ``[0, 1]``" in parameters) == (function in FUNCTIONS)
    assert max(map(len, function.__doc__.splitlines())) <= 120


@pytest.mark.parametrize("function", LINEAR, ids=lambda function: function.__name__)
def test_the_linear_head_has_every_option_and_explains_each_argument(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters)[-len(_options.OPTIONS) :] == list(_options.OPTIONS)
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    page = pydoc.plain(pydoc.render_doc(function))
    explained = page.partition("Parameters\n    ----------\n")[2].partition("\n    Returns\n")[0]
    assert re.findall(r"^    (\w+) : ", explained, re.MULTILINE) == list(parameters)
    assert "As in `" not in re.findall(r"^        (.*)$", explained, re.MULTILINE)
    assert "The threads of the products" in explained


def test_help_of_the_list() -> None:
    page = pydoc.plain(pydoc.render_doc(sx.Options))
    assert all(f"{name} : " in page for name in _options.OPTIONS)


@of_functions
def test_type_hints_can_be_read(function: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(function)
    assert hints["options"] == typing.Unpack[sx.Options]
    assert {*NAMED, "return", "options"} <= set(hints)
    assert set(typing.get_type_hints(sx.Options)) == set(_options.OPTIONS)


def test_everything_is_called_by_its_public_name() -> None:
    for name in set(sx.__all__) - {"__version__"}:
        assert getattr(sx, name).__module__ == "softxent"


def test_without_docstrings() -> None:
    code = """
import inspect, softxent as sx
assert sx.cross_entropy.__doc__ is None
assert "where" in inspect.signature(sx.value_and_grad).parameters
print(sx.cross_entropy([[0.0, 0.0]], [1], temperature=2))
print(sx.evaluate([[0.0, 1.0]], [1]))
try:
    sx.cross_entropy([[0.0, 0.0]], [1], label_smooth=2)
except TypeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-OO", "-c", code], env=os.environ, capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "0.6931471805599453",
        "<Evaluation: loss=0.313262, perplexity=1.36788, accuracy=1, rows=1>",
        "got an unexpected keyword argument 'label_smooth'; did you mean 'label_smoothing'?",
    ]
