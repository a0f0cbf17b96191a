"""The same bits whatever the number of threads, the rest of the batch, and the level with fused multiply-add."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import (
    ALL_KINDS,
    FLOATS,
    HALVES,
    KINDS,
    OPTIONS,
    REDUCTIONS,
    assert_same_bits,
    assert_same_results,
    optioned,
    problem,
    to_axis,
    unruly,
)

import softxent as sx
from softxent import _dispatch, _loss

pytestmark = pytest.mark.usefixtures("several_threads")

FUSED = {"x86_64_v3", "x86_64_v4"}

# Enough logits for several threads; numbers of rows that fill blocks, that leave a rest, and that are few.
LARGE = [(4000, 100), (1024, 64), (513, 700), (511, 129), (3, 4, 50, 200), (5, 60_000), (30_001, 10)]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_any_number_of_threads(dtype: str, kind: str, shape: tuple[int, ...]) -> None:
    logits, targets = problem(shape, kind, dtype)
    for reduction in REDUCTIONS:
        alone = sx.value_and_grad(logits, targets, reduction=reduction, n_threads=1)
        for n_threads in (2, 3, 7):
            team = sx.value_and_grad(logits, targets, reduction=reduction, n_threads=n_threads)
            assert_same_results(team, alone)
        assert_same_bits(sx.cross_entropy(logits, targets, reduction=reduction, n_threads=3), alone[0])


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4000, 100), 0), ((50, 130, 20), 0), ((50, 130, 20), 1), ((7001, 10), 0), ((300, 497), 0), ((5, 60_000), 0)],
)
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads_along_any_axis(dtype: str, kind: str, shape: tuple[int, ...], axis: int) -> None:
    logits, targets = to_axis(axis, *problem(shape, kind, dtype))
    for reduction in REDUCTIONS:
        alone = sx.value_and_grad(logits, targets, axis=axis, reduction=reduction, n_threads=1)
        team = sx.value_and_grad(logits, targets, axis=axis, reduction=reduction, n_threads=3)
        assert_same_results(team, alone)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", LARGE[:3], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads_where_rows_are_converted(kind: str, shape: tuple[int, ...]) -> None:
    logits, targets = problem(shape, kind)
    logits, targets = logits.astype(">f8"), targets.astype("f4" if targets.ndim == logits.ndim else ">i2")
    alone, *teams = (
        sx.value_and_grad(logits, targets, out=np.empty(shape, "f4"), n_threads=n_threads) for n_threads in (1, 2, 7)
    )
    for team in teams:
        assert_same_results(team, alone)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("n_classes", [1, 3, 10, 64, 1001])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_a_row_does_not_depend_on_the_others(dtype: str, kind: str, n_classes: int) -> None:
    logits, targets = problem((45, n_classes), kind, dtype)
    batch = sx.value_and_grad(logits, targets, reduction="none")
    for rows in (slice(0, 1), slice(7, 8), slice(1, 18), slice(44, 45)):
        part = sx.value_and_grad(logits[rows], targets[rows], reduction="none")
        assert_same_results(part, [result[rows] for result in batch])


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOATS)
def test_calls_from_several_python_threads(dtype: str) -> None:
    problems = [problem(shape, kind, dtype) for shape in ((20, 10), (700, 100)) for kind in KINDS]
    expected = [sx.value_and_grad(*arguments) for arguments in problems]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(sx.value_and_grad, *arguments, n_threads=2) for arguments in problems * 20]
        for call, result in zip(calls, expected * 20, strict=True):
            assert_same_results(call.result(), result)


@pytest.mark.skipif(not set(_dispatch.usable_levels()) >= FUSED, reason="needs a CPU with AVX-512")
@pytest.mark.parametrize("shape", [(9, 1), (9, 3), (50, 10), (20, 64), (20, 129), (4, 1001), (3, 5000)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
@pytest.mark.parametrize("spread", [1, 30])
@pytest.mark.parametrize("axis", [0, 1])
def test_levels_with_fused_multiply_add_agree(
    axis: int, spread: float, dtype: str, kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, targets = to_axis(axis, *problem(shape, kind, dtype))
    results = []
    for level in FUSED:
        monkeypatch.setattr(_loss, "_kernels", _dispatch.load(level))
        results.append(sx.value_and_grad(spread * logits, targets, axis=axis, reduction="none"))
    assert_same_results(*results)


@pytest.mark.skipif(not set(_dispatch.usable_levels()) >= FUSED, reason="needs a CPU with AVX-512")
@pytest.mark.parametrize("n_classes", [1, 2, 3, 7, 10, 17, 33, 64, 65, 100, 127, 129, 500, 1000])
@pytest.mark.parametrize("kind", ["labels", "distributions"])
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_levels_with_fused_multiply_add_agree_on_rows_of_every_kind(
    dtype: str, kind: str, n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, targets = unruly((100, n_classes), kind, dtype)
    results = []
    for level in FUSED:
        monkeypatch.setattr(_loss, "_kernels", _dispatch.load(level))
        results.append(sx.value_and_grad(logits, targets, reduction="none"))
    assert_same_results(*results)


@pytest.mark.skipif(not set(_dispatch.usable_levels()) >= FUSED, reason="needs a CPU with AVX-512")
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 10), -1), ((5, 40, 9), 1), ((9, 300), -1), ((3, 700), 0), ((2, 20_000), -1)], ids=str
)
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_levels_with_fused_multiply_add_agree_with_options(
    dtype: str, kind: str, shape: tuple[int, ...], axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for names in (("temperature",), ("softcap",), OPTIONS[:-1], OPTIONS):
        logits, targets, options = optioned(shape, kind, names, dtype, axis)
        results = []
        for level in FUSED:
            monkeypatch.setattr(_loss, "_kernels", _dispatch.load(level))
            results.append(sx.value_and_grad(logits, targets, **options))
        assert_same_results(*results)
