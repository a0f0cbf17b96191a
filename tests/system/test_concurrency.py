"""Calls at once, from threads and processes of every kind: the same bits as alone, and nobody's memory harmed."""

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from support import assert_same_results, problem, run_python

import softxent as sx
from softxent import _threads

N_CALLERS = 8
SHAPES = ((2000, 10), (300, 700), (3, 40_000), (40, 5))  # narrow rows, wide ones, a few that are shared, a small call
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 20.0, "z_loss": 0.01}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(autouse=True)
def _setting_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "setting", _threads.setting)


def at_once(call: Callable[[int], Any]) -> list[Any]:
    """What `call` returns for 0 to 7, from as many threads that begin together."""
    barrier = threading.Barrier(N_CALLERS)

    def begin(i: int) -> Any:
        barrier.wait()
        return call(i)

    with ThreadPoolExecutor(N_CALLERS) as pool:
        return list(pool.map(begin, range(N_CALLERS)))


@pytest.fixture
def busy() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Something that goes on again and again in another thread, until the test ends."""
    done, threads = threading.Event(), []

    def start(function: Callable[[], Any]) -> None:
        def again() -> None:
            while not done.is_set():
                function()

        threads.append(threading.Thread(target=again))
        threads[-1].start()

    yield start
    done.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("level", "several_threads")
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_threads_share_their_inputs(shape: tuple[int, int], kind: str, options: dict[str, Any]) -> None:
    logits, targets = problem(shape, kind, "float32")
    alone = sx.value_and_grad(logits, targets, n_threads=1, **options)
    outs = np.empty((N_CALLERS, *shape), np.float32)
    for _ in range(3):
        outs[...] = np.nan
        for result in at_once(lambda i: sx.value_and_grad(logits, targets, out=outs[i], **options)):
            assert_same_results(result, alone)


@pytest.mark.usefixtures("level", "several_threads")
def test_calls_of_every_kind_at_once() -> None:
    """Each thread has another function, dtype and layout to do, of the same logits."""
    logits, labels = problem((1500, 40))
    soft = problem((1500, 40), "soft")[1]
    views = [logits, logits.astype("f4"), logits.astype("f2"), np.asfortranarray(logits), logits.astype(">f8")]

    def call(i: int) -> tuple[Any, ...]:
        x = views[i % len(views)]
        if i % 3 == 0:
            return sx.evaluate(x, labels, **OPTIONS)
        return sx.value_and_grad(x, labels if i % 3 == 1 else soft, reduction="none", **OPTIONS)

    alone = [call(i) for i in range(N_CALLERS)]
    for one, other in zip(at_once(call), alone, strict=True):
        assert_same_results(one, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_while_the_setting_changes(busy: Callable[[Callable[[], Any]], None], shape: tuple[int, int]) -> None:
    logits, labels = problem(shape)
    alone = sx.value_and_grad(logits, labels, n_threads=1)
    numbers = iter(range(10**9))

    def change() -> None:
        n = next(numbers) % 4
        sx.set_num_threads(n or None)
        assert sx.get_num_threads() >= 1

    busy(change)
    for _ in range(20):
        for result in at_once(lambda _: sx.value_and_grad(logits, labels)):
            assert_same_results(result, alone)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_under_limits_of_threadpoolctl(limit: int) -> None:
    """The limit holds in the thread that set it; what the calls return does not depend on it."""
    logits, labels = problem((3000, 100))
    alone = sx.value_and_grad(logits, labels, n_threads=1)

    def call(i: int) -> Any:
        with threadpoolctl.threadpool_limits(limit if i % 2 else 3, user_api="openmp"):
            return sx.value_and_grad(logits, labels)

    with threadpoolctl.threadpool_limits(limit):
        for result in at_once(call):
            assert_same_results(result, alone)


def test_targets_that_change_meanwhile(busy: Callable[[Callable[[], Any]], None]) -> None:
    """The result may be wrong then, or an error; no memory but the gradient's is written to."""
    shape = (200, 30)
    logits = problem(shape, dtype="float32")[0]
    memory = np.full((3 * shape[0], shape[1]), 7, np.float32)
    out = memory[shape[0] : 2 * shape[0]]
    labels, indices = np.zeros(shape[0], np.int64), np.zeros((shape[0], 3), np.int64)
    probs = np.ones(indices.shape, np.float32)
    weight = np.ones(shape[1], np.float32)

    def change() -> None:
        for array in (labels, indices):
            array[...] = 4000
            array[...] = -4000
            array[...] = 0

    busy(change)
    for i in range(2000):
        options = ({}, {"weight": weight}, {"label_smoothing": 0.1, "weight": weight}, {"reduction": "none"})[i % 4]
        for targets in (labels, (indices, probs)):
            with suppress(ValueError, RuntimeError):
                sx.value_and_grad(logits, targets, out=out, **options)
    assert np.all(memory[: shape[0]] == 7)
    assert np.all(memory[2 * shape[0] :] == 7)


POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import softxent as sx

logits, labels = np.random.default_rng(0).normal(size=(3000, 100)), np.zeros(3000, int)
expected = sx.cross_entropy(logits, labels, n_threads=2)
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
    here = [pool.submit(sx.cross_entropy, logits, labels, n_threads=n) for n in (1, 2, 3, None)]
    assert sx.cross_entropy(logits, labels, n_threads=2) == expected
    assert [each.result(40) for each in here] == [expected] * 4
assert sx.cross_entropy(logits, labels, n_threads=2) == expected
"""


@pytest.mark.parametrize(
    "method", ["spawn", pytest.param("forkserver", marks=needs_fork), pytest.param("fork", marks=needs_fork)]
)
def test_pools_of_processes(method: str) -> None:
    result = run_python(POOL.format(method=method), dict(os.environ))
    assert result.returncode == 0, result.stderr


FORK_MEANWHILE = """
import os, signal, threading
import numpy as np
import softxent as sx

signal.alarm(50)
logits, labels = np.random.default_rng(0).normal(size=(3000, 100)), np.zeros(3000, int)
expected = sx.cross_entropy(logits, labels, n_threads=1)
done = threading.Event()

def compute():
    while not done.is_set():
        assert sx.cross_entropy(logits, labels, n_threads=2) == expected

threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for i in range(6):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends the child if it hangs
        same = all(sx.cross_entropy(logits, labels, n_threads=n) == expected for n in (None, 2, 1))
        os._exit(0 if same else 1)
    children.append(child)
    assert sx.cross_entropy(logits, labels, n_threads=2) == expected
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
done.set()
for thread in threads:
    thread.join()
assert codes == [0] * len(children), codes
"""


@needs_fork
def test_fork_while_other_threads_compute() -> None:
    result = run_python(FORK_MEANWHILE, dict(os.environ))
    assert result.returncode == 0, result.stderr


OTHERS = {
    "torch": """
import torch
def other():
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels))
    loss.backward()
    return float(loss)
""",
    "sklearn": """
from sklearn.cluster import KMeans
from sklearn.metrics import log_loss
def other():
    KMeans(4, n_init=1, max_iter=3).fit(logits)    # runs on OpenMP
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return log_loss(labels, p / p.sum(axis=1, keepdims=True), labels=np.arange(100))
""",
}
BESIDE = """
expected = sx.cross_entropy(logits, labels, n_threads=1)
for n in (1, 2, 3, None, 2):
    loss, grad = sx.value_and_grad(logits, labels, n_threads=n)
    assert loss == expected
    assert abs(other() - loss) < 1e-9 * loss
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    calls = [pool.submit(sx.cross_entropy, logits, labels) if i % 2 else pool.submit(other) for i in range(8)]
    assert all(abs(call.result() - expected) < 1e-9 * expected for call in calls)
"""


@pytest.mark.parametrize("first", ["softxent", "other"])
@pytest.mark.parametrize("library", OTHERS)
def test_beside_the_openmp_of_another_library(library: str, first: str) -> None:
    """Several OpenMP runtimes in one process, loaded in either order."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    here = (
        "import numpy as np\nimport softxent as sx\n"
        "logits, labels = np.random.default_rng(0).normal(size=(3000, 100)), np.arange(3000) % 100\n"
        "sx.cross_entropy(logits, labels, n_threads=2)\n"
    )
    parts = (here, OTHERS[library]) if first == "softxent" else (OTHERS[library], here)
    result = run_python("".join(parts) + BESIDE, dict(os.environ))
    assert result.returncode == 0, result.stderr
