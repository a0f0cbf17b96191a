"""How fast is softxent, next to copying its input and to every peer that is installed?

Times the mean softmax cross-entropy of labelled logits with its gradient ("grad") and without ("forward"), the
softmax family and second derivatives, again and again on the same arrays, all contenders in one process for each
number of threads; `measure.py` tells how. A result is checked against float64 first, and gets no time if it is
wrong. The yardsticks always have one thread: `np.copyto(out, logits)`, `logits.max()` over contiguous memory
("read") for the loss alone, and as many exponentials of numbers in the cache; "bound" is the copy or the read, then
the exponentials. Small shapes show the bare compiled call too ("softxent-kernel"), other dtypes softxent in
float32. `--memory` looks at memory instead, as `memory.py` tells. Not measured: first calls, compilation,
conversion between libraries. SOFTXENT_SIMD chooses the level as ever; to choose the CPUs, start this under taskset.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import groupby, product
from pathlib import Path
from typing import TypeVar
from unittest import mock

import memory
import options
from cases import DTYPES, QUICK_SHAPES, SHAPES, TASKS, Case, Shape, full_memory_run, full_run, grid
from machine import CAN_PIN, gather_facts, pin, usable_cpus
from measure import measure
from peers import COPY, PEERS, SOFTXENT, Contender
from report import header, table, table_of_memory
from resultset import RESULTS, Results, file_name

T = TypeVar("T")

SECONDS, QUICK_SECONDS = 6.0, 1.0


def main() -> int:
    args = parse_arguments()
    peers = [peer for peer in args.peers if peer.installed]
    with worker(1) as pool:
        facts = pool.submit(gather_facts, [SOFTXENT, COPY, *peers]).result()
    facts |= {"cpus": len(usable_cpus()), "pinning": "pinned to a CPU per thread" if CAN_PIN else "not pinned to CPUs"}
    print(header(facts, [peer for peer in args.peers if not peer.installed]))

    found = Results(facts)
    for threads, cases in groupby(args.cases, key=lambda case: case.threads):
        with worker(threads) as pool:
            for case in cases:
                found.timings.append(pool.submit(measure, case, those_with(case, peers), args.seconds).result())
                print(table(found.timings[-1]), flush=True)
    for shape, group in args.cost_cases:
        with worker(1) as pool:
            found.costs.append(pool.submit(options.measure_costs, shape, group, options.SECONDS).result())
        print(options.table(found.costs[-1]), flush=True)
    for case in args.memory_cases:
        found.memory.append(memory.measure_memory(case, [SOFTXENT, *those_with(case, peers)], in_fresh_process))
        print(table_of_memory(found.memory[-1]), flush=True)

    if args.full or args.json:
        path = args.json or RESULTS / file_name(facts)
        found.save(path)
        print(f"\nWritten: {path}")
    return 1 if found.own_failures() else 0


def those_with(case: Case, peers: Sequence[Contender]) -> list[Contender]:
    """The peers that have the task of a case at all."""
    return [peer for peer in peers if case.task in peer.tasks]


def in_fresh_process(case: Case, contender: Contender) -> int:
    with worker(case.threads, memory.ENVIRONMENT) as pool:
        return pool.submit(memory.bytes_beyond, case, contender).result()


@contextmanager
def worker(threads: int, environment: Mapping[str, str] | None = None) -> Iterator[Executor]:
    """A fresh process in which no library can have more threads than this, on as many CPUs where the system can do it.

    Some thread pools take their size from the environment or the CPUs when they start, and XLA's keeps it for good. So
    the limits are set here, for the new process to inherit.
    """
    # NPROC is what XLA reads. The rest keeps jax off any GPU and lets it see float64 as such.
    limits = {"OMP_NUM_THREADS": str(threads), "NPROC": str(threads), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    cpus = usable_cpus()
    pin(cpus[:threads])
    try:
        with (
            mock.patch.dict(os.environ, {**limits, **(environment or {})}),
            ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool,
        ):
            yield pool
    finally:
        pin(cpus)


def parse_arguments() -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Lists are separated by commas. The exit status is 1 if softxent was wrong or failed.",
    )
    what = parser.add_mutually_exclusive_group()
    about = f"rows x classes, or all axes@the class axis ({as_text(SHAPES)})"
    what.add_argument("--shapes", type=list_of(shape), metavar="NxC,AxBxC@1,...", help=about)
    about = (
        "instead of shapes, tasks, dtypes and threads: all that docs/performance.md shows, memory and options too,"
        " written to bench/results unless --json says otherwise"
    )
    what.add_argument("--full", action="store_true", help=about)
    add_list(parser, "--tasks", one_of(TASKS), TASKS, "loss with gradient, loss alone, and the other results")
    add_list(parser, "--dtypes", one_of(DTYPES), DTYPES[:1], f"of {', '.join(DTYPES)}")
    add_list(parser, "--threads", thread_count, [1], "how many threads each contender may use")
    add_list(parser, "--peers", one_of(names), names, "empty for none")
    parser.add_argument("--memory", action="store_true", help="what a call takes beyond inputs and results, no times")
    parser.add_argument("--json", type=writeable_file, metavar="FILE", help="also write everything there")
    parser.add_argument("--seconds", type=float, help=f"for how long to time each case ({SECONDS:g})")
    quick = f"for a first look: {as_text(QUICK_SHAPES)}, and {QUICK_SECONDS:g} second for each case"
    parser.add_argument("--quick", action="store_true", help=quick)

    args = parser.parse_args()
    if (args.memory or args.full) and not memory.AVAILABLE:
        parser.error("memory can be watched on Linux only, in /proc/self/clear_refs")
    if args.seconds is None:
        args.seconds = QUICK_SECONDS if args.quick else SECONDS
    args.peers = [peer for peer in PEERS if peer.name in args.peers]
    add_cases(args)
    return args


def add_cases(args: argparse.Namespace) -> None:
    """What is to be timed, and what to be watched for memory."""
    args.cost_cases = []
    if args.full:
        args.cases, args.memory_cases = full_run(len(usable_cpus())), full_memory_run()
        args.cost_cases = [*product(options.OPTION_SHAPES, options.GROUPS)]
        return
    chosen = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    cases = grid(args.tasks, chosen, args.dtypes, args.threads)
    args.cases, args.memory_cases = ([], cases) if args.memory else (cases, [])


def add_list(
    parser: argparse.ArgumentParser, flag: str, convert: Callable[[str], T], default: Sequence[T], about: str
) -> None:
    joined = ",".join(map(str, default))
    parser.add_argument(flag, type=list_of(convert), default=default, metavar="A,B,...", help=f"{about} ({joined})")


def list_of(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    return lambda text: [convert(item) for item in text.split(",") if item]


def one_of(allowed: Sequence[T]) -> Callable[[str], T]:
    by_name = {str(value): value for value in allowed}

    def convert(item: str) -> T:
        if item not in by_name:
            raise argparse.ArgumentTypeError(f"{item!r} is not one of {', '.join(by_name)}")
        return by_name[item]

    return convert


def shape(item: str) -> Shape:
    try:
        return Shape.parse(item)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_text(shapes: Sequence[Shape]) -> str:
    return ",".join(map(str, shapes))


def thread_count(item: str) -> int:
    available = len(usable_cpus())
    if not item.isdecimal() or not 1 <= int(item) <= available:
        raise argparse.ArgumentTypeError(f"{item!r} is not between 1 and {available}, the CPUs that this process has")
    return int(item)


def writeable_file(text: str) -> Path:
    """Refused now rather than after the run."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


if __name__ == "__main__":
    sys.exit(main())
