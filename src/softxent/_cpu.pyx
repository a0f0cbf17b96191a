# Compiled for the baseline, like everything outside kernels/: it decides which other modules may be imported at all.

cdef extern from "cpu.hpp" namespace "softxent":
    bint has_x86_64_v3()
    bint has_x86_64_v4()
    bint has_neon()


def supported_levels():
    """Names of the levels that this CPU and its operating system can run, best first."""
    levels = []
    if has_x86_64_v4():
        levels.append("x86_64_v4")
    if has_x86_64_v3():
        levels.append("x86_64_v3")
    if has_neon():
        levels.append("neon")
    levels.append("baseline")
    return tuple(levels)
