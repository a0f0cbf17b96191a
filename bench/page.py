"""Writes docs/performance.md and its charts from the results of a full run of bench.py.

Every figure on the page, in its sentences too, is taken from the results: nothing on it is to be changed by hand.
`--check` writes nothing, and tells whether the page is what these results give.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import charts
from cases import (
    CLASS_SWEEP,
    DTYPE_SHAPES,
    DTYPES,
    ROW_SWEEP,
    ROW_SWEEP_CLASSES,
    SHAPES,
    SWEEP_LOGITS,
    TASKS,
    THREAD_SHAPES,
    Case,
    Task,
    count_threads,
    grid,
)
from measure import BURST_SECONDS, MAX_SAMPLES, MIN_ROUNDS, Figures, Timing
from memory import RESOLUTION, Memory
from peers import (
    PEERS,
    SOFTMAX_ONLY,
    SOFTXENT,
    SOFTXENT_FLOAT32,
    SOFTXENT_KERNEL,
    SOFTXENT_ONE_THREAD,
    TOLERANCES,
)
from report import BUSY, MIB
from resultset import Results

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
NONE = "-"
TITLES = charts.TASK_TITLES
MARKS = f"""**Bold**: quicker than softxent. `~`: too close to say, that is, neither of the two was quicker in three
quarters of the rounds. `{NONE}`: takes no part. `failed`: see the end. {SOFTMAX_ONLY.name} computes the probabilities
alone, neither loss nor gradient."""
WIDTH = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="what bench.py --full wrote")
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help="docs/performance.md unless given")
    parser.add_argument("--check", action="store_true", help="write nothing; the exit status is 1 if the page differs")
    args = parser.parse_args()

    found = Results.load(args.results)
    text = generate(found, args.results.name, args.page.stem)
    if args.check:
        same = args.page.read_text(encoding="utf-8") == text
        print(f"{args.page} is{'' if same else ' not'} what {args.results} gives.")
        return 0 if same else 1
    args.page.write_text(text, encoding="utf-8")
    for name, (draw, part) in charts_of(found).items():
        draw(part, args.page.with_name(f"{args.page.stem}-{name}.png"))
    return 0


def charts_of(found: Results) -> dict[str, tuple[Callable[[Results, Path], None], Results]]:
    """By the end of its file's name: what draws a chart, and from what."""

    def of(*cases: Case) -> Results:
        return Results(found.facts, found.of(*cases))

    all_threads = sorted({timing.case.threads for timing in found.timings})
    parts = {
        "classes": (charts.draw_class_sweep, of(*grid(["grad"], CLASS_SWEEP))),
        "rows": (charts.draw_row_sweep, of(*grid(["grad"], ROW_SWEEP))),
        "threads": (charts.draw_threads, of(*grid(["grad"], THREAD_SHAPES, threads=all_threads))),
        "memory": (charts.draw_memory, found),
    }
    return {
        name: (draw, part) for name, (draw, part) in parts.items() if part.timings and (name != "memory" or part.memory)
    }


def generate(found: Results, source: str, stem: str) -> str:
    chart = {name: f"{stem}-{name}.png" for name in charts_of(found)}
    sections = [
        introduction(found, source),
        how_measured(found),
        *[of_task(found, task) for task in TASKS],
        sweeps(chart),
        of_dtypes(found),
        of_small_calls(found),
        of_threads(found, chart),
        of_memory(found, chart),
        not_the_fastest(found),
        reproduce(source),
    ]
    return "\n\n".join(wrapped(block) for section in sections if section for block in section.split("\n\n")) + "\n"


def wrapped(block: str) -> str:
    """A paragraph or a list, filled to the width; all else as it is."""
    if block.startswith(("|", "#", "`", "<", "!", ".")):
        return block
    items = re.split(r"\n(?=- )", block)
    indent = "  " if block.startswith("- ") else ""
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for item in items
    )


def introduction(found: Results, source: str) -> str:
    facts = found.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    cache = ", ".join(f"{level} {size}" for level, size in facts["caches"].items()) or "unknown"
    return f"""# Speed and memory

<!-- Written by bench/page.py: change nothing here by hand. -->

Every figure below comes from one run on one machine, kept in
[`bench/results/{source}`](../bench/results/{source}). Times are given as ratios within that run, since they hold
further than times do; where a chart shows times, they are those of this run.

- CPU: {facts["cpu"]}, {count_cpus(facts["cpus"])}, data caches {cache}; {facts["system"]}
- softxent's level: `{facts["simd_level"]}`
- {versions}"""


