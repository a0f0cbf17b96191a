"""The benchmark measures what it is asked to, and the pages say what their results say."""

import re
import subprocess
import sys
from pathlib import Path

import numerics
import pytest
from cases import FAMILY_TASKS, Case, Shape, Task
from measure import Figures, figures_of, measure
from options import WITH_OPTIONS, Costs, measure_costs
from pages import IN_PAGE, IN_TEMPLATE, choose_parts, fill, table
from peers import PEERS
from resultset import Results
from support import ROOT

from softxent import _dispatch

RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
PAGE = ROOT / "docs" / "performance.md"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "n_rows", "n_classes"),
    [("1024x1000", 1024, 1000), ("8x21x256x256@1", 8 * 256 * 256, 21), ("7x5@0", 5, 7)],
)
def test_shapes_are_written_as_they_are_read(text: str, n_rows: int, n_classes: int) -> None:
    shape = Shape.parse(text)
    assert (str(shape), shape.n_rows, shape.n_classes) == (text, n_rows, n_classes)


@pytest.mark.parametrize("text", ["", "1000", "0x5", "2x3x4", "2x3x4@2", "2x3@2", "2x3@", "axb"])
def test_other_words_are_no_shapes(text: str) -> None:
    with pytest.raises(ValueError, match="rows x classes"):
        Shape.parse(text)


def test_ratios_are_medians_over_the_rounds() -> None:
    figures = figures_of("numpy", {"softxent": [1.0, 2.0, 1.0, 1.0, 2.0], "numpy": [3.0, 4.0, 5.0, 4.0, 6.0]})
    assert figures == Figures(seconds=4.0, spread=0.25, to_softxent=3.0, lower=3.0, upper=4.0)
    assert figures.faster_than_softxent is False


def test_the_bound_is_the_copy_and_the_exponentials_together() -> None:
    rounds = {"softxent": [6.0, 3.0, 9.0], "copy": [1.0, 1.0, 2.0], "exponentials": [2.0, 1.0, 1.0]}
    assert figures_of("softxent", rounds).to_bound == 2.0
    assert figures_of("softxent", rounds | {"read": [2.0, 2.0, 2.0]}).to_bound == 1.5


def test_costs_are_saved_as_they_are_loaded() -> None:
    costs = measure_costs(Shape.parse("20x10"), WITH_OPTIONS, seconds=0.01)
    assert {"softcap", "where", "pairs, k = 8", "evaluate"} < set(costs.ratios)
    assert all(0 < low <= ratio <= high for ratio, low, high in costs.ratios.values())
    assert Costs.unflat(costs.flat()).flat() == costs.flat()


def test_a_run_checks_and_times_every_contender(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = "--shapes 32x10 --tasks forward --peers numpy --seconds 0.05 --json"
    done = run("bench/bench.py", *command.split(), file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = Results.load(file)
    assert found.facts["simd_level"] == _dispatch.level
    (timing,) = found.timings
    assert (str(timing.case.shape), timing.case.task, timing.failed) == ("32x10", "forward", {})
    assert timing.names == {"softxent", "copy", "read", "exponentials", "softxent-kernel", "numpy"}
    assert timing.figures["softxent"].to_softxent == 1
    assert all(figures.seconds > 0 for figures in timing.figures.values())


@pytest.mark.parametrize("task", FAMILY_TASKS)
def test_every_peer_computes_what_it_takes_part_in(task: Task) -> None:
    for shape in ("12x70", "3x9x5@1"):
        case = Case(task, Shape.parse(shape))
        peers = [peer for peer in PEERS if peer.installed and task in peer.tasks and peer.refusal(case) is None]
        timing = measure(case, peers, seconds=0.001)
        assert (timing.failed, timing.absent) == ({}, {})
        assert {"softxent", "copy", *[peer.name for peer in peers]} <= set(timing.figures)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_are_saved_as_they_are_loaded(file: Path, tmp_path: Path) -> None:
    Results.load(file).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text("utf-8") == file.read_text("utf-8")


def test_the_page_on_performance_is_what_its_results_give() -> None:
    source = re.search(r"\(\.\./(bench/results/[^)]+\.json)\)", PAGE.read_text("utf-8"))
    assert source, "the page does not name its results"
    done = run("docs/tools/performance.py", source[1], "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_page_of_half_a_run(tmp_path: Path) -> None:
    found = Results.load(RESULTS[0])
    found.timings.pop()
    found.save(tmp_path / "half.json")
    done = run("docs/tools/performance.py", tmp_path / "half.json", tmp_path / "page.md")
    assert done.returncode == 2
    assert "cases of a full run, such as" in done.stderr
    assert not (tmp_path / "page.md").exists()


def test_parts_of_a_template_are_left_out() -> None:
    text = "a\n<!-- part: b -->\n{{c}}\n<!-- end of part -->\nd\n"
    assert choose_parts(text, {"b": False}) == "a\nd\n"
    assert choose_parts(text, {"b": True}) == "a\n{{c}}\nd\n"


def test_values_stand_at_the_places_of_their_names() -> None:
    assert fill("{{a}}, {{b}}, {{a}}", IN_TEMPLATE, {"a": "1", "b": "two"}) == "1, two, 1"
    assert (
        fill("<!-- begin: a -->\n\n0\n\n<!-- end -->.", IN_PAGE, {"a": "1"})
        == "<!-- begin: a -->\n\n1\n\n<!-- end -->."
    )
    for values in ({}, {"a": "1", "b": "2"}):
        with pytest.raises(ValueError, match=r"not both a place and a value: [ab]"):
            fill("{{a}}", IN_TEMPLATE, values)


def test_the_page_on_numerics_has_a_place_for_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "versions", ", ".join)
    page = numerics.PAGE.read_text("utf-8")
    of_case = dict.fromkeys(numerics.QUANTITIES, numerics.Error(ulps=1.25, got=1.0, true=1.0))
    levels = {dtype: {"all equal": dict.fromkeys(_dispatch.usable_levels(), of_case)} for dtype in numerics.DTYPES}
    peers = {dtype: {"all equal": {"softxent": of_case, "numpy": None}} for dtype in numerics.DTYPES}
    of_family = dict.fromkeys(numerics.FAMILY_QUANTITIES, numerics.Error(ulps=1.75, got=1.0, true=1.0))
    family = {dtype: {"softxent": of_family} for dtype in numerics.DTYPES}
    filled = fill(page, IN_PAGE, numerics.values(["softxent"], levels, peers, family, ["a miss"]))
    assert filled.count(table(["logits", "softxent", "numpy"], [["all equal", "**1.2**", "refused"]])) == 6
    assert "\n**Outside the contract:**\n\n- a miss\n" in filled
    assert "| float64 | logsumexp | 2.1 | **1.8** |\n" in filled
    assert "| diagonal of the Hessian of [0, -18, -20], class 0 | 1.7291e-08 | **1.7291e-08** |\n" in filled
    assert "| float16 | 1 x 131072 | mean loss | 11.78 | **11.78** |\n" in filled
    assert IN_PAGE.sub("", filled) == IN_PAGE.sub("", page)
