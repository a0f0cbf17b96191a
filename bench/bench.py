"""How fast is softxent, next to copying its input and to every peer that is installed?

Times the mean softmax cross-entropy of labelled logits with its gradient ("grad") and without ("forward"), again and
again on the same arrays, all contenders in one process for each number of threads; `measure.py` tells how. A result is
checked against float64 first, and gets no time if it is wrong. The yardstick, `np.copyto(out, logits)`, always has one
thread. Not measured: arrays that no cache holds, first calls, compilation, conversion between libraries, memory.
SOFTXENT_SIMD chooses the level as ever; to choose the CPUs, start this under taskset.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TypeVar

from measure import Case, Record, measure
from peers import COPY, PEERS, SOFTXENT, TASKS, TOLERANCES
from report import draw, gather_facts, header, table

T = TypeVar("T")

SHAPES = [(1024, 1000), (128, 1000), (32, 10), (256, 50257), (200_000, 10)]
QUICK_SHAPES = SHAPES[:3]
SECONDS, QUICK_SECONDS = 6.0, 1.0
SWEEP_LOGITS = 2**20
SWEEP_SHAPES = [(SWEEP_LOGITS >> power, 1 << power) for power in range(1, 18, 2)]
CAN_PIN = hasattr(os, "sched_setaffinity")


def main() -> int:
    args = parse_arguments()
    peers = [peer for peer in args.peers if peer.installed]
    records: list[Record] = []
    facts: dict[str, object] = {}
    for threads in args.threads:
        with worker(threads) as pool:
            if not facts:
                facts = pool.submit(gather_facts, [SOFTXENT, COPY, *peers]).result()
                facts["pinning"] = "pinned to a CPU per thread" if CAN_PIN else "not pinned to CPUs"
                print(header(facts, [peer for peer in args.peers if not peer.installed]))
            for task, dtype, (n_rows, n_classes) in product(args.tasks, args.dtypes, args.shapes):
                case = Case(task, n_rows, n_classes, dtype, threads)
                found = pool.submit(measure, case, peers, args.seconds).result()
                print(table(found), flush=True)
                records += found
    if args.json:
        content = {"facts": facts, "records": [record.flat() for record in records]}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        draw(records, facts, args.plot)
    return 1 if any(record.error for record in records) else 0


@contextmanager
def worker(threads: int) -> Iterator[Executor]:
    """A fresh process in which no library can have more threads than this, on as many CPUs where the system can do it.

    Some thread pools take their size from the environment or the CPUs when they start, and XLA's keeps it for good. So
    the limits are set here, for the new process to inherit.
    """
    # NPROC is what XLA reads. The rest keeps jax off any GPU and lets it see float64 as such.
    os.environ.update(OMP_NUM_THREADS=str(threads), NPROC=str(threads), JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")
    cpus = usable_cpus()
    pin(cpus[:threads])
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        pin(cpus)


def usable_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if CAN_PIN else list(range(os.cpu_count() or 1))


def pin(cpus: list[int]) -> None:
    if CAN_PIN:
        os.sched_setaffinity(0, cpus)


def parse_arguments() -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Lists are separated by commas. The exit status is 1 if a result was wrong.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shapes", type=list_of(shape), metavar="NxC,...", help=f"rows x classes ({as_text(SHAPES)})")
    what.add_argument(
        "--plot",
        type=writeable_file,
        metavar="FILE.png",
        help=f"instead of shapes, vary the number of classes at {SWEEP_LOGITS} logits and draw the time per logit",
    )
    add_list(parser, "--tasks", one_of(TASKS), TASKS, "with the gradient, and without")
    add_list(parser, "--dtypes", one_of(list(TOLERANCES)), ["float32"], "of float32, float64")
    add_list(parser, "--threads", thread_count, [1], "how many threads each contender may use")
    add_list(parser, "--peers", one_of(names), names, "empty for none")
    parser.add_argument("--json", type=writeable_file, metavar="FILE", help="also write everything there")
    parser.add_argument("--seconds", type=float, help=f"for how long to time each case ({SECONDS:g})")
    quick = f"for a first look: {as_text(QUICK_SHAPES)}, and {QUICK_SECONDS:g} second for each case"
    parser.add_argument("--quick", action="store_true", help=quick)

    args = parser.parse_args()
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    if not args.shapes:
        args.shapes = SWEEP_SHAPES if args.plot else QUICK_SHAPES if args.quick else SHAPES
    if args.seconds is None:
        args.seconds = QUICK_SECONDS if args.quick else SECONDS
    args.peers = [peer for peer in PEERS if peer.name in args.peers]
    return args


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


def shape(item: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", item)
    if not found:
        raise argparse.ArgumentTypeError(f"{item!r} is not rows x classes, such as 1024x1000")
    return int(found[1]), int(found[2])


def as_text(shapes: Sequence[tuple[int, int]]) -> str:
    return ",".join(f"{n_rows}x{n_classes}" for n_rows, n_classes in shapes)


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
