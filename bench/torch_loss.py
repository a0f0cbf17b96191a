"""What does a training step gain if the loss comes from softxent.torch? And what memory does the loss take?

Times `torch.nn.functional.cross_entropy` and `softxent.torch.cross_entropy`, mean over the rows: forward and backward,
the loss alone, and forward and backward with "none" and a weight for each row. Both get the same tensors, in rounds as
`measure.py` tells. One thread is timed by its own CPU time, several by the clock on the wall. The table has the time of
PyTorch in microseconds, and how many times as fast softxent is.

With `--memory`, what the process takes at its peak beyond the logits, in units of their size, as `memory.py` tells;
each figure comes from a fresh process.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from cases import Shape, shapes
from machine import cpu_model
from measure import figures_of, time_in_rounds
from memory import AVAILABLE, CLEAR_REFS, ENVIRONMENT, PR_SET_THP_DISABLE, RESET_PEAK, peak_of_resident
from torch.nn import functional

import softxent as sx
from softxent import _dispatch
from softxent.torch import cross_entropy

SMALL = "1x2 2x2 8x3 32x10 64x100 16x1000 1000x2 600x10 500x100 128x1000 8x10000 1x21x64x64@1"
LARGE = "1024x10 1024x1000 256x50257 200000x10 8x21x256x256@1"
SECONDS = 4.0
LOSSES: dict[str, Callable[..., Any]] = {"softxent": cross_entropy, "PyTorch": functional.cross_entropy}
TASKS = ("grad", "forward", "rows")


def problem(shape: Shape, dtype: str) -> tuple[Any, Any]:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape.axes, generator=rng)
    labels = torch.randint(shape.n_classes, shape.of_labels, generator=rng)
    return logits.to(getattr(torch, dtype)).requires_grad_(), labels


def call(task: str, loss: Callable[..., Any], shape: Shape, dtype: str) -> Callable[[], Any]:
    logits, labels = problem(shape, dtype)
    weights = torch.rand(shape.of_labels)

    def forward() -> Any:
        with torch.no_grad():
            return loss(logits, labels)

    def grad() -> Any:
        return torch.autograd.grad(loss(logits, labels), logits)

    def rows() -> Any:
        return torch.autograd.grad((loss(logits, labels, reduction="none") * weights).mean(), logits)

    return {"grad": grad, "forward": forward, "rows": rows}[task]


def measured_row(shape: Shape, dtype: str, threads: int, seconds: float) -> str:
    cells = [f"{shape.title:>22} {dtype:>9}"]
    for task in TASKS:
        calls = {name: call(task, loss, shape, dtype) for name, loss in LOSSES.items()}
        rounds = time_in_rounds(calls, seconds, time.thread_time if threads == 1 else time.perf_counter)
        theirs = figures_of("PyTorch", rounds)
        cells.append(f"{1e6 * theirs.seconds:9.0f} {theirs.to_softxent or 0:6.2f}")
    return "  ".join(cells)


def bytes_at_peak(name: str, shape: Shape, dtype: str) -> int:
    """Of a forward and a backward pass, beyond what was there before them."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    step = call("grad", LOSSES[name], shape, dtype)
    step()

    def grown() -> int:
        libc.malloc_trim(0)
        CLEAR_REFS.write_text(RESET_PEAK)
        before = peak_of_resident()
        step()
        return peak_of_resident() - before

    return int(median(grown() for _ in range(5)))


def memory_row(shape: Shape, dtype: str) -> str:
    cells = [f"{shape.title:>22} {dtype:>9}"]
    for name in LOSSES:
        command = [sys.executable, __file__, "--bytes-of", name, "--shapes", str(shape), "--dtypes", dtype]
        output = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
        cells.append(f"{name} {int(output.stdout) / (shape.size * getattr(torch, dtype).itemsize):.2f}")
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=shapes(f"{SMALL} {LARGE}"))
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each figure (default: %(default)s)")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--bytes-of", choices=LOSSES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sx.set_num_threads(args.threads)
    if args.bytes_of:
        print(bytes_at_peak(args.bytes_of, args.shapes[0], args.dtypes[0]))
        return
    if args.memory and not AVAILABLE:
        raise SystemExit("this system does not tell the peak of a process's memory")
    print(f"{cpu_model()}, {_dispatch.level}, threads: {args.threads}, PyTorch {torch.__version__}")
    if not args.memory:
        print(f"{'':>32}  " + "  ".join(f"{task:>9} {'times':>6}" for task in TASKS))
    for shape in args.shapes:
        for dtype in args.dtypes:
            row = memory_row(shape, dtype) if args.memory else measured_row(shape, dtype, args.threads, args.seconds)
            print(row, flush=True)


if __name__ == "__main__":
    main()
