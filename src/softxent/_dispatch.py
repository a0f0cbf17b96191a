"""Which kernel module this process uses, chosen once, at import.

A level is the name of a module in `softxent.kernels`, compiled for one instruction set. The module of a level that the
CPU cannot run must not even be imported: the compiler may use the level's instructions in module initialisation too.
"""

import importlib
import importlib.util
import os
from typing import Protocol, cast

import numpy as np

from softxent import kernels
from softxent._cpu import supported_levels

ENVIRONMENT_VARIABLE = "SOFTXENT_SIMD"
LEVELS = ("x86_64_v4", "x86_64_v3", "neon", "baseline")


class Kernels(Protocol):
    """What every kernel module offers; `kernels/kernels.pxi` documents the functions."""

    def loss_and_grad(
        self,
        logits: object,
        targets: object,
        axis: int,
        losses: np.ndarray | None,
        grad: object,
        mean: bool,
        n_threads: int,
        scratch: np.ndarray | None = None,
        options: object = None,
        products: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> float | None: ...
    def may_overlap_itself(self, array: np.ndarray) -> bool: ...
    def team_size(self, n_rows: int, n_classes: int, n_threads: int) -> int: ...
    def thread_limit(self, n_threads: int) -> int: ...
    def openmp(self) -> bool: ...
    def exp_of(self, x: np.ndarray, m: float, out: np.ndarray) -> float: ...
    def log1p_of(self, u: np.ndarray, out: np.ndarray) -> None: ...


def built_levels() -> tuple[str, ...]:
    """Levels whose modules were built into this installation, best first."""
    return tuple(name for name in LEVELS if importlib.util.find_spec(f"{kernels.__name__}.{name}") is not None)


def usable_levels() -> tuple[str, ...]:
    """Levels that are built and that this CPU can run, best first."""
    supported = supported_levels()
    return tuple(name for name in built_levels() if name in supported)


def load(level: str) -> Kernels:
    """The kernel module of a usable level."""
    return cast("Kernels", importlib.import_module(f"{kernels.__name__}.{level}"))


def choose() -> str:
    """The level that `SOFTXENT_SIMD` asks for, or the best one that is usable."""
    usable = usable_levels()
    if not usable:
        built = ", ".join(built_levels()) or "no instruction set at all"
        raise ImportError(f"softxent was built for {built}, and this CPU runs {', '.join(supported_levels())}")
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not wanted:
        return usable[0]
    if wanted in usable:
        return wanted
    if wanted not in LEVELS:
        why = "is not a level that softxent knows"
    elif wanted not in built_levels():
        why = "was not built into this installation"
    else:
        why = "needs instructions that this CPU does not have"
    raise RuntimeError(f"{ENVIRONMENT_VARIABLE}={wanted} {why}; available here: {', '.join(usable)}")


level = choose()
active = load(level)
