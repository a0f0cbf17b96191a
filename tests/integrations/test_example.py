"""The example for XGBoost and LightGBM; what all examples have is tested in tests/project/test_examples.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


def run(*arguments: str, first_on_path: Path | None = None) -> tuple[str, str, int]:
    """Output, errors and exit status."""
    environment = dict(os.environ)
    if first_on_path:
        environment["PYTHONPATH"] = os.pathsep.join([str(first_on_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / "boosting.py"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return result.stdout, result.stderr, result.returncode


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "lightgbm.py").write_text("raise ModuleNotFoundError('none', name='lightgbm')")
    command = f'{sys.executable} -m pip install ".[examples,xgboost,lightgbm]"'
    assert run(first_on_path=tmp_path) == ("", f"lightgbm is missing. To install it: {command}\n", 1)


def test_it_ends_with_a_picture(tmp_path: Path) -> None:
    for library in ("lightgbm", "matplotlib", "sklearn", "xgboost"):
        pytest.importorskip(library)
    picture = tmp_path / "picture.png"
    output, errors, status = run("--rounds", "2", "--rows", "1000", "--out", str(picture))
    assert (errors, status) == ("", 0)
    for library in ("XGBoost", "LightGBM"):
        assert f"{library}: the same splits with softxent's objective as with the built-in one" in output
    assert f"picture saved to {picture}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
