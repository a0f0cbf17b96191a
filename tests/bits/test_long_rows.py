"""Rows that are read from memory once, stretch by stretch, have the bits of those that are read twice."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from support import FLOATS, assert_same_results

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

N_CLASSES = 70_001


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several may share a row, and then read it twice."""
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        yield


def rising(x: np.ndarray) -> np.ndarray:
    return x + np.linspace(0, 400, N_CLASSES)


def falling(x: np.ndarray) -> np.ndarray:
    return x - np.linspace(0, 900, N_CLASSES)


def far_apart(x: np.ndarray) -> np.ndarray:
    return x * 30


def offset(x: np.ndarray) -> np.ndarray:
    """The exponentials of some stretches are relative to their maximum, those of others are not."""
    x[:, -1] = 700
    return x + np.array([[0], [300], [500], [690]])


def confident_at_the_end(x: np.ndarray) -> np.ndarray:
    x[:, -5] = 120
    return x * 1e-3


def with_a_top_that_is_passed_later(x: np.ndarray) -> np.ndarray:
    x[:, 5], x[:, -5] = 12, 12.5
    return x


def with_ties(x: np.ndarray) -> np.ndarray:
    return x.round()


def partly_infinite(x: np.ndarray) -> np.ndarray:
    x[:, :40_000] = -np.inf
    x[1] = -np.inf
    x[2, 5] = np.nan
    x[3, 7] = np.inf
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "make",
    [
        *(rising, falling, far_apart, offset, confident_at_the_end, with_a_top_that_is_passed_later, with_ties),
        partly_infinite,
    ],
    ids=lambda f: f.__name__,
)
def test_any_long_row(make: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = make(rng.normal(size=(4, N_CLASSES))).astype(dtype)
    argmax = logits.argmax(axis=1)
    some, early = rng.integers(N_CLASSES, size=4), logits[:, :1000].argmax(axis=1)
    without = np.ones(N_CLASSES, dtype)
    without[argmax[0]] = 0
    for targets in (argmax, some, early, (np.stack([some, argmax, some], axis=1), rng.random((4, 3)).astype(dtype))):
        for options in ({}, {"weight": without}, {"sample_weight": [1, 1e-38, 3, 1e-300]}, {"z_loss": 1e-3}):
            in_place = logits.copy()
            expected = sx.value_and_grad(in_place, targets, out=in_place, reduction="none", **options)
            loss, grad = sx.value_and_grad(logits, targets, reduction="none", **options)
            assert_same_results((loss, grad), expected)
            assert_same_results([sx.cross_entropy(logits, targets, reduction="none", **options)], [loss])


@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_near_the_bottom_of_the_range(dtype: str) -> None:
    """In the unit of the row their exponentials are 0 or subnormal, in that of their stretch they are not.

    Those of half a power of two above the bottom lose one bit.
    """
    bottom, powers = (-(127 + 40), 40) if dtype == "float32" else (-(1023 + 128), 64)
    for above in (*np.linspace(-2, powers, 15), 0.6, 0.7, 0.8):
        logits = np.full((1, N_CLASSES), (bottom + above) * np.log(2), dtype)
        logits[0, -1] = 0
        for options in ({"reduction": "sum"}, {"sample_weight": [1e30], "reduction": "sum"}):
            in_place = logits.copy()
            expected = sx.value_and_grad(in_place, [N_CLASSES - 1], out=in_place, **options)
            assert_same_results(sx.value_and_grad(logits, [N_CLASSES - 1], **options), expected)


def test_gradients_of_any_dtype_and_layout() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, N_CLASSES)).astype(np.float32)
    pairs = rng.integers(N_CLASSES, size=(2, 3)), rng.random((2, 3)).astype(np.float32)
    for targets in (np.array([5, N_CLASSES - 1]), pairs):
        loss, grad = sx.value_and_grad(logits, targets)
        for out in (
            np.full((2, 2 * N_CLASSES), 7, np.float32)[:, ::2],
            np.full((N_CLASSES, 2), 7, np.float32).T,
            np.full(logits.shape, 7, np.float64),
            np.full(logits.shape, 7, ">f4"),
        ):
            assert_same_results((sx.value_and_grad(logits, targets, out=out)[0], out.astype(np.float32)), (loss, grad))
        across = sx.value_and_grad(np.asfortranarray(logits), targets)
        assert_same_results(across, (loss, grad))
