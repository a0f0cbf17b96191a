"""`python -m softxent`: what was built, what this CPU gets, and a self-check with its figures."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import softxent as sx
from softxent import _dispatch
from softxent._cpu import supported_levels
from softxent.call._call import openmp

SHAPES = ((32, 10), (128, 1000), (1024, 1000), (64, 50257))
# Largest error allowed: of the loss relative to it, of the gradient relative to its largest entry.
LIMITS = {"float32": 1e-6, "float64": 1e-13}
ROUNDS = 7


def value_and_grad_in_numpy(logits: np.ndarray, labels: np.ndarray, out: np.ndarray) -> tuple[float, np.ndarray]:
    """The usual passes over the whole array, in the precision of `logits`: in float64 the reference."""
    rows = np.arange(len(logits))
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    at_label = out[rows, labels]
    np.exp(out, out=out)
    total = out.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - at_label))
    out /= total
    out[rows, labels] -= 1
    out /= len(logits)
    return loss, out


@dataclass
class Row:
    """One line of the self-check: errors against float64, and medians of the time in seconds."""

    shape: tuple[int, int]
    dtype: str
    loss_error: float
    grad_error: float
    seconds: float
    numpy_seconds: float
    copy_seconds: float

    @property
    def passed(self) -> bool:
        return max(self.loss_error, self.grad_error) <= LIMITS[self.dtype]  # NaN does not pass

    def __str__(self) -> str:
        shape = f"{self.shape[0]} x {self.shape[1]}"
        errors = f"{self.loss_error:>11.1e}{self.grad_error:>11.1e}"
        ratios = f"{self.numpy_seconds / self.seconds:>10.1f} x{self.seconds / self.copy_seconds:>11.1f} x"
        verdict = "ok" if self.passed else "FAILED"
        return f"  {shape:<13}{self.dtype:<9}{errors}{self.seconds * 1e3:>10.3f} ms{ratios}   {verdict}"


def medians(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call. They take turns, so that a busy moment of the machine meets them all."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, seen in zip(calls, times, strict=True):
            call()
            start = time.perf_counter()
            call()
            seen.append(time.perf_counter() - start)
    return [float(np.median(seen)) for seen in times]


def check(shape: tuple[int, int], dtype: str) -> Row:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=shape).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    out = np.empty_like(logits)
    loss, grad = sx.value_and_grad(logits, labels, out=out)
    wide = logits.astype(np.float64)
    true_loss, true_grad = value_and_grad_in_numpy(wide, labels, np.empty_like(wide))
    errors = abs(loss - true_loss) / true_loss, np.abs(grad - true_grad).max() / np.abs(true_grad).max()
    seconds = medians(
        lambda: sx.value_and_grad(logits, labels, out=out, n_threads=1),
        lambda: value_and_grad_in_numpy(logits, labels, out),
        lambda: np.copyto(out, logits),
    )
    return Row(shape, dtype, float(errors[0]), float(errors[1]), *seconds)


def report() -> bool:
    """Print what there is and the self-check; whether all of it passed."""
    threads = "OpenMP" if openmp() else "built without OpenMP"
    print(f"softxent {sx.__version__}, NumPy {np.__version__}")
    print(f"  built           {', '.join(_dispatch.built_levels())}")
    print(f"  this CPU runs   {', '.join(supported_levels())}")
    print(f"  in use          {_dispatch.level}   ({_dispatch.ENVIRONMENT_VARIABLE}=<level> forces one)")
    print(f"  threads         {sx.get_num_threads()}   ({threads})")
    print()
    print("Loss and gradient of class labels: errors against NumPy in float64, times on one thread")
    print("  shape        dtype     loss error grad error         time  NumPy/this    this/copy")
    rows = []
    for dtype in LIMITS:
        for shape in SHAPES:
            rows.append(check(shape, dtype))
            print(rows[-1], flush=True)
    passed = all(row.passed for row in rows)
    if passed:
        print("All within the limits: " + ", ".join(f"{limit:.0e} for {dtype}" for dtype, limit in LIMITS.items()))
    else:
        print("FAILED: results differ from NumPy's by more than rounding; please report this with the lines above.")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m softxent",
        description="Print which kernels are installed and which one this CPU uses, compare their results with NumPy's "
        "in float64, and time them. It takes two seconds. The exit status is 0 if all results agree.",
    )
    parser.add_argument("--version", action="version", version=f"softxent {sx.__version__}")
    parser.add_argument(
        "--cflags", action="store_true", help="print what a C or C++ compiler needs to find softxent.h, and exit"
    )
    if parser.parse_args(arguments).cflags:
        print(f"-I{shlex.quote(sx.get_include())}")
        return 0
    try:
        passed = report()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` for one, has left. Python flushes once more when it ends: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
