"""Writes docs/performance.md and its charts from the results of a full run of bench.py.

Every figure on the page is taken from the results, in its sentences too: change nothing on it by hand. `--check` writes
nothing; it says whether the page is what these results give.
"""

import argparse
import math
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
from machine import BUSY
from measure import BURST_SECONDS, MAX_SAMPLES, MIN_ROUNDS, Figures, Timing
from memory import MIB, RESOLUTION, Memory
from peers import (
    PEERS,
    SOFTMAX_ONLY,
    SOFTXENT,
    SOFTXENT_FLOAT32,
    SOFTXENT_KERNEL,
    SOFTXENT_ONE_THREAD,
    TOLERANCES,
)
from resultset import Results

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
NONE = "-"
TITLES = charts.TASK_TITLES
COLUMNS = f"""- "/ copy" and "/ read": time of softxent / time of the yardstick.
- The column of a peer: softxent is this many times as fast as the peer. Above 1, softxent is faster.
- **Bold**: the peer is faster than softxent. `~`: too close to say; neither was faster in three quarters of the rounds.
- `{NONE}`: the peer does not take part. `failed`: see the end of the page.
- {SOFTMAX_ONLY.name} computes the probabilities only, neither loss nor gradient."""
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

All figures come from one run on one machine. The run is stored in
[`bench/results/{source}`](../bench/results/{source}). The tables give ratios within that run, because ratios carry over
to other machines better than times. The charts show the times of this run.

- CPU: {facts["cpu"]}, {count_cpus(facts["cpus"])}, data caches {cache}; {facts["system"]}
- softxent's level: `{facts["simd_level"]}`
- {versions}"""


def how_measured(found: Results) -> str:
    rounds = [timing.rounds for timing in found.timings]
    spreads = [timing.figures[SOFTXENT.name].spread for timing in found.timings if SOFTXENT.name in timing.figures]
    tolerances = ", ".join(f"{tolerance:.0e} in {dtype}" for dtype, tolerance in TOLERANCES.items())
    return f"""## How it is measured

- All contenders of a case work on the same arrays, in one process, in turn and in random order: {min(rounds)} to
  {max(rounds)} rounds in this run, at least {MIN_ROUNDS}.
- The figure of a round is the median of up to {MAX_SAMPLES} samples within {1e3 * BURST_SECONDS:g} ms, or one sample if
  a call takes longer. A ratio is the median of the ratios of all rounds.
- Spread: the middle half of softxent's times is {median(spreads):.0%} of their median wide in the median case, and
  {max(spreads):.0%} in the worst case.
- A wrong result gets no time. It is wrong if the probability, the loss or the gradient of one row is further from a
  float64 reference than {tolerances}. In float16 one subnormal number is added.
- Each peer is written in the fastest way that its interface offers: NumPy uses its buffers again, JAX is compiled
  beforehand, and no array is converted between libraries. Labels are int64, the loss is the mean.
- The yardsticks have one thread. "copy" is `np.copyto(out, logits)`: it reads and writes as much as loss and gradient
  must. "read" is `logits.max()`: it reads as much as the loss must."""


def of_task(found: Results, task: Task) -> str:
    timings = found.of(*grid([task], SHAPES))
    return f"""## {TITLES[task].capitalize()}

float32, one thread.

{COLUMNS}

{table_of(timings, lambda timing: [timing.case.shape.title], ["rows x classes"])}

{summary(timings)}"""


def summary(timings: Sequence[Timing]) -> str:
    with_copy = [(ratio, t.case.shape.title) for t in timings if (ratio := own(t).to_copy) is not None]
    lines = []
    if with_copy:
        lines.append(f"- softxent takes {from_to(with_copy)} times as long as a copy.")
    for name in present(timings):
        ratios = [(ratio, t.case.shape.title) for t in timings if (ratio := t.to_softxent(name)) is not None]
        if ratios:
            lines.append(f"- softxent is {from_to(ratios)} times as fast as {name}.")
    return "\n".join(lines)


def from_to(ratios: Sequence[tuple[float, str]]) -> str:
    (least, at_least), (most, at_most) = min(ratios), max(ratios)
    return f"{number(least)} ({at_least}) to {number(most)} ({at_most})"


def sweeps(chart: dict[str, str]) -> str:
    parts = []
    if "classes" in chart:
        parts.append(f"""## Against the number of classes

Always {SWEEP_LOGITS} logits: on the left many short rows, on the right few long ones. float32, one thread.

![Time per logit against the number of classes, for softxent and its peers]({chart["classes"]})""")
    if "rows" in chart:
        parts.append(f"""## Against the number of rows

{ROW_SWEEP_CLASSES} classes, float32, one thread. The left end shows the cost of a call, the right end the
cost of a row. "{SOFTXENT_KERNEL.name}" is the compiled call alone.

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

