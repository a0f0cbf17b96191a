"""The examples refuse what makes no sense before they begin, and end with a picture."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

EXAMPLES = ROOT / "examples"
SHORT = {
    "digits": ["--epochs", "2"],
    "moons": ["--steps", "2"],
    "softmax_regression": ["--documents", "100", "--tolerance", "1e-3"],
    "language_model_head": ["--steps", "2", "--tokens", "8", "--width", "4", "--vocabulary", "50"],
    "torch_training": ["--steps", "2"],
}
NAMES = ("digits", "moons", "softmax_regression", "language_model_head")
WITH_TORCH = pytest.param(
    "torch_training", marks=pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="no PyTorch here")
)
EXTRAS = {"torch_training": "examples,torch"}  # of the others: examples
COLUMNS = {"digits": 5, "moons": 3}

with_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "sklearn", "tqdm")),
    reason="the packages of the examples are not installed",
)


def run(name: str, *arguments: str, first_on_path: Path | None = None) -> tuple[str, str, int]:
    """Output, errors and exit status."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if first_on_path:
        environment["PYTHONPATH"] = os.pathsep.join([str(first_on_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return result.stdout, result.stderr, result.returncode


@pytest.mark.parametrize("name", [*NAMES, WITH_TORCH])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('none', name='matplotlib')")
    command = f'{sys.executable} -m pip install ".[{EXTRAS.get(name, "examples")}]"'
    refusal = f"matplotlib is missing. To install it: {command}\n"
    assert run(name, first_on_path=tmp_path) == ("", refusal, 1)


@with_packages
@pytest.mark.parametrize("name", [*NAMES, WITH_TORCH])
def test_an_example_ends_with_a_picture(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    output, errors, status = run(name, *SHORT[name], "--out", str(picture))
    assert (errors, status) == ("", 0), output
    assert f"picture saved to {picture}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


@with_packages
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_stay_apart_at_large_losses(name: str, tmp_path: Path) -> None:
    output, _, status = run(name, *SHORT[name], "--learning-rate", "1e15", "--out", str(tmp_path / "picture.png"))
    assert status == 0
    rows = [line.split() for line in output.splitlines()[:3]]
    assert [len(row) for row in rows[1:]] == [COLUMNS[name]] * 2
    assert float(rows[2][1]) > 1e10


@with_packages
@pytest.mark.parametrize(
    ("name", "option", "value", "refusal"),
    [
        ("digits", "--epochs", "-3", "expected a whole number of at least 1, got '-3'"),
        ("digits", "--batch-size", "0", "expected a whole number of at least 1, got '0'"),
        ("moons", "--steps", "1.5", "expected a whole number of at least 1, got '1.5'"),
        ("moons", "--hidden", "none", "expected a whole number of at least 1, got 'none'"),
        ("moons", "--seed", "-1", "expected a whole number from 0 to 4294967294, got '-1'"),
        ("moons", "--learning-rate", "nan", "expected a finite number above 0, got 'nan'"),
        ("softmax_regression", "--c", "0", "expected a finite number above 0, got '0'"),
        ("language_model_head", "--vocabulary", "9", "expected a whole number of at least 10, got '9'"),
        ("digits", "--out", "picture", "expected a file name that ends in .png or the like, got 'picture'"),
        ("digits", "--out", "none/x.png", "cannot write 'none/x.png': No such file or directory"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, option: str, value: str, refusal: str) -> None:
    output, errors, status = run(name, option, value)
    assert (output, status) == ("", 2)
    assert errors.splitlines()[-1] == f"{name}.py: error: argument {option}: {refusal}"
