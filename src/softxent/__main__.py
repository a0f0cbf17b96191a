"""`python -m softxent`: what is installed, what this CPU could use, what to do about a difference, and a self-check."""

import argparse
import json
import os
import platform
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

import numpy as np

import softxent as sx
from softxent import _dispatch
from softxent._cpu import supported_levels
from softxent.call._call import openmp

COLUMNS = 79

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
class Installation:
    """What was built, and what this process makes of it."""

    softxent: str
    numpy: str
    python: str
    platform: str
    built: Sequence[str]
    supported: Sequence[str]
    level: str
    openmp: bool
    threads: int
    cpus: int

    @classmethod
    def found(cls) -> "Installation":
        affinity = getattr(os, "sched_getaffinity", None)
        return cls(
            softxent=sx.__version__,
            numpy=np.__version__,
            python=platform.python_version(),
            platform=f"{sys.platform} {platform.machine()}",
            built=_dispatch.built_levels(),
            supported=supported_levels(),
            level=_dispatch.level,
            openmp=openmp(),
            threads=sx.get_num_threads(),
            cpus=len(affinity(0)) if affinity else os.cpu_count() or 1,
        )

    def __str__(self) -> str:
        return "\n".join(
            [
                f"softxent {self.softxent}, NumPy {self.numpy}, Python {self.python}, {self.platform}",
                f"  installed       {', '.join(self.built)}",
                f"  this CPU runs   {', '.join(self.supported)}",
                f"  in use          {self.level}",
                f"  threads         {self.threads} on {self.cpus} CPUs, "
                f"{'with OpenMP' if self.openmp else 'built without OpenMP'}",
            ]
        )

    def advice(self, environment: Mapping[str, str]) -> Iterator[str]:
        """What keeps calls from being as fast as this CPU could make them, and what to do about it."""
        forced, asked = environment.get(_dispatch.ENVIRONMENT_VARIABLE), environment.get("OMP_NUM_THREADS")
        best = next(name for name in _dispatch.LEVELS if name in self.built and name in self.supported)
        if self.level != best:
            yield (
                f"{_dispatch.ENVIRONMENT_VARIABLE}={forced} forces {self.level}, but this CPU runs {best}, which is "
                f"faster. Unset {_dispatch.ENVIRONMENT_VARIABLE}."
            )
        missing = [name for name in self.supported if name not in self.built]
        if missing and self.platform != "win32 ARM64":  # where no other level can be built
            yield (
                f"This CPU runs {' and '.join(missing)}, but the installation does not contain it. Install softxent "
                "again, without SOFTXENT_LEVELS in the environment."
            )
        if not self.openmp and self.cpus > 1:
            yield (
                f"Calls use one of {self.cpus} CPUs, because softxent was built without OpenMP. Install it from source "
                "again, without SOFTXENT_OPENMP=0 and with a compiler that has OpenMP; on macOS, Apple's compiler "
                "needs libomp, as CONTRIBUTING.md says."
            )
        if self.openmp and self.threads > self.cpus:
            yield (
                f"{self.threads} threads share {self.cpus} CPUs and wait for each other. Unset OMP_NUM_THREADS, or set "
                "it to the number of CPUs."
            )
        if self.openmp and asked and self.threads < self.cpus:
            yield (
                f"OMP_NUM_THREADS={asked} keeps calls from using all of the {self.cpus} CPUs. Unset it if softxent may "
                "use them."
            )
        if newer := newer_than_the_modules():
            yield (
                f"{newer} has changed since the modules were compiled. Build again: pip install --editable . in the "
                "checkout."
            )


def newer_than_the_modules() -> str:
    """In a checkout, a source of the compiled modules that is newer than the oldest of them; else an empty string."""
    package = Path(sx.__file__).parent
    modules = [path for suffix in ("*.so", "*.pyd") for path in package.rglob(suffix)]
    sources = [path for suffix in ("*.pyx", "*.pxi", "*.hpp") for path in package.rglob(suffix)]
    if not modules or not sources:
        return ""
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    built = min(path.stat().st_mtime for path in modules)
    return newest.relative_to(package).as_posix() if newest.stat().st_mtime > built else ""


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
        errors = f"{self.loss_error:>10.1e}{self.grad_error:>10.1e}"
        ratios = f"{self.numpy_seconds / self.seconds:>10.1f}{self.seconds / self.copy_seconds:>9.1f}"
        verdict = "ok" if self.passed else "FAILED"
        return f"  {verdict:<8}{shape:<13}{self.dtype:<8}{errors}{self.seconds * 1e3:>9.3f}{ratios}"

    def facts(self) -> dict[str, object]:
        """For JSON, which has no NaN and no infinity."""
        lost = {name: None for name, value in asdict(self).items() if isinstance(value, float) and not isfinite(value)}
        return {**asdict(self), **lost, "passed": self.passed}


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
    """Print what there is, what to do about it, and the self-check; whether all of it passed."""
    found = Installation.found()
    print(found)
    for sentence in found.advice(os.environ):
        print()
        print(textwrap.fill(f"To do: {sentence}", COLUMNS, subsequent_indent=" " * 7))
    print()
    print("Loss and gradient of labels on one thread: errors against NumPy in float64,")
    print("how many times as fast as NumPy, and how many times as long as a copy")
    print("          shape        dtype   loss err. grad err.   in ms   / NumPy   / copy")
    rows = []
    for row in checks():
        rows.append(row)
        print(row, flush=True)
    passed = all(row.passed for row in rows)
    if passed:
        print("All within the limits: " + ", ".join(f"{limit:.0e} for {dtype}" for dtype, limit in LIMITS.items()))
    else:
        print("FAILED: results differ from NumPy's by more than rounding.")
        print("Please report this with the lines above.")
    return passed


def report_as_json() -> bool:
    """As `report`, for programs: one object."""
    found, rows = Installation.found(), list(checks())
    passed = all(row.passed for row in rows)
    facts = {
        **asdict(found),
        "advice": list(found.advice(os.environ)),
        "checks": [row.facts() for row in rows],
        "passed": passed,
    }
    print(json.dumps(facts, indent=2, allow_nan=False))
    return passed


def checks() -> Iterator[Row]:
    for dtype in LIMITS:
        for shape in SHAPES:
            yield check(shape, dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m softxent",
        description="Print which kernels are installed, which one this CPU uses and what could make calls faster; "
        "compare results with NumPy's in float64, and time them. It takes two seconds. The exit status is 0 if all "
        "results agree.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"softxent {sx.__version__}")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print the same as one JSON object")
    either.add_argument(
        "--cflags", action="store_true", help="print what a C or C++ compiler needs to find softxent.h, and exit"
    )
    given = parser.parse_args(arguments)
    if given.cflags:
        print(f"-I{shlex.quote(sx.get_include())}")
        return 0
    try:
        passed = report_as_json() if given.json else report()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` for one, has left. Python flushes once more when it ends: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
