"""The imports follow the structure: no circle, kernels that know no Python face, no dependency but NumPy."""

import ast
import os
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

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


def test_integrations_are_leaves() -> None:
    """What integrates a library is imported by nobody."""
    for source in PACKAGE.glob("*.py"):
        assert "boosting" not in imported_by(source), source


def sources_of(folder: str) -> list[Path]:
    """What is written in it, translations to C++ left out."""
    found = [path for path in (PACKAGE / folder).rglob("*.*") if path.suffix in (".pyx", ".pxi", ".hpp", ".py", ".pyi")]
    assert found
    return found


def included_by(source: Path) -> set[str]:
    text = source.read_text("utf-8")
    return set(re.findall(r'^ *(?:cdef extern from|include|#include) ["<]([^">]+)[">]', text, re.MULTILINE))


def test_kernels_know_no_numpy_and_no_python_face() -> None:
    for source in sources_of("kernels"):
        text = source.read_text("utf-8")
        assert not re.search(r"\b(from|c?import)\s+(softxent|numpy)\b", text), source
        assert "numpy/" not in text, source


def test_call_knows_no_lanes() -> None:
    """Of the kernels it sees what a job is, and how many threads there are."""
    included = set().union(*map(included_by, sources_of("call")))
    assert included == {"job.pxi", "threads.hpp", "operands.pxi", "plan.pxi", "interface.pxi"}
    assert included_by(PACKAGE / "kernels" / "job.pxi") == {"job.hpp"}
    assert included_by(PACKAGE / "kernels" / "job.hpp") == {"cstddef", "cstdint"}


def test_headers_include_only_what_stands_below_them() -> None:
    """isa, vec, math, row: each knows those before it. An instruction set is included where its types are needed."""
    order = ["isa", "vec", "math", "row"]
    for source in (PACKAGE / "kernels").glob("*/*.hpp"):
        for name in included_by(source):
            folder = Path(name).parts[-2] if ".." in name and "/" in name.removeprefix("../") else source.parent.name
            assert order.index(folder) <= order.index(source.parent.name), (source, name)


def test_import_brings_in_nothing_but_numpy() -> None:
    result = run_python(IMPORT, dict(os.environ))
    assert set(result.stdout.split()) - {"numpy"} == {"softxent"}, result.stderr
