"""Writes docs/performance.md and its charts from the results of a full run of bench/bench.py.

The text of the page stands in performance.template.md. This script puts figures and tables at the named places of the
template. `--check` writes nothing; it says whether the page is what the template and the results give.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from cases import (
    DTYPE_SHAPES,
    DTYPES,
    FAMILY_SHAPES,
    FAMILY_TASKS,
    LOSS_TASKS,
    ROW_SWEEP,
    ROW_SWEEP_CLASSES,
    SHAPES,
    SWEEP_LOGITS,
    THREAD_SHAPES,
    Case,
    count_threads,
    full_run,
    grid,
)
from charts import CHARTS, TASK_TITLES, speed_to_one_thread
from machine import BUSY
from measure import BURST_SECONDS, MAX_SAMPLES, MIN_ROUNDS, Figures, Timing
from memory import MIB, RESOLUTION, Memory
from options import OUT, WITH_OPTIONS
from pages import IN_TEMPLATE, best_in_bold, choose_parts, fill, table
from peers import (
    PEERS,
    SOFTMAX_ONLY,
    SOFTXENT,
    SOFTXENT_FLOAT32,
    SOFTXENT_KERNEL,
    SOFTXENT_ONE_THREAD,
)
from problems import TOLERANCES
from resultset import Results

TEMPLATE = Path(__file__).with_name("performance.template.md")
PAGE = Path(__file__).parents[1] / "performance.md"
NONE = "-"
FAMILY_CASES = grid(FAMILY_TASKS, FAMILY_SHAPES)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="what bench.py --full wrote")
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help="docs/performance.md unless given")
    parser.add_argument("--check", action="store_true", help="write nothing; the exit status is 1 if the page differs")
    args = parser.parse_args()

    found = Results.load(args.results)
    missing = [case for case in full_run(found.facts["cpus"]) if not found.of(case)]
    if missing and not args.check:
        parser.error(
            f"{args.results} has no results of {len(missing)} cases of a full run, such as {title(missing[0])}"
        )
    values = {"source": args.results.name, **facts(found), **method(found), **tables(found), **findings(found)}
    parts = {"family": bool(found.of(*FAMILY_CASES))}
    text = fill(choose_parts(TEMPLATE.read_text(encoding="utf-8"), parts), IN_TEMPLATE, values)
    if args.check:
        same = args.page.read_text(encoding="utf-8") == text
        print(f"{args.page} is{'' if same else ' not'} what {TEMPLATE.name} and {args.results} give.")
        return 0 if same else 1
    args.page.write_text(text, encoding="utf-8")
    for name, draw in CHARTS.items():
        draw(found, args.page.with_name(f"performance-{name}.png"))
    return 0


def facts(found: Results) -> dict[str, str]:
    """The machine and the versions."""
    cpus = found.facts["cpus"]
    return {
        "cpu": found.facts["cpu"],
        "cpus": "1 CPU" if cpus == 1 else f"{cpus} CPUs",
        "caches": ", ".join(f"{level} {size}" for level, size in found.facts["caches"].items()) or "unknown",
        "system": found.facts["system"],
        "level": found.facts["simd_level"],
        "versions": ", ".join(f"{name} {version}" for name, version in found.facts["versions"].items()),
    }


def method(found: Results) -> dict[str, str]:
    """How the times were measured, and how steady they were."""
    rounds = [timing.rounds for timing in found.timings]
    spreads = [timing.figures[SOFTXENT.name].spread for timing in found.timings if SOFTXENT.name in timing.figures]
    return {
        "rounds": f"{min(rounds)} to {max(rounds)}",
        "least_rounds": str(MIN_ROUNDS),
        "samples": str(MAX_SAMPLES),
        "burst_ms": f"{1e3 * BURST_SECONDS:g}",
        "median_spread": f"{median(spreads):.0%}",
        "largest_spread": f"{max(spreads):.0%}",
        "tolerances": ", ".join(f"{tolerance:.0e} in {dtype}" for dtype, tolerance in TOLERANCES.items()),
        "sweep_logits": str(SWEEP_LOGITS),
        "row_sweep_classes": str(ROW_SWEEP_CLASSES),
        "resolution": f"{RESOLUTION / MIB:.2g}",
        "busy_share": f"{BUSY:.0%}",
    }


def tables(found: Results) -> dict[str, str]:
    of_task = {task: found.of(*grid([task], SHAPES)) for task in LOSS_TASKS}
    of_family = found.of(*FAMILY_CASES)
    return {
        **{f"{task}_table": table_of_shapes(timings) for task, timings in of_task.items()},
        **{f"{task}_summary": summary(timings) for task, timings in of_task.items()},
        **({"family_table": table_of_family(of_family), "family_summary": summary(of_family)} if of_family else {}),
        "dtypes_table": table_of_dtypes(found),
        "options_table": table_of_costs(found, WITH_OPTIONS),
        "out_table": table_of_costs(found, OUT),
        "small_calls_table": table_of_small_calls(found),
        "threads_table": table_of_threads(found),
        "memory_table": table_of_memory(found),
    }


def table_of_shapes(timings: Sequence[Timing]) -> str:
    return table_of(timings, lambda timing: [timing.case.shape.title], ["rows x classes"])


def summary(timings: Sequence[Timing]) -> str:
    """The least and the largest ratio to a copy and to each peer."""
    several = len({timing.case.task for timing in timings}) > 1

    def place(case: Case) -> str:
        return f"{TASK_TITLES[case.task]}, {case.shape.title}" if several else case.shape.title

    to_copy = [(ratio, place(t.case)) for t in timings if (ratio := own(t).to_copy) is not None]
    lines = [f"softxent takes {from_to(to_copy)} times as long as a copy."]
    for name in present(timings):
        ratios = [(ratio, place(t.case)) for t in timings if (ratio := t.to_softxent(name)) is not None]
        if ratios:
            lines.append(f"softxent is {from_to(ratios)} times as fast as {name}.")
    return bullets(lines)


def from_to(ratios: Sequence[tuple[float, str]]) -> str:
    (least, at_least), (most, at_most) = min(ratios), max(ratios)
    return f"{number(least)} ({at_least}) to {number(most)} ({at_most})"


def table_of_family(timings: Sequence[Timing]) -> str:
    return table_of(
        timings, lambda timing: [TASK_TITLES[timing.case.task], timing.case.shape.title], ["task", "rows x classes"]
    )


def table_of_dtypes(found: Results) -> str:
    timings = found.of(*grid(LOSS_TASKS, DTYPE_SHAPES, DTYPES[1:]))
    timings.sort(key=lambda timing: (LOSS_TASKS.index(timing.case.task), DTYPE_SHAPES.index(timing.case.shape)))

    def head(timing: Timing) -> list[str]:
        case, to_float32 = timing.case, timing.to_softxent(SOFTXENT_FLOAT32.name)
        return [TASK_TITLES[case.task], case.shape.title, case.dtype, number(to_float32 and 1 / to_float32)]

    return table_of(timings, head, ["task", "rows x classes", "dtype", "/ float32"])


def table_of_small_calls(found: Results) -> str:
    cases = dict.fromkeys(grid(LOSS_TASKS, [*ROW_SWEEP, *SHAPES]))
    timings = [timing for timing in found.of(*cases) if timing.to_softxent(SOFTXENT_KERNEL.name)]
    timings.sort(key=lambda timing: (LOSS_TASKS.index(timing.case.task), timing.case.shape.size))
    rows = [
        [
            TASK_TITLES[timing.case.task],
            timing.case.shape.title,
            number(timing.to_softxent(SOFTXENT_KERNEL.name)),
            number(own(timing).to_copy),
            f"{1e6 * own(timing).seconds:.2f}",
        ]
        for timing in timings
    ]
    return table(["task", "rows x classes", "kernel / softxent", "/ copy", "microseconds a call"], rows)


def table_of_costs(found: Results, group: str) -> str:
    """A row for each call of the group, a column for each shape."""
    of_group = [costs for costs in found.costs if costs.group == group]
    names = dict.fromkeys(name for costs in of_group for name in costs.ratios)
    rows = [[name, *[number(costs.ratios[name][0]) for costs in of_group]] for name in names]
    return table(["call", *[costs.shape.title for costs in of_group]], rows)


def table_of_threads(found: Results) -> str:
    several = sorted({timing.case.threads for timing in found.timings} - {1})
    timings = found.of(*grid(["grad"], THREAD_SHAPES, threads=several))
    timings.sort(key=lambda timing: (THREAD_SHAPES.index(timing.case.shape), timing.case.threads))

    def head(timing: Timing) -> list[str]:
        return [timing.case.shape.title, str(timing.case.threads), number(speed_to_one_thread(timing, SOFTXENT.name))]

    return table_of(timings, head, ["rows x classes", "threads", "speed-up"])


def table_of_memory(found: Results) -> str:
    names = [SOFTXENT.name, *present(found.memory)]
    rows = [
        [
            TASK_TITLES[memory.case.task],
            memory.case.shape.title,
            f"{memory.logits_bytes / MIB:.1f}",
            *best_in_bold(
                [f"{memory.used[name] / MIB:.1f}" if name in memory.used else without(memory, name) for name in names]
            ),
        ]
        for memory in found.memory
    ]
    return table(["task", "rows x classes", "logits", *names], rows)


def findings(found: Results) -> dict[str, str]:
    """Who is faster than softxent, or too close to say, or failed; what was timed on busy CPUs. Lists and counts."""
    rivals = [peer.name for peer in PEERS if peer is not SOFTMAX_ONLY] + [SOFTXENT_ONE_THREAD.name]
    failed = [f"{title(one.case)}: {name}: {why}" for one in found.timings for name, why in one.failed.items()]
    failed += [f"memory, {title(one.case)}: {name}: {why}" for one in found.memory for name, why in one.failed.items()]
    lists = {
        "faster": where(found, rivals, [True]),
        "close": where(found, rivals, [None]),
        "less_work": where(found, [SOFTMAX_ONLY.name], [True, None]),
        "failed": failed,
        "busy": [f"{title(t.case)}: {t.others:.0%}" for t in found.timings if t.others is not None and t.others > BUSY],
    }
    counts = {f"n_{name}": str(len(items)) for name, items in lists.items()}
    return {
        "n_cases": str(len(found.timings)),
        **counts,
        **{name: bullets(items or ["none"]) for name, items in lists.items()},
    }


def where(found: Results, names: Sequence[str], verdicts: Sequence[bool | None]) -> list[str]:
    """The cases in which one of these contenders is faster than softxent, or not, or perhaps: as the verdicts say."""
    lines = []
    for timing in found.timings:
        ratios = [
            f"{name} {number(of_name.to_softxent)} ({number(of_name.lower)} to {number(of_name.upper)})"
            for name in names
            if timing.to_softxent(name) and (of_name := timing.figures[name]).faster_than_softxent in verdicts
        ]
        lines += [f"{title(timing.case)}: {', '.join(ratios)}"] if ratios else []
    return lines


def own(timing: Timing) -> Figures:
    return timing.figures.get(SOFTXENT.name, Figures(0, 0))


def present(found: Iterable[Timing | Memory]) -> list[str]:
    """The peers that appear in any of these, with or without figures."""
    names = {name for one in found for name in one.names}
    return [peer.name for peer in PEERS if peer.name in names]


def table_of(timings: Sequence[Timing], head: Callable[[Timing], list[str]], columns: Sequence[str]) -> str:
    """A row for each case: its head, softxent next to the yardsticks, and each peer next to softxent."""
    peers = present(timings)
    with_read = any(own(timing).to_read for timing in timings)
    rows = []
    for timing in timings:
        yardsticks = [own(timing).to_copy, *([own(timing).to_read] if with_read else []), own(timing).to_bound]
        rows.append([*head(timing), *map(number, yardsticks), *[cell(timing, name) for name in peers]])
    return table([*columns, "/ copy", *(["/ read"] if with_read else []), "/ bound", *peers], rows)


def cell(timing: Timing, name: str) -> str:
    ratio = timing.to_softxent(name)
    if ratio is None:
        return without(timing, name)
    faster = timing.figures[name].faster_than_softxent
    return f"~{number(ratio)}" if faster is None else f"**{number(ratio)}**" if faster else number(ratio)


def without(found: Timing | Memory, name: str) -> str:
    return "failed" if name in found.failed else NONE


def number(ratio: float | None) -> str:
    """Three digits; the whole part, where it has more."""
    if ratio is None:
        return NONE
    return f"{ratio:.0f}" if ratio >= 99.95 else f"{ratio:.1f}" if ratio >= 9.995 else f"{ratio:.2f}"


def title(case: Case) -> str:
    return f"{TASK_TITLES[case.task]}, {case.shape.title}, {case.dtype}, {count_threads(case.threads)}"


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


if __name__ == "__main__":
    sys.exit(main())
