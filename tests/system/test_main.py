"""`python -m softxent`: its answers, and the end of its output before its own end."""

import subprocess
import sys

import pytest

import softxent as sx
from softxent import _dispatch

COMMAND = [sys.executable, "-m", "softxent"]


def answer(*arguments: str) -> tuple[str, str, int]:
    """Output, errors and exit status."""
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return result.stdout, result.stderr, result.returncode


def test_the_report_checks_every_shape_and_dtype() -> None:
    output, errors, status = answer()
    assert (errors, status) == ("", 0)
    lines = output.splitlines()
    assert lines[0].startswith(f"softxent {sx.__version__}, NumPy ")
    assert lines[1].split() == ["built", *", ".join(_dispatch.built_levels()).split()]
    assert sum(line.endswith("   ok") for line in lines) == 8
    assert lines[-1].startswith("All within the limits")


def test_help_and_version() -> None:
    output, errors, status = answer("--help")
    assert output.startswith("usage: python -m softxent [-h] [--version] [--cflags]\n")
    assert (errors, status) == ("", 0)
    assert answer("--version") == (f"softxent {sx.__version__}\n", "", 0)


def test_flags_for_a_compiler() -> None:
    assert answer("--cflags") == (f"-I{sx.get_include()}\n", "", 0)


def test_nonsense_is_refused() -> None:
    output, errors, status = answer("nonsense")
    assert (output, status) == ("", 2)
    assert errors.splitlines()[-1] == "python -m softxent: error: unrecognized arguments: nonsense"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are closed in another way there")
def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
