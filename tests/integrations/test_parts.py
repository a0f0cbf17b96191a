"""The examples and the simulation of work in several parts run, and show what the documents say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


def run(*command: str, timeout: int = 120) -> str:
    """What a script of the checkout prints; it must not fail."""
    result = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_up_to_1024_parts_keep_their_digits_and_bits() -> None:
    output = run("bench/parts.py", "--quick")
    assert re.search(r"^ 1024 .*\bTrue$", output, re.MULTILINE)
    assert "160 bytes" in output


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_vocabulary_in_several_processes_is_that_of_one(processes: int) -> None:
    pytest.importorskip("torch")
    output = run("examples/vocabulary_parallel.py", "--processes", str(processes), "--steps", "3", "--batch-size", "40")
    assert "80 bytes a row leave each process" in output
    loss, grad = re.findall(r"(?:loss|gradient) (\d\.\de-\d+)", output)
    assert max(float(loss), float(grad)) < 1e-6
    assert re.search(r"^step +3 ", output, re.MULTILINE)


SMALL = ("--rows", "3000", "--features", "8", "--chunk-rows", "1000", "--evaluations", "8")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["threads", "processes"])
def test_a_fit_over_dask_arrays(workers: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("distributed", "scipy", "threadpoolctl", "zarr"):
        pytest.importorskip(name)
    output = run("examples/dask_fit.py", *SMALL, *workers, "--data", str(tmp_path / "data"))
    losses = [float(loss) for loss in re.findall(r"^evaluation .* loss (\d\.\d+)", output, re.MULTILINE)]
    assert losses[0] == pytest.approx(2.302585)  # log 10: the head begins with zeros
    assert losses[-1] < 1.6
    assert re.search(r"the fitted head: loss 1\.\d+, accuracy [4-7]\d\.\d%", output)
    assert ("dashboard: http" in output) == bool(workers)
