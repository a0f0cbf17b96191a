"""How many threads a call may use, and the fork guard.

If a thread has run a team of OpenMP threads and then forks, GNU OpenMP hangs when the child uses a team: the child
still has the record of the team, but not its threads. So a child starts with one thread. If it is told to use more, it
starts the team from a new Python thread, which has no such record.
"""

import operator
import os
from collections.abc import Callable
from typing import SupportsIndex, TypeVar

from softxent._inputs import shown
from softxent.call._call import thread_limit

C_INT_MAX = 2**31 - 1

# 0 leaves the number to OpenMP: OMP_NUM_THREADS, threadpoolctl and the CPU affinity then decide.
setting = 0
in_forked_child = False

T = TypeVar("T")


def checked(n_threads: SupportsIndex, name: str) -> int:
    """`n_threads` as a positive int."""
    try:
        n = operator.index(n_threads)
    except TypeError:
        raise TypeError(f"{name} must be an integer or None, got {type(n_threads).__name__}") from None
    if n < 1:
        raise ValueError(f"{name} must be at least 1, got {shown(n)}")
    return n if n <= C_INT_MAX else C_INT_MAX  # min() would be another call, in a microsecond


def set_num_threads(n_threads: SupportsIndex | None) -> None:
    """Set how many threads each call may use.

    Parameters
    ----------
    n_threads : int or None
        At least 1. None hands the decision back to OpenMP, which follows ``OMP_NUM_THREADS``, ``threadpoolctl`` and the
        CPU affinity of the process.

    Raises
    ------
    TypeError
        `n_threads` is neither an integer nor None.
    ValueError
        `n_threads` is less than 1.

    Notes
    -----
    The setting is one per process and holds for all Python threads; ``n_threads=`` on a call goes before it. No call
    uses more threads than the process may use CPUs, unless OpenMP itself has been told to, and small calls stay on the
    calling thread whatever it says. A process forked from this one starts with one thread; told to use more, it starts
    a new team for each call.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.set_num_threads(1)
    >>> sx.get_num_threads()
    1
    >>> sx.set_num_threads(None)
    """
    global setting
    setting = 0 if n_threads is None else checked(n_threads, "n_threads")


def get_num_threads() -> int:
    """Return how many threads a large call would use now.

    Returns
    -------
    int
        The number given to `set_num_threads`, but not more than there are CPUs to run them on, or OpenMP's own limit;
        1 in a build without OpenMP.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.get_num_threads() >= 1
    True
    """
    return thread_limit(setting)


def on_new_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` where no team of threads is left over from before a fork."""
    from concurrent.futures import ThreadPoolExecutor  # longer to import than all of softxent, and rarely needed

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def _after_fork_in_child() -> None:
    global setting, in_forked_child
    setting, in_forked_child = 1, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
