"""Which kernels this process uses, chosen once, at import.

A level is the name of a module in `softxent.kernels.levels`, compiled for one instruction set. The module of a level
that the CPU cannot run must not even be imported: the compiler may use the level's instructions in module
initialisation too.
"""

import importlib
import importlib.util
import os

from softxent._cpu import supported_levels
from softxent.call._call import Kernels
from softxent.kernels import levels

ENVIRONMENT_VARIABLE = "SOFTXENT_SIMD"
LEVELS = ("x86_64_v4", "x86_64_v3", "neon", "baseline")


def built_levels() -> tuple[str, ...]:
    """Levels whose modules were built into this installation, best first."""
    return tuple(name for name in LEVELS if importlib.util.find_spec(f"{levels.__name__}.{name}") is not None)


def usable_levels() -> tuple[str, ...]:
    """Levels that are built and that this CPU can run, best first."""
    supported = supported_levels()
    return tuple(name for name in built_levels() if name in supported)


def load(level: str) -> Kernels:
    """The kernels of a usable level."""
    return Kernels(importlib.import_module(f"{levels.__name__}.{level}").table)


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
