"""The page of recipes: each section runs by itself and prints what it says, if the libraries it imports are installed.

The tests further down compare what a recipe computes with the library that it serves, or with a formula.
"""

import doctest
import re
from typing import Any

import numpy as np
import pytest
from support import ROOT, central_differences

pytestmark = pytest.mark.usefixtures("level")

PAGE = ROOT / "docs" / "recipes.md"
START, *SECTIONS = PAGE.read_text("utf-8").split("\n## ")
RECIPES = {section.split("\n")[0]: section for section in SECTIONS}


def run(heading: str) -> dict[str, Any]:
    """The names that the examples of this section leave, after those at the start of the page."""
    text = START + RECIPES[heading]
    for library in re.findall(r"^>>> (?:import|from) (\w+)", text, re.MULTILINE):
        pytest.importorskip(library)
    test = doctest.DocTestParser().get_doctest(text, {}, heading, str(PAGE), 0)
    results = doctest.DocTestRunner().run(test, clear_globs=False)
    assert results.attempted > 0
    assert results.failed == 0
    return test.globs


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("heading", RECIPES)
def test_a_section_by_itself(heading: str) -> None:
    run(heading)


def test_the_minimum_is_one_by_any_method() -> None:
    names = run("SciPy: softmax regression")
    for method in ("L-BFGS-B", "BFGS", "trust-constr"):
        fit = names["minimize"](names["objective"], np.zeros(12), jac=True, method=method)
        assert fit.fun == pytest.approx(names["fit"].fun, abs=1e-7)
    np.testing.assert_allclose(names["objective"](names["fit"].x)[1], 0, atol=1e-5)


def test_the_function_for_pytorch_has_the_gradient_of_pytorch() -> None:
    names = run("PyTorch: an autograd function")
    torch, function = names["torch"], names["CrossEntropy"]
    labels = torch.tensor([2, -100, 0])
    for dtype, tolerance in ((torch.float64, 1e-15), (torch.float32, 1e-7)):
        ours, theirs = (torch.linspace(-1, 2, 9, dtype=dtype).reshape(3, 3).requires_grad_() for _ in range(2))
        loss = 3 * function.apply(ours.tanh(), labels)
        expected = 3 * torch.nn.functional.cross_entropy(theirs.tanh(), labels)
        loss.backward()
        expected.backward()
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=10 * tolerance)
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=0, atol=4 * tolerance)
    x = torch.linspace(-1, 2, 9, dtype=torch.float64).reshape(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function.apply(x, labels), x)


def test_the_primitive_for_autograd() -> None:
    names = run("autograd: a primitive")
    weights = np.linspace(-1, 1, 12).reshape(4, 3)
    slopes = central_differences(names["model"], weights)
    np.testing.assert_allclose(names["gradient_of"](names["model"])(weights), slopes, rtol=0, atol=1e-8)
    with pytest.raises(TypeError, match="logits must be"):
        names["gradient_of"](lambda w: names["gradient_of"](names["model"])(w).sum())(weights)


def test_the_temperature_is_the_best() -> None:
    names = run("Temperature scaling")
    log_temperature = np.log(names["temperature"])
    best = names["loss_at"](log_temperature)
    for step in (-0.01, 0.01):
        assert names["loss_at"](log_temperature + step) > best


def test_the_gradient_of_the_focal_loss() -> None:
    names = run("Focal loss")
    labels = names["labels"][:5]

    def focal(x: np.ndarray) -> float:
        log_p = log_softmax(x)[np.arange(5), labels]
        return -float(np.sum((1 - np.exp(log_p)) ** names["gamma"] * log_p)) / 300

    slopes = central_differences(focal, names["logits"][:5])
    np.testing.assert_allclose(names["grad"][:5], slopes, rtol=0, atol=1e-10)


def test_the_gradients_of_policies_and_of_sets_of_labels() -> None:
    names = run("Policy gradients")
    p = np.exp(log_softmax(names["logits"]))
    expected = names["advantages"][:, np.newaxis] * (p - np.eye(3)[names["actions"]]) / 300
    np.testing.assert_allclose(names["grad"], expected, rtol=0, atol=1e-16)
    names = run("Several right labels")
    within = p * names["right"]
    expected = (p - within / within.sum(axis=1, keepdims=True)) / 300
    np.testing.assert_allclose(names["grad"], expected, rtol=0, atol=1e-16)