def how_measured(found: Results) -> str:
    rounds = [timing.rounds for timing in found.timings]
    spreads = [timing.figures[SOFTXENT.name].spread for timing in found.timings if SOFTXENT.name in timing.figures]
    tolerances = ", ".join(f"{tolerance:.0e} in {dtype}" for dtype, tolerance in TOLERANCES.items())
    return f"""## How it is measured

- All contenders of a case work on the same arrays, in one process, in turn and in random order: {min(rounds)} to
  {max(rounds)} rounds here, at least {MIN_ROUNDS}. The figure of a round is the median of up to {MAX_SAMPLES} samples
  within {1e3 * BURST_SECONDS:g} ms, or of one, where a call takes longer. A ratio is the median of the ratios within
  each round.
- From end to end the middle half of softxent's times takes up {median(spreads):.0%} of their median in the median
  case, {max(spreads):.0%} in the worst.
- A result that is further from a float64 reference than {tolerances} gets no time (of a
  probability, of the loss, or of the gradient of one row; in float16 one subnormal number is added).
- Each peer is written the quickest way that its interface offers: NumPy with buffers that are used again, JAX compiled
  beforehand, no conversion between libraries. Labels are int64, the loss is the mean.
- The yardsticks have one thread: "copy" is `np.copyto(out, logits)`, which reads and writes what the loss with its
  gradient has to read and write; "read" is `logits.max()`, which reads what the loss has to read."""


def of_task(found: Results, task: Task) -> str:
    timings = found.of(*grid([task], SHAPES))
    return f"""## {TITLES[task].capitalize()}

float32, one thread. "/ copy" and "/ read": how many times as long as the yardstick softxent takes. The columns of the
peers: how many times as long as softxent each takes, so that above 1 softxent is quicker. {MARKS}

{table_of(timings, lambda timing: [timing.case.shape.title], ["rows x classes"])}

{summary(timings)}"""


def summary(timings: Sequence[Timing]) -> str:
    with_copy = [(ratio, t.case.shape.title) for t in timings if (ratio := own(t).to_copy) is not None]
    lines = []
    if with_copy:
        lines.append(f"- softxent: {from_to(with_copy)} times as long as a copy.")
    for name in present(timings):
        ratios = [(ratio, t.case.shape.title) for t in timings if (ratio := t.to_softxent(name)) is not None]
        if ratios:
            lines.append(f"- {name}: {from_to(ratios)} times as long as softxent.")
    return "\n".join(lines)


def from_to(ratios: Sequence[tuple[float, str]]) -> str:
    (least, at_least), (most, at_most) = min(ratios), max(ratios)
    return f"from {number(least)} ({at_least}) to {number(most)} ({at_most})"


def sweeps(chart: dict[str, str]) -> str:
    parts = []
    if "classes" in chart:
        parts.append(f"""## Against the number of classes

The same {SWEEP_LOGITS} logits, in float32 on one thread, from many narrow rows to few wide ones.

![Time per logit against the number of classes, for softxent and its peers]({chart["classes"]})""")
    if "rows" in chart:
        parts.append(f"""## Against the number of rows

{ROW_SWEEP_CLASSES} classes, float32, one thread: on the left, what a call costs by itself; on the right, what a row
does. "{SOFTXENT_KERNEL.name}" is the bare compiled call.

![Time per logit against the number of rows, for softxent and its peers]({chart["rows"]})""")
    return "\n\n".join(parts)


def of_dtypes(found: Results) -> str:
    timings = found.of(*grid(TASKS, DTYPE_SHAPES, DTYPES[1:]))
    if not timings:
        return ""
    timings.sort(key=lambda timing: (TASKS.index(timing.case.task), DTYPE_SHAPES.index(timing.case.shape)))

    def head(timing: Timing) -> list[str]:
        return [
            TITLES[timing.case.task],
            timing.case.shape.title,
            timing.case.dtype,
            inverse(timing.to_softxent(SOFTXENT_FLOAT32.name)),
        ]

    return f"""## Other dtypes

One thread. "/ float32": how many times as long as with the same logits in float32 softxent takes, both timed in
turn. The other columns are those of the tables above, within the dtype.

{table_of(timings, head, ["task", "rows x classes", "dtype", "/ float32"])}"""


def of_small_calls(found: Results) -> str:
    cases = grid(TASKS, [*ROW_SWEEP, *SHAPES])
    timings = [t for t in found.of(*dict.fromkeys(cases)) if t.to_softxent(SOFTXENT_KERNEL.name)]
    if not timings:
        return ""
    timings.sort(key=lambda timing: (TASKS.index(timing.case.task), timing.case.shape.size))
    rows = [
        [
            TITLES[timing.case.task],
            timing.case.shape.title,
            number(timing.to_softxent(SOFTXENT_KERNEL.name)),
            number(own(timing).to_copy),
            f"{1e6 * own(timing).seconds:.2f}",
        ]
        for timing in timings
    ]
    return f"""## Small calls

Where there is little to compute, Python's share of a call shows. "kernel / softxent" is the part of the bare compiled
call in the whole, "/ copy" the whole next to the copy; float32, one thread. The last column is a time, of this machine
and run.

{markdown(["task", "rows x classes", "kernel / softxent", "/ copy", "microseconds a call"], rows)}"""


