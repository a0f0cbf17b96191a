"""The machine that is measured on: what it is, which CPUs this process may use, and how busy others keep them."""

import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import Contender

from softxent import _dispatch

BUSY = 0.05  # the share of the CPUs that other work may have
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CAN_PIN = hasattr(os, "sched_setaffinity")


def gather_facts(contenders: Sequence[Contender]) -> dict[str, Any]:
    """What the figures depend on. Imports the contenders."""
    return {
        "cpu": cpu_model(),
        "caches": caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "simd_level": _dispatch.level,
        "versions": {
            "python": platform.python_version(),
            **{module: version for contender in contenders for module, version in contender.versions().items()},
        },
    }


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """What one CPU has for data, by level, in the system's own words; empty where it does not tell."""

    def read(index: Path, name: str) -> str:
        return (index / name).read_text().strip()

    indices = [index for index in sorted(CACHES.glob("index*")) if read(index, "type") != "Instruction"]
    return {f"L{read(index, 'level')}": read(index, "size") for index in indices}


def usable_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if CAN_PIN else list(range(os.cpu_count() or 1))


def pin(cpus: list[int]) -> None:
    if CAN_PIN:
        os.sched_setaffinity(0, cpus)


class OthersWatch:
    """Which share of this process's CPUs goes to other processes, and to other virtual machines, from now on."""

    def __init__(self) -> None:
        self._clock, self._others = time.perf_counter(), cpu_seconds_of_others()

    def share(self) -> float | None:
        """Between 0 and 1; None if this system does not tell."""
        others = cpu_seconds_of_others()
        if others is None or self._others is None:
            return None
        available = (time.perf_counter() - self._clock) * len(os.sched_getaffinity(0))
        return max(0.0, others - self._others) / available


def cpu_seconds_of_others() -> float | None:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    own_cpus = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
    busy = 0
    for line in lines:
        cpu, *ticks = line.split()
        if cpu in own_cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()
