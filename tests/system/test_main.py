"""`python -m softxent`: its answers, its advice, and the end of its output before its own end."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import softxent as sx
from softxent import __main__, _dispatch
from softxent.__main__ import COLUMNS, Installation, Row

LEVELS = ("x86_64_v4", "x86_64_v3", "baseline")
COMMAND = [sys.executable, "-m", "softxent"]


def answer(*arguments: str, **environment: str) -> tuple[str, str, int]:
    """Output, errors and exit status."""
    result = subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout, result.stderr, result.returncode


def advice(environment: Mapping[str, str] | None = None, **differences: Any) -> list[str]:
    """What is said of an installation that differs from a good one in this."""
    good = {"softxent": "0", "numpy": "0", "python": "0", "platform": "linux x86_64", "level": LEVELS[0]}
    good |= {"built": LEVELS, "supported": LEVELS, "openmp": True, "threads": 4, "cpus": 4}
    return list(Installation(**{**good, **differences}).advice(environment or {}))


def test_the_report_checks_every_shape_and_dtype() -> None:
    output, errors, status = answer()
    assert (errors, status) == ("", 0)
    lines = output.splitlines()
    assert lines[0].startswith(f"softxent {sx.__version__}, NumPy ")
    assert lines[1].split() == ["installed", *", ".join(_dispatch.built_levels()).split()]
    assert sum(line.startswith("  ok  ") for line in lines) == 8
    assert lines[-1].startswith("All within the limits")
    assert max(map(len, lines)) <= COLUMNS


def test_the_report_says_what_to_do() -> None:
    output, _, status = answer(SOFTXENT_SIMD="baseline", OMP_NUM_THREADS="1")
    assert status == 0
    assert max(map(len, output.splitlines())) <= COLUMNS
    slower = _dispatch.usable_levels()[0] != "baseline"
    assert ("To do: SOFTXENT_SIMD=baseline forces baseline" in output) == slower


def test_json_holds_what_the_report_says() -> None:
    output, errors, status = answer("--json")
    assert (errors, status) == ("", 0)
    facts = json.loads(output)
    assert facts["softxent"] == sx.__version__
    assert (facts["built"], facts["level"]) == ([*_dispatch.built_levels()], _dispatch.level)
    assert facts["passed"] is True
    assert len(facts["checks"]) == 8
    assert all(row["passed"] and row["loss_error"] < 1e-6 for row in facts["checks"])


def test_numbers_that_json_does_not_have_are_null() -> None:
    row = Row((2, 3), "float32", float("nan"), float("inf"), 1.0, 1.0, 1.0)
    assert str(row).startswith("  FAILED  2 x 3 ")
    facts = row.facts()
    assert (facts["loss_error"], facts["grad_error"], facts["seconds"], facts["passed"]) == (None, None, 1.0, False)


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "newer_than_the_modules", lambda: "")


@pytest.mark.usefixtures("no_sources")
def test_a_good_installation_needs_no_advice() -> None:
    assert advice() == []
    assert advice(openmp=False, threads=1, cpus=1) == []
    assert advice({"OMP_NUM_THREADS": "4"}) == []
    assert advice(platform="win32 ARM64", built=["baseline"], supported=["neon", "baseline"], level="baseline") == []


@pytest.mark.usefixtures("no_sources")
@pytest.mark.parametrize(
    ("said", "environment", "differences"),
    [
        (
            "SOFTXENT_SIMD=baseline forces baseline, but this CPU runs x86_64_v4, which is faster. Unset",
            {"SOFTXENT_SIMD": "baseline"},
            {"level": "baseline"},
        ),
        (
            "This CPU runs x86_64_v4 and x86_64_v3, but the installation does not contain it. Install softxent again, "
            "without SOFTXENT_LEVELS",
            {},
            {"built": ["baseline"], "level": "baseline"},
        ),
        ("Calls use one of 4 CPUs, because softxent was built without OpenMP.", {}, {"openmp": False, "threads": 1}),
        ("8 threads share 4 CPUs and wait for each other.", {"OMP_NUM_THREADS": "8"}, {"threads": 8}),
        ("OMP_NUM_THREADS=1 keeps calls from using all of the 4 CPUs.", {"OMP_NUM_THREADS": "1"}, {"threads": 1}),
    ],
)
def test_advice_for_what_makes_calls_slower(
    said: str, environment: dict[str, str], differences: dict[str, Any]
) -> None:
    (sentence,) = advice(environment, **differences)
    assert sentence.startswith(said)


def test_sources_newer_than_the_modules_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sx, "__file__", str(tmp_path / "__init__.py"))
    assert __main__.newer_than_the_modules() == ""
    for name, seconds in (("_call.so", 2), ("_call.pyx", 1), ("plan.pxi", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    assert __main__.newer_than_the_modules() == ""
    os.utime(tmp_path / "plan.pxi", (3, 3))
    assert __main__.newer_than_the_modules() == "plan.pxi"
    assert any(sentence.startswith("plan.pxi has changed since") for sentence in advice())


def test_help_and_version() -> None:
    output, errors, status = answer("--help")
    assert output.startswith("usage: python -m softxent [-h] [--version] [--json | --cflags]\n")
    assert (errors, status) == ("", 0)
    assert max(map(len, output.splitlines())) <= 80
    assert answer("--version") == (f"softxent {sx.__version__}\n", "", 0)


def test_flags_for_a_compiler() -> None:
    assert answer("--cflags") == (f"-I{sx.get_include()}\n", "", 0)


@pytest.mark.parametrize("argument", ["nonsense", "--nonsense", "--js", "-v"])
def test_nonsense_is_refused(argument: str) -> None:
    output, errors, status = answer(argument)
    assert (output, status) == ("", 2)
    assert errors.splitlines()[-1] == f"python -m softxent: error: unrecognized arguments: {argument}"


def test_two_kinds_of_output_are_refused() -> None:
    output, errors, status = answer("--json", "--cflags")
    assert (output, status) == ("", 2)
    assert errors.splitlines()[-1].endswith("argument --cflags: not allowed with argument --json")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are closed in another way there")
def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
