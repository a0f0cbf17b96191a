"""The faults that .ci/mutate plants still have their places in the sources."""

import runpy
from typing import Any

import pytest
from support import ROOT

SCRIPT = ROOT / ".ci" / "mutate"
FAULTS = runpy.run_path(str(SCRIPT))["FAULTS"] if SCRIPT.exists() else []


@pytest.mark.skipif(not FAULTS, reason="only a checkout has the script")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file.rpartition('/')[2]}: {fault.old[:40]}")
def test_a_fault_has_one_place(fault: Any) -> None:
    assert (ROOT / fault.file).read_text("utf-8").count(fault.old) == 1
    assert fault.old != fault.new
