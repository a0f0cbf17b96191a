"""What type checkers accept and refuse of calls, and the types of results; for mypy and pyright, where they are."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--python-version=3.11"],
    "pyright": ["pyright", "--pythonpath", sys.executable, "--pythonversion=3.11"],
}
IMPORTS = """
from typing import Literal, Unpack, assert_type
import numpy as np
import softxent as sx

x, y, g = np.zeros((2, 3)), np.array([0, 1]), np.zeros((2, 3))
pair = (np.zeros((2, 1), int), np.ones((2, 1)))
"""
GOOD = """
assert_type(sx.cross_entropy(x, y), float)
assert_type(sx.cross_entropy([[0.0, 1.0]], [1], axis=-1, n_threads=1), float)
assert_type(sx.cross_entropy(x, pair, reduction="sum", normalizer=None), float)
assert_type(sx.cross_entropy(x, y, reduction="mean", normalizer=2), float)
assert_type(sx.cross_entropy(x, y, reduction="none", weight=[1, 2, 3]), np.ndarray)
assert_type(sx.value_and_grad(x, y, out=g, label_smoothing=0.1), tuple[float, np.ndarray])
assert_type(sx.value_and_grad(x, y, normalizer=np.float32(2), where=x > 0), tuple[float, np.ndarray])
assert_type(sx.value_and_grad(x, y, reduction="none", out=None), tuple[np.ndarray, np.ndarray])
assert_type(sx.evaluate(x, y, ignore_index=-1).loss, float)
assert_type(sx.evaluate(x, y, reduction="sum").loss, float)
assert_type(sx.evaluate(x, y, reduction="none", softcap=None).loss, np.ndarray)
assert_type(sx.evaluate(x, y).perplexity, float)

def any_reduction(reduction: Literal["mean", "sum", "none"], **options: Unpack[sx.Options]) -> sx.Evaluation:
    assert_type(sx.cross_entropy(x, y, reduction=reduction, **options), float | np.ndarray)
    return sx.evaluate(x, y, reduction=reduction, **options)

def mean(normalizer: float | None, options: sx.Options) -> float:
    result: sx.Evaluation[float] = sx.evaluate(x, y, normalizer=normalizer, **options)
    more: sx.Evaluation = result
    return result.loss + sx.value_and_grad(x, y, normalizer=normalizer, **options)[0]

assert_type(any_reduction("sum", z_loss=1).loss, float | np.ndarray | None)
assert_type(sx.evaluate(x, temperature=2).loss, None)
assert_type(sx.softmax(x, out=g, temperature=2), np.ndarray)
assert_type(sx.linear_cross_entropy(x, x, y, linear_bias=y, memory=1000, label_smoothing=0.1), float)
assert_type(sx.linear_cross_entropy(x, x, y, reduction="none"), np.ndarray)
assert_type(sx.linear_value_and_grad(x, x, y, wrt="inputs", out=(g, None, None)), tuple[float, sx.LinearGradients])
assert_type(sx.linear_value_and_grad(x, x, y, reduction="none"), tuple[np.ndarray, sx.LinearGradients])
assert_type(sx.linear_hvp(x, x, y, x), np.ndarray)
assert_type(sx.linear_hvp(x, None, y, x, bias_vector=y, probs=x), tuple[np.ndarray, np.ndarray])
"""
BAD = [
    '{}(x, y, reduction="avg")',
    '{}(x, y, reduction="none", normalizer=2)',
    '{}(x, y, reduction="sum", normalizer=2.0)',
    "{}(x, y, reduction=str(x))",
    "{}(x, y, label_smooth=0.1)",
    '{}(x, y, temperature="2")',
    "{}(x, y, where=2j, axis=None)",
    "{}(x, y, -1)",
]


@pytest.fixture(params=COMMANDS)
def complaints(request: pytest.FixtureRequest, tmp_path: Path) -> "Complaints":
    name = request.param
    if (importlib.util.find_spec("mypy") if name == "mypy" else shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return Complaints(name, tmp_path)


class Complaints:
    """The lines of a source that a type checker finds fault with."""

    def __init__(self, checker: str, folder: Path) -> None:
        self.checker, self.folder = checker, folder

    def about(self, source: str) -> set[int]:
        file = self.folder / "calls.py"
        file.write_text(source)
        result = subprocess.run([*COMMANDS[self.checker], str(file)], cwd=self.folder, capture_output=True, text=True)
        assert result.returncode in (0, 1), result.stdout + result.stderr
        return {int(line) for line in re.findall(r"calls\.py:(\d+)(?::\d+)?(?: -|:) error", result.stdout)}


def test_good_calls(complaints: Complaints) -> None:
    assert complaints.about(IMPORTS + GOOD) == set()


def test_bad_calls(complaints: Complaints) -> None:
    functions = ("sx.cross_entropy", "sx.value_and_grad", "sx.evaluate")
    calls = [call.format(function) for call in BAD for function in functions]
    calls += ["sx.cross_entropy(x, y, out=g)", "sx.evaluate(x, y, out=g)", "sx.cross_entropy(x)"]
    calls += ["sx.linear_cross_entropy(x, x, y, axis=1)", "sx.linear_hvp(x, x, y)"]
    calls += ["sx.value_and_grad(x)", "sx.softmax(x, weight=y)", "sx.softmax(x, reduction='mean')"]
    first = IMPORTS.count("\n") + 1
    assert complaints.about(IMPORTS + "\n".join(calls) + "\n") == set(range(first, first + len(calls)))
