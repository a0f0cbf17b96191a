"""What the benchmark prints while it runs: the circumstances, and a table for each case."""

from collections.abc import Sequence
from typing import Any

from machine import BUSY
from measure import Figures, Timing
from memory import MIB, RESOLUTION, Memory
from peers import SOFTXENT, Contender
from problems import TOLERANCES


def header(facts: dict[str, Any], missing: Sequence[Contender]) -> str:
    lines = [
        f"{facts['cpu']}, {facts['system']}, SIMD level {facts['simd_level']}, {facts['pinning']}",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "A result gets a time only if it is within "
        + " or ".join(f"{tolerance:.0e} ({dtype})" for dtype, tolerance in TOLERANCES.items())
        + " of a float64 reference.",
        "Quote only the ratios, from one run: the times are those of one moment of this machine.",
    ]
    if missing:
        lines.append(f"Skipped, because not installed: {', '.join(contender.name for contender in missing)}.")
    return "\n".join(lines)


def table(timing: Timing) -> str:
    with_read = any(figures.to_read is not None for figures in timing.figures.values())
    to_read = f"{'/ read':>9}" if with_read else ""
    head = f"{'median':>11}{'spread':>8}{'ns/logit':>10}{'/ copy':>9}{to_read}{'/ bound':>9}"
    lines = [f"\n{timing.case!s:<46}{head}   softxent is"]
    for name, figures in timing.figures.items():
        row = times(figures) + f"{timing.ns_per_logit(name):>10.3f}{ratio(figures.to_copy)}"
        row += (ratio(figures.to_read) if with_read else "") + ratio(figures.to_bound)
        if name != SOFTXENT.name and figures.to_softxent is not None:
            row += f"{figures.to_softxent:>7.2f} x as fast"
        lines.append(f"  {name:<44}{row}")
    lines += without_figures(timing)
    if timing.others is not None and timing.others > BUSY:
        lines.append(f"  BUSY: other work had {timing.others:.0%} of these CPUs meanwhile. Run this again.")
    return "\n".join(lines)


def times(figures: Figures) -> str:
    in_us = figures.seconds < 1e-3
    time = f"{figures.seconds * 1e6:.2f} us" if in_us else f"{figures.seconds * 1e3:.2f} ms"
    return f"{time:>11}{figures.spread:>8.0%}"


def ratio(value: float | None) -> str:
    return " " * 9 if value is None else f"{value:>9.2f}"


def table_of_memory(memory: Memory) -> str:
    resolution = f"(good to about {RESOLUTION / MIB:.2g} MiB)"
    lines = [f"\n{memory.case!s:<46}beyond inputs and results {resolution}"]
    lines += [f"  {name:<44}{used / MIB:>9.2f} MiB" for name, used in memory.used.items()]
    return "\n".join(lines + without_figures(memory))


def without_figures(found: Timing | Memory) -> list[str]:
    return [f"  {name:<44}   {why}" for name, why in {**found.absent, **found.failed}.items()]
