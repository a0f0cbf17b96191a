"""What setup.py says to the wrong Python, and what it leaves of earlier builds."""

import importlib
import importlib.util
import os
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT, run_python

AS_PYTHON = """
import runpy, sys
sys.version_info = {version}
runpy.run_path({setup!r}, run_name="__main__")
"""
ADDRESS = "https://example.org/softxent"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The names that setup.py defines."""
    pytest.importorskip("Cython.Build")
    pytest.importorskip("setuptools", minversion="77")
    monkeypatch.chdir(ROOT)
    spec: Any = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_command(setup: ModuleType) -> Any:
    distribution = importlib.import_module("setuptools").Distribution
    return setup.BuildWithFlags(distribution({"ext_modules": setup.extensions}))


@pytest.mark.parametrize("version", [(3, 8, 20), (3, 10, 13)])
def test_an_older_python_is_refused_in_one_sentence(version: tuple[int, int, int]) -> None:
    result = run_python(AS_PYTHON.format(version=version, setup=str(ROOT / "setup.py")), dict(os.environ))
    found = ".".join(map(str, version))
    assert (result.stdout, result.returncode) == ("", 1)
    assert result.stderr == (
        f"softxent needs Python 3.11 or later, but this is Python {found}: "
        "make a new virtual environment with a later one (python3.11 -m venv --clear .venv)\n"
    )


def test_the_oldest_python_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'requires-python = ">=3.11"' in project
    assert re.findall(r"python_version (\S+) '([\d.]+)'", project) == [(">=", "3.11")] * 2


def test_modules_that_were_not_built_are_removed(setup: ModuleType, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    built, left = (kernels / f"{name}{EXTENSION_SUFFIXES[0]}" for name in ("built", "left"))
    deeper = tmp_path / f"deeper{EXTENSION_SUFFIXES[0]}"
    others = [kernels / name for name in ("left.py", "left.pyi", "left.cpp", "left.cpython-39-another.so")]
    for path in (built, left, deeper, *others):
        path.touch()
    setup.remove_other_modules(tmp_path, {built.resolve()})
    assert set(tmp_path.rglob("*.*")) == {built, *others}


def test_all_modules_are_built_at_the_same_time(setup: ModuleType) -> None:
    command = build_command(setup)
    command.finalize_options()
    assert command.parallel == (len(setup.extensions) if os.cpu_count() != 1 else None)


@pytest.mark.parametrize(
    ("works", "missing"), [({"<vector>"}, "Python.h"), (set(), "a working C++ compiler")], ids=["header", "compiler"]
)
def test_what_is_missing_is_named(
    works: set[str], missing: str, setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = build_command(setup)
    monkeypatch.setattr(command, "trouble", lambda include: "" if include.split()[1] in works else "no such file")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SystemExit) as refusal:
        command.check_tools()
    assert str(refusal.value) == (
        f"softxent is compiled when it is installed, and {missing} is missing: "
        "on Debian or Ubuntu, run apt install g++ python3-dev"
    )


def test_the_description_has_no_relative_link(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[LICENSE](LICENSE)" not in setup.description()
    assert "BSD 3-Clause licence (`LICENSE`)" in setup.description()
    assert ".png" not in setup.description().replace("`digits.png`", "")
    assert setup.links() == {}
    monkeypatch.setattr(setup, "ADDRESS", ADDRESS)
    assert f"[BSD 3-Clause licence]({ADDRESS}/blob/HEAD/LICENSE)" in setup.description()
    assert not re.findall(r"\]\((?!https?:)", setup.description())
    assert f"]({ADDRESS}/raw/HEAD/docs/performance-classes.png)" in setup.description()
    assert set(setup.links()) == {"Source", "Documentation", "Changelog", "Issues"}
    assert all(link.startswith(ADDRESS) for link in setup.links().values())
