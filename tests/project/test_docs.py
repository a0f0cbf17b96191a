"""The examples in the docstrings, the README and the documentation give what they say, and links lead somewhere."""

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

import softxent as sx
from softxent import boosting

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES[1:]]


@pytest.mark.usefixtures("level")
def test_docstring_examples() -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(sx) if test.examples]
    functions = set(sx.__all__) - {"Evaluation", "LinearGradients", "LogitOptions", "Options", "__version__"}
    assert {test.name for test in tests} == {f"softxent.{name}" for name in functions}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("module", [boosting], ids=lambda module: module.__name__)
def test_docstring_examples_of_integrations(module: ModuleType) -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert {test.name for test in tests} == {f"{module.__name__}.{name}" for name in module.__all__}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("folder", ["the root", "an empty folder"])
def test_examples_of_a_page(folder: str, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m doctest` runs them; test_recipes.py runs the recipes one by one, whatever is installed."""
    text = page.read_text("utf-8")
    for library in re.findall(r"^>>> (?:import|from) (\w+)", text, re.MULTILINE):
        pytest.importorskip(library)
    monkeypatch.chdir(ROOT if folder == "the root" else tmp_path)
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (results.attempted > 0) == (">>> " in text)
    assert results.failed == 0


def anchors(page: Path) -> set[str]:
    """What a link to a heading of this page may say after the #."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_links_to_other_pages_lead_there(text: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?(?:#([\w-]+))?\)", text.read_text("utf-8")):
        page = text.parent / target if target else text
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_the_readme_says_what_was_measured() -> None:
    measured = (ROOT / "docs" / "performance.md").read_text("utf-8")
    loss_and_gradient = measured.split("## Loss and gradient\n")[1].split("\n## ")[0]
    said = (ROOT / "README.md").read_text("utf-8")
    for name in ("numpy", "torch", "jax"):
        least, most = re.findall(rf"softxent is ([\d.]+) .* to ([\d.]+) .* as fast as {name}", loss_and_gradient)[0]
        assert f"**{float(least):.2g} to {float(most):.2g}**" in said, name
    shapes = re.findall(r"^\| \d.*$", loss_and_gradient, re.MULTILINE)
    assert f"over {len(shapes)} shapes" in said