def of_threads(found: Results, chart: dict[str, str]) -> str:
    several = sorted({timing.case.threads for timing in found.timings} - {1})
    timings = found.of(*grid(["grad"], THREAD_SHAPES, threads=several))
    if not timings:
        return ""
    timings.sort(key=lambda timing: (THREAD_SHAPES.index(timing.case.shape), timing.case.threads))

    def head(timing: Timing) -> list[str]:
        speed = charts.speed_to_one_thread(timing, SOFTXENT.name)
        return [timing.case.shape.title, str(timing.case.threads), number(speed)]

    picture = f"\n\n![Speed against the number of threads]({chart['threads']})" if "threads" in chart else ""
    return f"""## Threads

{TITLES["grad"].capitalize()}, float32. "speed-up": how many times as fast as softxent on one thread, both timed in
turn. The peers, compared with softxent as above, have as many threads as it; the copy has one.

{table_of(timings, head, ["rows x classes", "threads", "speed-up"])}{picture}"""


def of_memory(found: Results, chart: dict[str, str]) -> str:
    if not found.memory:
        return ""
    names = [SOFTXENT.name, *present(found.memory)]
    rows = [
        [
            TITLES[memory.case.task],
            memory.case.shape.title,
            f"{memory.logits_bytes / MIB:.1f}",
            *[f"{memory.used[name] / MIB:.1f}" if name in memory.used else without(memory, name) for name in names],
        ]
        for memory in found.memory
    ]
    return f"""## Memory

What one call takes beyond its inputs and its results, in MiB: the peak of the resident memory of a fresh process during
a call, after a first one, whoever allocates it; float32, one thread, good to about {RESOLUTION / MIB:.2g} MiB. A result
does not count, whether the caller gave the array for it or not; a temporary does, also where it is kept for the next
call.

{markdown(["task", "rows x classes", "logits", *names], rows)}

![Memory beyond inputs and results]({chart["memory"]})"""


def not_the_fastest(found: Results) -> str:
    """Whoever is quicker than softxent, or cannot be told from it, or failed; and what was timed on busy CPUs."""
    rivals = [peer.name for peer in PEERS if peer is not SOFTMAX_ONLY] + [SOFTXENT_ONE_THREAD.name]
    quicker = where(found, rivals, [True])
    close = where(found, rivals, [None])
    less_work = where(found, [SOFTMAX_ONLY.name], [True, None])
    failed = [f"{title(one.case)}: {name}: {why}" for one in found.timings for name, why in one.failed.items()]
    failed += [f"memory, {title(one.case)}: {name}: {why}" for one in found.memory for name, why in one.failed.items()]
    busy = [f"{title(t.case)}: {t.others:.0%}" for t in found.timings if t.others is not None and t.others > BUSY]
    n_cases = len(found.timings)
    return f"""## Where softxent is not the fastest

Of all {n_cases} cases that were timed, those of the charts too. A figure is the time of the other as a multiple of
softxent's, in parentheses that of the middle half of the rounds. The yardsticks are not counted among the others.

### Another is quicker: {len(quicker)} of {n_cases}

{bullets(quicker)}

### Too close to say: {len(close)} of {n_cases}

{bullets(close)}

### {SOFTMAX_ONLY.name}, which does less, is quicker or close: {len(less_work)} of {n_cases}

{bullets(less_work)}

### No figure, because the result was wrong or there was none: {len(failed)}

{bullets(failed)}

### Timed while other work had more than {BUSY:.0%} of the CPUs: {len(busy)} of {n_cases}

{bullets(busy)}"""


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


def reproduce(source: str) -> str:
    return f"""## How to reproduce

```sh
python3 -m venv .venv && .venv/bin/python -m pip install ".[bench]"
.venv/bin/python bench/bench.py --full    # names the file that it writes in bench/results
.venv/bin/python bench/page.py bench/results/{source}    # of that file, writes this page and its charts
```

A full run takes a quarter of an hour or more; let the machine do nothing else meanwhile. Single cases:

```sh
.venv/bin/python bench/bench.py --shapes 1024x1000,8x21x256x256@1 --dtypes float32,bfloat16 --threads 1,2
.venv/bin/python bench/bench.py --shapes 1024x1000 --memory
```"""


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
        yardsticks = [number(own(timing).to_copy), *([number(own(timing).to_read)] if with_read else [])]
        rows.append([*head(timing), *yardsticks, *[cell(timing, name) for name in peers]])
    return markdown([*columns, "/ copy", *(["/ read"] if with_read else []), *peers], rows)


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


def inverse(ratio: float | None) -> str:
    return NONE if ratio is None else number(1 / ratio)


def title(case: Case) -> str:
    return f"{TITLES[case.task]}, {case.shape.title}, {case.dtype}, {count_threads(case.threads)}"


def bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items or ["none"])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count_cpus(cpus: int) -> str:
    return "1 CPU" if cpus == 1 else f"{cpus} CPUs"


if __name__ == "__main__":
    sys.exit(main())
