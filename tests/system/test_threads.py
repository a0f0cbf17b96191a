"""How many threads a call uses: the setting, OpenMP's own limits, and forked processes."""

import os
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from support import run_python

import softxent as sx
from softxent import _dispatch, _loss, _threads
from softxent.call._call import openmp

needs_openmp = pytest.mark.skipif(not openmp(), reason="built without OpenMP")

FORK = """
import os, signal
import numpy as np
import softxent as sx

logits, labels = np.random.default_rng(0).normal(size=(3000, 100)), np.zeros(3000, int)
expected, _ = sx.value_and_grad(logits, labels, n_threads=2)
child = os.fork()
if child == 0:
    signal.alarm(10)  # ends the child if it hangs
    {in_child}
    loss, _ = sx.value_and_grad(logits, labels, {options})
    os._exit(0 if loss == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

SMALL_STACKS = """
import numpy as np
import softxent as sx

rng = np.random.default_rng(0)
for dtype in ("float16", "float32", "float64"):
    for shape in ((40_000, 10), (3000, 250), (400, 1000), (3, 100_000)):
        logits, labels = rng.normal(size=shape).astype(dtype), rng.integers(shape[1], size=shape[0])
        for targets in (labels, np.eye(shape[1], dtype=dtype)[labels] if shape[1] < 2000 else labels):
            for x in (logits, np.asfortranarray(logits), logits[:, ::-1]):
                several = sx.value_and_grad(x, targets, reduction="none", n_threads=4)
                one = sx.value_and_grad(x, targets, reduction="none", n_threads=1)
                assert all(np.array_equal(a, b) for a, b in zip(several, one))
"""


@pytest.fixture(autouse=True)
def _setting_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "setting", 0)


@needs_openmp
@pytest.mark.parametrize("n_threads", [1, 3, np.int8(5), 10**12])
def test_setting(n_threads: int) -> None:
    sx.set_num_threads(n_threads)
    with threadpoolctl.threadpool_limits(7):
        assert min(n_threads, 7) <= sx.get_num_threads() <= n_threads
        sx.set_num_threads(None)
        assert sx.get_num_threads() == 7


@needs_openmp
@pytest.mark.skipif("san" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers take more stack")
@pytest.mark.parametrize("level", _dispatch.usable_levels())
def test_a_stack_of_128_kib_is_enough(level: str) -> None:
    """That is what the threads of musl get."""
    wanted = {"OMP_STACKSIZE": "128k", "OMP_NUM_THREADS": "4", _dispatch.ENVIRONMENT_VARIABLE: level}
    result = run_python(SMALL_STACKS, {**os.environ, **wanted})
    assert result.returncode == 0, result.stderr


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be taken away on this system")
def test_no_more_threads_than_cpus() -> None:
    code = (
        "import os, softxent as sx; os.sched_setaffinity(0, {0}); sx.set_num_threads(64); print(sx.get_num_threads())"
    )
    assert run_python(code, {**os.environ, "OMP_NUM_THREADS": "1"}).stdout == "1\n"


@pytest.mark.skipif(openmp(), reason="built with OpenMP")
def test_without_openmp_there_is_one_thread() -> None:
    sx.set_num_threads(3)
    assert sx.get_num_threads() == 1


def test_an_argument_goes_before_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Kernels:
        def run(self, *arguments: Any) -> float:
            asked.append(arguments[6])
            return 0.0

    monkeypatch.setattr(_loss, "_kernels", Kernels())
    logits, labels = np.zeros((2, 3)), np.zeros(2, int)
    sx.cross_entropy(logits, labels)
    sx.set_num_threads(3)
    sx.cross_entropy(logits, labels)
    sx.value_and_grad(logits, labels, n_threads=5)
    assert asked == [0, 3, 5]


@needs_openmp
@pytest.mark.parametrize("limit", [1, 2])
def test_threadpoolctl_is_obeyed(limit: int) -> None:
    with threadpoolctl.threadpool_limits(limit):
        assert sx.get_num_threads() == limit


@needs_openmp
def test_omp_num_threads_is_obeyed() -> None:
    result = run_python("import softxent; print(softxent.get_num_threads())", {**os.environ, "OMP_NUM_THREADS": "3"})
    assert result.stdout == "3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("in_child", "options"),
    [
        ("assert sx.get_num_threads() == 1", ""),
        ("", "n_threads=2"),
        ("sx.set_num_threads(2)", ""),
    ],
    ids=["untold", "argument", "setting"],
)
def test_a_forked_child_computes_too(in_child: str, options: str) -> None:
    result = run_python(FORK.format(in_child=in_child, options=options), dict(os.environ))
    assert result.returncode == 0, result.stderr
