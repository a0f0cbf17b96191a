"""What the benchmark shows: the circumstances, a table for each case, and a chart of time against classes."""

import platform
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from measure import Record, count_threads
from peers import COPY, PEERS, SOFTXENT, SOFTXENT_ONE_THREAD, TOLERANCES, Contender

from softxent import _dispatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

BUSY = 0.05  # the share of the CPUs that other work may have
TASK_TITLES = {"grad": "loss and gradient", "forward": "loss only"}

# One style for each name, so that charts with different peers can be compared.
STYLES: dict[str, dict[str, Any]] = {
    SOFTXENT.name: {"color": "tab:red", "marker": "o", "linewidth": 2.8, "zorder": 3},
    SOFTXENT_ONE_THREAD.name: {"color": "tab:red", "marker": "o", "markerfacecolor": "white", "linestyle": ":"},
    COPY.name: {"color": "black", "linewidth": 2, "linestyle": "--", "label": "np.copyto(out, logits)"},
}
PEER_COLORS = ("tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:purple", "tab:brown")
STYLES |= {
    peer.name: {"color": color, "marker": marker}
    for peer, color, marker in zip(PEERS, PEER_COLORS, "s^DvPX", strict=True)
}


def gather_facts(contenders: Sequence[Contender]) -> dict[str, Any]:
    """What the figures depend on. Imports the contenders."""
    return {
        "cpu": cpu_model(),
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


def table(records: Sequence[Record]) -> str:
    """The records of one case."""
    first = records[0]
    heading = f"\n{first.case!s:<46}{'median':>11}{'spread':>8}{'ns/logit':>10}{'/ copy':>9}   softxent is"
    lines = [heading, *(f"  {record.contender:<44}{figures(record)}" for record in records)]
    if first.others is not None and first.others > BUSY:
        lines.append(f"  BUSY: other work had {first.others:.0%} of these CPUs meanwhile. Run this again.")
    return "\n".join(lines)


def figures(record: Record) -> str:
    if record.seconds is None or record.spread is None or record.ns_per_logit is None:
        return f"   {record.error}"
    in_us = record.seconds < 1e-3
    time = f"{record.seconds * 1e6:.2f} us" if in_us else f"{record.seconds * 1e3:.2f} ms"
    to_copy = "" if record.ratio_to_copy is None else f"{record.ratio_to_copy:.2f}"
    line = f"{time:>11}{record.spread:>8.0%}{record.ns_per_logit:>10.3f}{to_copy:>9}"
    if record.ratio_to_softxent is None or record.contender == SOFTXENT.name:
        return line
    return f"{line}{record.ratio_to_softxent:>7.2f} x as fast"


def draw(records: Sequence[Record], facts: dict[str, Any], path: Path) -> None:
    """Time per logit against the number of classes: a panel for each task (across), dtype and thread count (down)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = unique(record.case.task for record in records)
    rows = unique((record.case.dtype, record.case.threads) for record in records)
    size = (3 + 4.5 * len(columns), 1 + 4 * len(rows))
    figure, grid = plt.subplots(
        len(rows), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, ((dtype, threads), task) in zip(grid.flat, product(rows, columns), strict=True):
        of_panel = (task, dtype, threads)
        draw_panel(axes, [r for r in records if (r.case.task, r.case.dtype, r.case.threads) == of_panel])
    for axes in grid[-1]:
        axes.set_xlabel("number of classes C")
    for axes in grid[:, 0]:
        axes.set_ylabel("ns per logit")
    lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(handles=list(lines.values()), loc="outside right center", frameon=False)
    n_logits = records[0].case.n_rows * records[0].case.n_classes
    version = f"softxent {facts['versions']['softxent']}, {facts['simd_level']}, {facts['cpu']}"
    figure.suptitle(f"Softmax cross-entropy of N x C = {n_logits} logits ({version})")
    figure.savefig(path, dpi=150)


def draw_panel(axes: "Axes", records: Sequence[Record]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for name in unique(record.contender for record in records):
        time_at = {r.case.n_classes: r.ns_per_logit for r in records if r.contender == name and r.ns_per_logit}
        axes.plot(list(time_at), list(time_at.values()), **{"label": name, **STYLES[name]})
    case = records[0].case
    axes.set(xscale="log", yscale="log", title=f"{TASK_TITLES[case.task]}, {case.dtype}, {count_threads(case.threads)}")
    classes = unique(record.case.n_classes for record in records)
    axes.set_xticks(classes, [str(n_classes) for n_classes in classes], rotation=45)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


def unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
