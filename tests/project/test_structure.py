"""The imports follow the structure: no circle, kernels that know no Python face, no dependency but NumPy."""

import ast
import os
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT, run_python

PACKAGE = ROOT / "src" / "softxent"
MODULES = {source.stem for source in PACKAGE.glob("*.py")}

IMPORT = """
import sys
import numpy
before = set(sys.modules)
import softxent
files = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before}
tops = {name.partition(".")[0] for name, file in files.items() if file} - set(sys.stdlib_module_names)
print(*sorted(tops))
"""


def imported_by(source: Path) -> Iterator[str]:
    """Those of MODULES that a file imports."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == "softxent" and module in MODULES:
                yield module


def test_there_is_no_import_circle() -> None:
    imports = {source.stem: set(imported_by(source)) for source in PACKAGE.glob("*.py")}
    assert imports["_loss"] >= {"_dispatch", "_inputs", "_threads"}
    TopologicalSorter(imports).prepare()  # raises CycleError


@pytest.mark.parametrize("pattern", ["*.pyx", "*.pxi", "*.hpp", "*.py", "*.pyi"])
def test_kernels_know_nothing_of_the_python_face(pattern: str) -> None:
    sources = list((PACKAGE / "kernels").glob(pattern))
    assert sources
    for source in sources:
        assert not re.search(r"\b(from|c?import)\s+softxent\b(?!\.kernels)", source.read_text()), source


def test_import_brings_in_nothing_but_numpy() -> None:
    result = run_python(IMPORT, dict(os.environ))
    assert set(result.stdout.split()) - {"numpy"} == {"softxent"}, result.stderr
