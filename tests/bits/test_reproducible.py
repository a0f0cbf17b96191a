"""The same bits whatever the number of threads, the rest of the batch, and the level with fused multiply-add."""

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
from support import (
    CALLS,
    FLOATS,
    GRADIENTS,
    HALVES,
    KINDS,
    PLAIN,
    REDUCTIONS,
    WITH_ALL,
    WITH_ONE,
    assert_matches,
    assert_same_bits,
    assert_same_results,
    each_array,
    problem,
    unruly,
)  # fmt: skip

import softxent as sx
from softxent import _dispatch, _loss

pytestmark = pytest.mark.usefixtures("several_threads")

FUSED = {"x86_64_v3", "x86_64_v4"}

DTYPES = (*FLOATS, *HALVES, ">f8", *FLOATS)  # each float with two reductions; ">f8" is converted row by row
# Enough logits for several threads; numbers of rows that fill blocks, that leave a rest, and that are few, which
# threads then share; both kernels, along any axis.
LARGE = [
    ((4000, 100), -1),
    ((1024, 64), -1),
    ((513, 700), -1),
    ((3, 4, 50, 200), -1),
    ((30_001, 10), -1),
    ((5, 60_000), -1),
    ((1, 70_001), -1),
    ((50, 130, 20), 1),
    ((4000, 100), 0),
    ((300, 513), 0),
    ((5, 60_000), 0),
]
# Of each kind of target one call without options and one with all; and one of them with a mask for all rows.
HEAVY = [*PLAIN, *WITH_ALL, "soft, where", "evaluate, all options"]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("shape", "axis"), LARGE, ids=str)
@pytest.mark.parametrize("name", HEAVY)
def test_any_number_of_threads(name: str, shape: tuple[int, ...], axis: int) -> None:
    for dtype, reduction in zip(DTYPES, cycle(REDUCTIONS)):
        arguments = CALLS[name].arguments(shape, dtype, axis) | {"reduction": reduction}
        alone, *teams = (CALLS[name](**arguments, n_threads=n_threads) for n_threads in (1, 2, 7))
        for team in teams:
            assert_same_results(team, alone)
        assert_same_bits(sx.cross_entropy(**arguments, n_threads=3), alone[0])


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*WITH_ONE, *PLAIN])
def test_threads_that_share_a_row(name: str, dtype: str) -> None:
    arguments = CALLS[name].arguments((1, 70_001), dtype)
    loss, grad = CALLS[name](**arguments, n_threads=1)
    assert_matches(loss, grad, **arguments)
    assert_same_results(CALLS[name](**arguments, n_threads=3), (loss, grad))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    "shape", [(45, 1), (45, 3), (45, 10), (45, 64), (20, 129), (45, 345), (12, 700), (45, 1001)], ids=str
)
@pytest.mark.parametrize("name", CALLS)
def test_a_row_depends_neither_on_the_others_nor_on_the_axis(name: str, shape: tuple[int, int]) -> None:
    for dtype in FLOATS + HALVES:
        arguments = CALLS[name].arguments(shape, dtype) | {"reduction": "none"}
        results = CALLS[name](**arguments)
        moved = CALLS[name](**CALLS[name].arguments(shape, dtype, axis=0) | {"reduction": "none"})
        assert_same_results([result.T for result in moved], results)
        for rows in (0, 7, slice(7, 8), slice(1, 10), shape[0] - 1):
            part = CALLS[name](**part_of(arguments, rows))
            assert_same_results(part, [result[rows] for result in results])


def part_of(arguments: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Some rows of logits (N, C) and of all that is given by row."""
    n_rows = len(arguments["logits"])
    by_class = {"weight", "where"} if np.ndim(arguments.get("where")) == 1 else {"weight"}
    parts = each_array(arguments, lambda array: array[rows] if len(array) == n_rows else array)
    return parts | {name: arguments[name] for name in by_class & set(arguments)}


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", [(46, 10), (13, 700)], ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_batch_in_parts(name: str, shape: tuple[int, int]) -> None:
    for dtype in FLOATS + HALVES:
        arguments = CALLS[name].arguments(shape, dtype) | {"normalizer": 4321.5}
        _, whole = CALLS[name](**arguments)
        for cut in (1, 5, shape[0] - 1):
            parts = [CALLS[name](**part_of(arguments, rows))[1] for rows in (slice(cut), slice(cut, None))]
            assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOATS)
def test_calls_from_several_python_threads(dtype: str) -> None:
    problems = [problem(shape, kind, dtype) for shape in ((20, 10), (700, 100)) for kind in KINDS]
    expected = [sx.value_and_grad(*arguments) for arguments in problems]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(sx.value_and_grad, *arguments, n_threads=2) for arguments in problems * 20]
        for call, result in zip(calls, expected * 20, strict=True):
            assert_same_results(call.result(), result)


needs_two_levels = pytest.mark.skipif(not set(_dispatch.usable_levels()) >= FUSED, reason="needs a CPU with AVX-512")


@needs_two_levels
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9, 1), -1), ((9, 3), 0), ((50, 10), -1), ((70, 10), 0), ((20, 64), -1), ((20, 129), 0), ((5, 40, 9), 1),
     ((9, 300), -1), ((3, 700), 0), ((4, 1001), -1), ((3, 5000), -1), ((2, 20_000), -1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", CALLS)
def test_levels_with_fused_multiply_add_agree(
    name: str, shape: tuple[int, ...], axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, spread in product(FLOATS + HALVES, (1, 30)):
        arguments = CALLS[name].arguments(shape, dtype, axis)
        arguments["logits"] *= np.asarray(spread, dtype)
        results = []
        for level in FUSED:
            monkeypatch.setattr(_loss, "_kernels", _dispatch.load(level))
            results.append(CALLS[name](**arguments))
        assert_same_results(*results)


@needs_two_levels
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
