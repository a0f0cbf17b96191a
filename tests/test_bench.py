"""The benchmark reads shapes as they are written, and the page on performance says what its results say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
PAGE = ROOT / "docs" / "performance.md"


@pytest.mark.parametrize(
    ("text", "n_rows", "n_classes"),
    [("1024x1000", 1024, 1000), ("8x21x256x256@1", 8 * 256 * 256, 21), ("7x5@0", 5, 7)],
)
def test_shapes_are_written_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, text: str, n_rows: int, n_classes: int
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from cases import Shape

    shape = Shape.parse(text)
    assert (str(shape), shape.n_rows, shape.n_classes) == (text, n_rows, n_classes)


@pytest.mark.parametrize("text", ["", "1000", "0x5", "2x3x4", "2x3x4@2", "2x3@2", "2x3@", "axb"])
def test_other_words_are_no_shapes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from cases import Shape

    with pytest.raises(ValueError, match="rows x classes"):
        Shape.parse(text)


@pytest.mark.skipif(not PAGE.exists(), reason="not every distribution has the page")
def test_the_page_is_what_its_results_give() -> None:
    source = re.search(r"\(\.\./(bench/results/[^)]+\.json)\)", PAGE.read_text("utf-8"))
    assert source, "the page does not name its results"
    command = [sys.executable, "docs/tools/performance.py", source[1], "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
