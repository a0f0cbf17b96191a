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

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from timeit import Timer
from typing import Any

from cases import Case
from machine import OthersWatch
from peers import COPY, EXPONENTIALS, READ, SOFTXENT, Contender, yardsticks
from problems import Problem, find_error, reference

SAMPLE_SECONDS = 200e-6  # a quick call is repeated for this long in one sample; reading the clock costs about 0.1 us
BURST_SECONDS = 20e-3
MAX_SAMPLES = 5
PAUSE_SECONDS = 5e-3
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Figures:
    """The times of one contender in one case, and their ratios within a round to those of others."""

    seconds: float
    spread: float  # the middle half of the rounds, from end to end, in units of their median
    to_copy: float | None = None
    to_read: float | None = None
    # To the least that it takes: the copy, or for the loss alone the read, and the exponentials, one after the other.
    to_bound: float | None = None
    to_softxent: float | None = None
    # Between these lies the ratio to softxent in the middle half of the rounds.
    lower: float | None = None
    upper: float | None = None

    @property
    def faster_than_softxent(self) -> bool | None:
        """In three quarters of the rounds or more; None if that can be said neither of it nor of softxent."""
        if self.lower is None or self.upper is None or self.lower <= 1 <= self.upper:
            return None
        return self.upper < 1


@dataclass(frozen=True)
class Timing:
    """One case: the figures of those that computed it, and why others have none."""

    case: Case
    rounds: int
    others: float | None  # the share of this process's CPUs that went to others meanwhile
    figures: dict[str, Figures]
    failed: dict[str, str]
    absent: dict[str, str]

    @property
    def names(self) -> set[str]:
        return {*self.figures, *self.failed, *self.absent}

    def ns_per_logit(self, name: str) -> float:
        return 1e9 * self.figures[name].seconds / self.case.shape.size

    def to_softxent(self, name: str) -> float | None:
        return self.figures[name].to_softxent if name in self.figures else None

    def flat(self) -> dict[str, Any]:
        figures = {name: compact(asdict(of_name)) for name, of_name in self.figures.items()}
        rest = {"rounds": self.rounds, "others": self.others, "failed": self.failed, "absent": self.absent}
        return {**self.case.flat(), **compact(rest), "figures": figures}

    @classmethod
    def unflat(cls, fields: Mapping[str, Any]) -> "Timing":
        figures = {name: Figures(**of_name) for name, of_name in fields["figures"].items()}
        without = fields.get("failed", {}), fields.get("absent", {})
        return cls(Case.unflat(fields), fields["rounds"], fields.get("others"), figures, *without)


def compact(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty, and with four digits of what is not whole."""
    kept = {name: value for name, value in fields.items() if value is not None and value != {}}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in kept.items()}


def measure(case: Case, peers: Sequence[Contender], seconds: float) -> Timing:
    """Figures of softxent, the yardsticks and the peers; `seconds` is how long the timing lasts."""
    absent = {peer.name: why for peer in peers if (why := peer.refusal(case))}
    present = [peer for peer in peers if peer.name not in absent]
    calls, failed = enter_all(case, [SOFTXENT, *yardsticks(case), *present])
    watch = OthersWatch()
    rounds = time_in_rounds(calls, seconds)
    others = watch.share()
    figures = {name: figures_of(name, rounds) for name in rounds}
    return Timing(case, max(map(len, rounds.values()), default=0), others, figures, failed, absent)


def enter_all(case: Case, contenders: Sequence[Contender]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The calls of those whose results are right, and what is wrong with the others, by name."""
    problem = Problem.random(case)
    right = reference(problem)
    calls, failed = {}, {}
    for contender in contenders:
        try:
            entry = contender.enter(problem)
            error = find_error(entry, problem, right)
        except Exception as failure:  # such as a private interface that moved: the others still get their figures
            error = f"{type(failure).__name__}: {failure}"
        if error is None:
            calls[contender.name] = entry.call
        else:
            failed[contender.name] = error
    return calls, failed


def time_in_rounds(
    calls: Mapping[str, Callable[[], Any]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of each burst; both lists of two calls are in the order of the rounds."""
    bursts = [(name, Burst(call, clock)) for name, call in calls.items()]
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

    def __init__(self, call: Callable[[], Any], clock: Callable[[], float]) -> None:
        self._timer = Timer(call, timer=clock)  # keeps the garbage collector out, too
        self._calls = 1
        while (seconds := min(self._timer.repeat(2, self._calls))) < SAMPLE_SECONDS:
            self._calls *= 2
        self._samples = min(MAX_SAMPLES, max(1, int(BURST_SECONDS / seconds)))

    def seconds_per_call(self) -> float:
        time.sleep(PAUSE_SECONDS)
        self._timer.timeit(self._calls)
        return median(self._timer.repeat(self._samples, self._calls)) / self._calls


def figures_of(name: str, rounds: Mapping[str, Sequence[float]]) -> Figures:
    def ratio_to(*others: str) -> list[float | None]:
        """The quartiles of the ratio to these together."""
        if not all(other in rounds for other in others):
            return [None] * 3
        together = map(sum, zip(*(rounds[other] for other in others), strict=True))
        ratios = [own / theirs for own, theirs in zip(rounds[name], together, strict=True)]
        return [*quantiles(ratios, n=4, method="inclusive")]

    lower, seconds, upper = quantiles(rounds[name], n=4, method="inclusive")
    copy, read, softxent = ratio_to(COPY.name), ratio_to(READ.name), ratio_to(SOFTXENT.name)
    bound = ratio_to(READ.name if READ.name in rounds else COPY.name, EXPONENTIALS.name)
    return Figures(
        seconds,
        spread=(upper - lower) / seconds,
        to_copy=copy[1],
        to_read=read[1],
        to_bound=bound[1],
        to_softxent=softxent[1],
        lower=softxent[0],
        upper=softxent[2],
    )