One thread. "/ float32": time of softxent with this dtype / its time with the same logits in float32, both timed in
turn. The other columns are those of the tables above; all contenders have the same dtype.

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

A small call computes little, so Python's part of it counts. "kernel / softxent": time of the compiled call alone / time
of the whole call. "/ copy": time of the whole call / time of the copy. float32, one thread. The last column is a time,
on this machine in this run.

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

{TITLES["grad"].capitalize()}, float32. "speed-up": time of softxent on one thread / its time on these threads, both
timed in turn. The other columns are those of the tables above. The peers have as many threads as
softxent; the copy has one.

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
            *best_in_bold(
                [f"{memory.used[name] / MIB:.1f}" if name in memory.used else without(memory, name) for name in names]
            ),
        ]
        for memory in found.memory
    ]
    return f"""## Memory

The memory of one call without its inputs and its results, in MiB. float32, one thread. It is the peak of the resident
memory of a fresh process during its second call, whoever allocates it, good to about {RESOLUTION / MIB:.2g} MiB. A
result does not count, whoever gave the array for it. A temporary counts, also if it is kept for the next call.
**Bold**: the least memory.

{markdown(["task", "rows x classes", "logits", *names], rows)}

![Memory beyond inputs and results]({chart["memory"]})

### The scratch rows of softxent

`cross_entropy` and `value_and_grad` allocate nothing that grows with the number of rows, besides their results. Most
calls allocate nothing that grows with the number of classes either. Some calls need *scratch rows*: one to three rows
of $C$ numbers for each thread, float64 if the logits are computed in float64, else float32. Up to 100 classes no call
needs them. With more classes, a call may need them if one of these is true:

- rows cannot be loaded or stored as they are: half precision, integers, another byte order, unaligned memory, an `out`
  of another dtype, classes that are not next to each other in memory (strides, or a class axis that is not last);
- distributions have another dtype or layout than the logits are computed in;
- the call has `where` or `softcap`, or `weight` together with `label_smoothing`; or it computes the loss alone and has
  a `temperature`;
- the gradient has 4 million entries or more, at least 16384 classes, and is not written over the logits.

A call with only one of the first two needs them from about 250 to 500 classes on. Threads that share one long row share
its scratch row. There is one more case: if `out` overlaps an input and is not the logits themselves, the call makes a
temporary copy of the gradient."""


def not_the_fastest(found: Results) -> str:
    """Who is faster than softxent, or too close to say, or failed; and what was timed on busy CPUs."""
    rivals = [peer.name for peer in PEERS if peer is not SOFTMAX_ONLY] + [SOFTXENT_ONE_THREAD.name]
    faster = where(found, rivals, [True])
    close = where(found, rivals, [None])
    less_work = where(found, [SOFTMAX_ONLY.name], [True, None])
    failed = [f"{title(one.case)}: {name}: {why}" for one in found.timings for name, why in one.failed.items()]
    failed += [f"memory, {title(one.case)}: {name}: {why}" for one in found.memory for name, why in one.failed.items()]
    busy = [f"{title(t.case)}: {t.others:.0%}" for t in found.timings if t.others is not None and t.others > BUSY]
    n_cases = len(found.timings)
    return f"""## Where softxent is not the fastest

This list covers all {n_cases} timed cases, the charts included. A figure is the time of the other / the time of
softxent; in parentheses is the range of the middle half of the rounds. The yardsticks do not count as others.

### Another is faster: {len(faster)} of {n_cases}

{bullets(faster)}

### Too close to say: {len(close)} of {n_cases}

{bullets(close)}

### {SOFTMAX_ONLY.name}, which computes less, is faster or close: {len(less_work)} of {n_cases}

{bullets(less_work)}

### No figure, because the result was wrong or missing: {len(failed)}

{bullets(failed)}

### Timed while other programs used more than {BUSY:.0%} of the CPUs: {len(busy)} of {n_cases}

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
.venv/bin/python bench/bench.py --full    # prints the name of the file that it writes to bench/results
.venv/bin/python bench/page.py bench/results/{source}    # writes this page and its charts from that file
```

A full run takes 15 minutes or more. Run nothing else on the machine meanwhile. To measure single cases:

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


def best_in_bold(cells: Sequence[str], truth: float = 0.0) -> list[str]:
    """Those of these cells whose number is nearest to the truth become bold, if any is a finite number."""

    def distance(cell: str) -> float:
        try:
            return abs(float(cell) - truth)
        except ValueError:
            return math.inf

    distances = [distance(cell) for cell in cells]
    nearest = min((each for each in distances if math.isfinite(each)), default=None)
    return [f"**{cell}**" if each == nearest else cell for cell, each in zip(cells, distances, strict=True)]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count_cpus(cpus: int) -> str:
    return "1 CPU" if cpus == 1 else f"{cpus} CPUs"


if __name__ == "__main__":
    sys.exit(main())
