"""The examples in the docstrings, the README and the documentation give what they say."""

import doctest
import re
from pathlib import Path

import pytest

import softxent as sx

ROOT = Path(__file__).parents[1]
PAGES = [
    page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if ">>> " in page.read_text("utf-8")
]

pytestmark = pytest.mark.usefixtures("level")


def run(test: doctest.DocTest) -> None:
    results = doctest.DocTestRunner().run(test)
    assert results.attempted > 0
    assert results.failed == 0


def test_docstring_examples() -> None:
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(sx) if test.examples]
    functions = {"cross_entropy", "evaluate", "get_num_threads", "set_num_threads", "value_and_grad"}
    assert {test.name for test in tests} == {f"softxent.{name}" for name in functions}
    for test in tests:
        run(test)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    run(doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0))
