"""One case, measured: every contender checked, then all of them timed against each other on a machine that may be busy.

In each of many rounds every call gets one burst, in random order, so that a slow second of the machine hits all alike.
Before a burst comes a pause, in which the idle threads of the runtime that ran last stop spinning (on few cores they
would slow the next one), and a sample that is not counted, which wakes the call's own threads and refills its caches.
The figure of a burst is the median of its samples, not the best: page faults and allocation fall on some calls and not
on others, and the best would leave them out for whoever allocates. What that does not forgive, other work on the
machine, the median over the rounds does. A ratio is the median of the ratios within each round, so it may differ a
little from the quotient of two medians.

One thing no median cures: another process that wants a CPU of a team of threads. The team then waits for time slices,
OpenMP's most of all, and a call of microseconds takes milliseconds, steadily. So what others took is measured too.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from timeit import Timer
from typing import Any

from peers import COPY, SOFTXENT, SOFTXENT_ONE_THREAD, Contender, Problem, Task, find_error, reference

SAMPLE_SECONDS = 200e-6  # a quick call is repeated for this long in one sample; reading the clock costs about 0.1 us
BURST_SECONDS = 20e-3
MAX_SAMPLES = 5
PAUSE_SECONDS = 5e-3
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    task: Task
    n_rows: int
    n_classes: int
    dtype: str
    threads: int

    def __str__(self) -> str:
        return f"{self.task}  {self.n_rows} x {self.n_classes}  {self.dtype}  {count_threads(self.threads)}"


@dataclass(frozen=True)
class Record:
    """What one contender did in one case: its figures, or what is wrong with it."""

    case: Case
    contender: str
    error: str | None = None
    rounds: int = 0
    seconds: float | None = None
    spread: float | None = None  # the middle half of the rounds, from end to end, in units of their median
    ns_per_logit: float | None = None
    ratio_to_copy: float | None = None
    ratio_to_softxent: float | None = None
    others: float | None = None  # the share of this process's CPUs that went to others meanwhile

    def flat(self) -> dict[str, Any]:
        fields = asdict(self)
        return {**fields.pop("case"), **fields}


def count_threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def measure(case: Case, peers: Sequence[Contender], seconds: float) -> list[Record]:
    """Figures of softxent, the copy and the peers; `seconds` is how long the timing lasts."""
    one_thread = (SOFTXENT_ONE_THREAD,) if case.threads > 1 else ()
    calls, errors = enter_all(case, (SOFTXENT, *one_thread, COPY, *peers))
    watch = OthersWatch()
    rounds = time_in_rounds(calls, seconds)
    others = watch.share()
    timed = [make_record(case, name, rounds, others) for name in rounds]
    return timed + [Record(case, name, error) for name, error in errors.items()]


def enter_all(case: Case, contenders: Sequence[Contender]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The calls of those whose results are right, and what is wrong with the others, by name."""
    problem = Problem.random(case.task, (case.n_rows, case.n_classes), case.dtype, case.threads)
    right = reference(problem)
    calls, errors = {}, {}
    for contender in contenders:
        try:
            entry = contender.enter(problem)
            error = find_error(entry, right)
        except Exception as failure:  # such as a private interface that moved: the others still get their figures
            error = f"{type(failure).__name__}: {failure}"
        if error is None:
            calls[contender.name] = entry.call
        else:
            errors[contender.name] = error
    return calls, errors


def time_in_rounds(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each burst; both lists of two calls are in the order of the rounds."""
    bursts = [(name, Burst(call)) for name, call in calls.items()]
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    deadline = time.perf_counter() + seconds
    n_rounds = 0
    while n_rounds < MIN_ROUNDS or time.perf_counter() < deadline:
        shuffle(bursts)
        for name, burst in bursts:
            rounds[name].append(burst.seconds_per_call())
        n_rounds += 1
    return rounds


class Burst:
    """A call, and how often a burst repeats it: `_samples` times a sample of `_calls` calls."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._timer = Timer(call)  # keeps the garbage collector out, too
        self._calls = 1
        while (seconds := min(self._timer.repeat(2, self._calls))) < SAMPLE_SECONDS:
            self._calls *= 2
        self._samples = min(MAX_SAMPLES, max(1, int(BURST_SECONDS / seconds)))

    def seconds_per_call(self) -> float:
        time.sleep(PAUSE_SECONDS)
        self._timer.timeit(self._calls)
        return median(self._timer.repeat(self._samples, self._calls)) / self._calls


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


def make_record(case: Case, name: str, rounds: Mapping[str, Sequence[float]], others: float | None) -> Record:
    def ratio_to(other: str) -> float | None:
        if other not in rounds:
            return None
        return median(own / theirs for own, theirs in zip(rounds[name], rounds[other], strict=True))

    lower, seconds, upper = quantiles(rounds[name], n=4, method="inclusive")
    return Record(
        case,
        name,
        rounds=len(rounds[name]),
        seconds=seconds,
        spread=(upper - lower) / seconds,
        ns_per_logit=1e9 * seconds / (case.n_rows * case.n_classes),
        ratio_to_copy=ratio_to(COPY.name),
        ratio_to_softxent=ratio_to(SOFTXENT.name),
        others=others,
    )
