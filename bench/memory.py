"""How much memory one call takes beyond its inputs and its results, in whatever language it is allocated.

A fresh process for each contender and case sets it up, calls it once, and then watches the peak of its resident memory
over a few more calls: Linux keeps it (VmHWM in /proc/self/status) and sets it back on request (/proc/self/clear_refs).
What the call returns in memory of its own is taken off; what the contender keeps between calls besides (a temporary
that is used again) is added. The C library is told to give freed blocks back to the system, or a second call
would find its memory resident already. The kernel counts pages per CPU in batches, and small blocks stay with the C
library: a figure is good to about RESOLUTION. Memory that is asked for but never touched does not count.
"""

import ctypes
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cases import BYTES, Case
from measure import compact
from peers import Contender
from problems import Problem

MIB = 2**20
RESOLUTION = MIB // 4
LARGEST_KEPT_BLOCK = 64 * 1024
CALLS = 5
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
PR_SET_THP_DISABLE = 41
# Read when a process starts. Huge pages would count 2 MiB for a byte.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST_KEPT_BLOCK),
    "MALLOC_TRIM_THRESHOLD_": str(LARGEST_KEPT_BLOCK),
    "NUMPY_MADVISE_HUGEPAGE": "0",
}
AVAILABLE = os.access(CLEAR_REFS, os.W_OK)


@dataclass(frozen=True)
class Memory:
    """One case: bytes beyond inputs and results of each contender, and why others have none."""

    case: Case
    used: dict[str, int]
    failed: dict[str, str]
    absent: dict[str, str]

    @property
    def names(self) -> set[str]:
        return {*self.used, *self.failed, *self.absent}

    @property
    def logits_bytes(self) -> int:
        return self.case.shape.size * BYTES[self.case.dtype]

    def flat(self) -> dict[str, Any]:
        return {**self.case.flat(), **compact({"failed": self.failed, "absent": self.absent}), "bytes": self.used}

    @classmethod
    def unflat(cls, fields: Mapping[str, Any]) -> "Memory":
        return cls(Case.unflat(fields), fields["bytes"], fields.get("failed", {}), fields.get("absent", {}))


def measure_memory(
    case: Case, contenders: Sequence[Contender], in_fresh_process: Callable[[Case, Contender], int]
) -> Memory:
    """`in_fresh_process` is to call `bytes_beyond` in a process of its own."""
    found = Memory(case, {}, {}, {})
    for contender in contenders:
        if why := contender.refusal(case):
            found.absent[contender.name] = why
            continue
        try:
            found.used[contender.name] = in_fresh_process(case, contender)
        except Exception as failure:  # the others still get their figures
            found.failed[contender.name] = f"{type(failure).__name__}: {failure}"
    return found


def bytes_beyond(case: Case, contender: Contender) -> int:
    problem = Problem.random(case, keep_nothing=True)
    entry = contender.enter(problem)
    return beyond_results(entry.call, problem.out) + sum(array.nbytes for array in entry.scratch)


def beyond_results(call: Callable[[], Sequence[Any]], *given: Any) -> int:
    """How much a call takes beyond its results; those that are `given` were there before."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    call()

    def grown() -> int:
        gc.collect()
        libc.malloc_trim(0)
        CLEAR_REFS.write_text(RESET_PEAK)
        before = peak_of_resident()
        results = call()
        peak = peak_of_resident() - before
        return peak - sum(getattr(value, "nbytes", 0) for value in results if not any(value is each for each in given))

    return max(0, int(median(grown() for _ in range(CALLS))))


def peak_of_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
