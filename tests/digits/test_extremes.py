"""Numbers at the ends of their range: a result is right wherever its dtype can hold it, and nothing on the way is lost.

Logits whose quotient by a temperature is infinite, gaps and losses that no double holds, weights and divisors as small
and as large as doubles are. The truth is of so many digits that neither ends anywhere.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from exact import exact
from reference import as_distributions
from support import FLOATS, HALVES

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

DIGITS = 1400  # of two logits as large as doubles are, divided by the least temperature
N_ROWS = 20  # copies of a row: the narrow kernel takes them where there are few classes
FAR = {
    "all lowest": [-1.0, -1.0, -1.0],
    "lowest, not quite alike": [-1.0, -0.875, -1.0],
    "masked by the lowest": [1e-38, -1.0, -1.0, 0.0, -1.0],
    "largest and lowest": [1.0, -1.0, 0.0],
    "two largest": [1.0, 0.5, 1.0, -1.0],
    "nearly the largest": [0.75, -0.75],
    "with minus infinity": [-np.inf, -1.0, -1.0, -np.inf],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-4},
    "weight": {"weight": [0.5, 2.0, 0.25, 1.0, 4.0]},
    "where": {"where": [True, True, False, True, False]},
    "where, label_smoothing, weight": {
        "where": [True, True, False, True, False],
        "label_smoothing": 0.25,
        "weight": [0.5, 2.0, 0.25, 1.0, 4.0],
    },
}
TEMPERATURES = {"float32": (0.7, 2e-3, 2e-38), "float64": (0.7, 2e-3, 3e-308)}


def far_row(name: str, dtype: str, n_classes: int) -> np.ndarray:
    """Logits in shares of the largest number, widened by classes of 0 if there are fewer."""
    shares = np.array(FAR[name])
    logits = np.zeros(max(n_classes, shares.size), dtype)
    with np.errstate(under="ignore"):
        logits[: shares.size] = (shares * float(np.finfo(dtype).max)).astype(dtype)
    return logits


def options_for(name: str, n_classes: int) -> dict[str, Any]:
    """The named options, arrays of classes repeated to as many as there are."""
    return {
        key: np.resize(value, n_classes) if isinstance(value, list) else value for key, value in OPTIONS[name].items()
    }


@cache
def far_truth(name: str, dtype: str, n_classes: int, temperature: float, options: str, label: int) -> Any:
    logits = far_row(name, dtype, n_classes)
    target = np.arange(logits.size) == label
    rounded = float(np.dtype(dtype).type(temperature))  # as the kernels divide by it
    return exact(logits, target, temperature=rounded, digits=DIGITS, **options_for(options, logits.size))


def in_dtype(value: mpmath.mpf, dtype: np.dtype) -> float:
    """As the dtype would hold it: infinite where it is too large."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float64(float(value)).astype(dtype))


def assert_close(actual: Any, expected: Any, dtype: np.dtype, size: float = 0.0) -> None:
    """To a few roundings of each number and of `size`; infinities where they are expected."""
    eps = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(actual), np.float64(expected), rtol=eps, atol=eps * size)


@pytest.mark.parametrize("n_classes", [1, 300])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FAR)
def test_no_temperature_makes_a_finite_logit_infinite(name: str, dtype: str, options: str, n_classes: int) -> None:
    logits = far_row(name, dtype, n_classes)
    number, given = logits.dtype, options_for(options, logits.size)
    rows = np.stack([logits] * N_ROWS)
    for temperature in TEMPERATURES[dtype]:
        for label in (0, 1):
            true = far_truth(name, dtype, n_classes, temperature, options, label)
            weights = given.get("weight", np.ones(logits.size))
            loss, grad = sx.value_and_grad(rows, [label] * N_ROWS, temperature=temperature, reduction="sum", **given)
            alone, grad_alone = sx.value_and_grad(logits, label, temperature=temperature, **given)
            np.testing.assert_array_equal(grad[0], grad[-1])
            assert_close(loss, in_dtype(true.loss * N_ROWS, np.dtype(float)), number)
            assert_close(alone, in_dtype(true.loss / weights[label], np.dtype(float)), number)
            # What rounds a logit that is near the top, times what that is worth.
            size = float(max(true.slope)) * float(sum(true.u) + abs(2 * given.get("z_loss", 0) * true.lse))
            size = min(size, float(np.finfo(number).max) / 1e10)
            true_grad = [in_dtype(g, number) for g in true.grad]
            assert_close(grad[3], true_grad, number, size)
            assert_close(grad_alone, [in_dtype(g / weights[label], number) for g in true.grad], number, size)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_cap_holds_whatever_the_temperature_makes(dtype: str, n_classes: int, n_rows: int) -> None:
    largest = np.finfo(dtype).max
    logits = np.zeros((n_rows, n_classes), dtype)
    logits[:, :2] = largest, -largest
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, temperature=0.5, softcap=2, reduction="sum")
    total = np.exp(2) + np.exp(-2) + n_classes - 2
    assert loss == pytest.approx(n_rows * (np.log(total) + 2), rel=1e-6)
    np.testing.assert_array_equal(grad[:, :2], 0)
    np.testing.assert_allclose(grad[:, 2:], 1 / total / 0.5, rtol=1e-6)


@pytest.mark.parametrize("kind", ["distributions", "pair"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FAR)
def test_nor_with_other_targets(name: str, dtype: str, kind: str) -> None:
    for n_classes in (1, 300):
        logits = far_row(name, dtype, n_classes)
        targets: Any = np.where(np.isfinite(logits), np.arange(logits.size) % 3 * 0.25, 0).astype(dtype)
        if kind == "pair":
            targets = np.flatnonzero(targets), targets[targets != 0]
        true = exact(logits, as_distributions(targets, logits.shape)[1], temperature=0.5, digits=DIGITS)
        many = tuple(np.stack([part] * N_ROWS) for part in targets) if kind == "pair" else np.stack([targets] * N_ROWS)
        for loss, grad in (
            sx.value_and_grad(logits, targets, temperature=0.5),
            sx.value_and_grad(np.stack([logits] * N_ROWS), many, temperature=0.5, normalizer=1),
        ):
            copies = grad.size // logits.size
            assert_close(loss, in_dtype(true.loss * copies, np.dtype(float)), logits.dtype)
            assert_close(
                grad.reshape(-1, logits.size)[0], [in_dtype(g, logits.dtype) for g in true.grad], logits.dtype, 1
            )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_masked_by_the_lowest_half(in_place: bool, dtype: str) -> None:
    """bfloat16 reaches as far as float32; float16 only with a temperature of next to nothing."""
    import ml_dtypes

    lowest, temperature = ml_dtypes.finfo(dtype).min, 0.5 if dtype == "bfloat16" else 2e-38
    for n_classes in (3, 400):
        for n_rows in (1, N_ROWS):
            logits = np.full((n_rows, n_classes), lowest)
            out = logits if in_place else np.empty_like(logits)
            loss, grad = sx.value_and_grad(logits, [1] * n_rows, temperature=temperature, normalizer=1e38, out=out)
            assert loss == pytest.approx(n_rows * np.log(n_classes) / 1e38)
            expected = (1 / n_classes - (np.arange(n_classes) == 1)) / temperature / 1e38
            np.testing.assert_allclose(grad.astype(float), np.stack([expected] * n_rows), rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_long_row_of_the_lowest(n_threads: int) -> None:
    logits = np.full((1, 70_001), np.finfo(np.float32).min)
    logits[0, 5] *= np.float32(0.5)
    loss, grad = sx.value_and_grad(logits, [5], temperature=0.7, n_threads=n_threads, out=logits)
    assert loss == 0
    assert not grad.any()
    logits = np.full((1, 70_001), np.finfo(np.float64).min)
    loss, grad = sx.value_and_grad(logits, [7], temperature=0.7, label_smoothing=0.1, n_threads=n_threads)
    assert loss == pytest.approx(np.log(70_001))


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_infinite_logit_takes_no_digits_from_small_amounts(dtype: str, n_classes: int, n_rows: int) -> None:
    """No temperature makes it infinite: it is."""
    logits, target = np.zeros((n_rows, n_classes), dtype), np.zeros((n_rows, n_classes), dtype)
    logits[:, 1:3] = -1, -np.inf
    target[:, 1] = amount = 1e-30
    loss, grad = sx.value_and_grad(logits, target, temperature=0.5, normalizer=1)
    total = n_classes - 2 + np.exp(-2)
    assert loss == pytest.approx(n_rows * amount * (np.log(total) + 2), rel=1e-6, abs=0)
    expected = np.full(n_classes, 1 / total)
    expected[1:3] = np.exp(-2) / total - 1, 0
    np.testing.assert_allclose(grad, [expected * amount / 0.5] * n_rows, rtol=1e-6)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_long_row_of_next_to_no_weight(dtype: str, n_threads: int) -> None:
    """The factor of its gradient would not be a normal number; probabilities times the weight are."""
    logits, weight = np.linspace(-3, 3, 70_001, dtype=dtype)[np.newaxis], 1e-28 if dtype == "float32" else 1e-280
    p = np.exp(logits.astype(float))
    expected = (p / p.sum() - (np.arange(70_001) == 5)) * weight
    _, grad = sx.value_and_grad(logits, [5], sample_weight=[weight], reduction="sum", n_threads=n_threads)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [8, 300, 40_000])
def test_sums_of_gaps_to_the_lowest(n_classes: int, n_rows: int) -> None:
    """Four classes are so far below the others that their gaps have no sum in a double."""
    for dtype in FLOATS:
        logits = np.zeros(n_classes, dtype)
        logits[:3] = 1, 2, 3
        logits[3:7] = np.finfo(dtype).min
        true = exact(logits, np.arange(n_classes) == 1, label_smoothing=0.1).loss if n_classes < 1000 else None
        loss, grad = sx.value_and_grad([logits] * n_rows, [1] * n_rows, label_smoothing=0.1)
        expected = float(true) if true is not None else 0.1 / n_classes * 4 * float(np.finfo(dtype).max)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(grad).all()
        rows = np.stack([logits] * n_rows)
        in_place, same = sx.value_and_grad(rows, [1] * n_rows, label_smoothing=0.1, out=rows)
        assert in_place == loss
        np.testing.assert_array_equal(same, grad)
    assert n_classes > 8 or loss == pytest.approx(8.988465674311579e306)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gap_that_the_dtype_cannot_hold(dtype: str, n_classes: int, n_rows: int) -> None:
    largest, share = float(np.finfo(dtype).max), 0.1 / n_classes
    logits = np.zeros((n_rows, n_classes), dtype)
    logits[:, :2] = 0.75 * largest, -0.75 * largest
    loss, grad = sx.value_and_grad(logits, [0] * n_rows, label_smoothing=0.1)
    assert loss == pytest.approx(share * (1.5 + (n_classes - 2) * 0.75) * largest, rel=1e-6)
    expected = np.full(n_classes, -share)
    expected[0] = 0.1 - share
    np.testing.assert_allclose(grad * n_rows, [expected] * n_rows, rtol=1e-5)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("kind", ["labels", "distributions", "pair"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("amount", [1.0, 1e-10, 1e-20])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_logit_out_of_range_takes_no_digits_from_others(
    dtype: str, amount: float, masked: bool, kind: str, n_rows: int
) -> None:
    info = np.finfo(dtype)
    logits = np.array([[0, -1, info.max if masked else info.min]] * n_rows, dtype)
    column = np.ones((n_rows, 1), int)
    targets = {
        "labels": column[:, 0],
        "distributions": np.array([[0, amount, 0]] * n_rows, dtype),
        "pair": (column, np.full((n_rows, 1), amount, dtype)),
    }[kind]
    given = {"weight": np.full(3, amount, dtype)} if kind == "labels" else {}
    where = {"where": np.array([True, True, False])} if masked else {}
    held = float(np.dtype(dtype).type(amount))
    log_prob = -2 - math.log1p(math.exp(-2))
    losses = sx.cross_entropy(logits, targets, temperature=0.5, reduction="none", **where, **given)
    np.testing.assert_allclose(losses, -log_prob * held, rtol=2 * float(info.eps))
    if kind == "labels":
        result = sx.evaluate(logits, targets, temperature=0.5, **where, **given)
        np.testing.assert_allclose(result.log_prob, log_prob, rtol=2 * float(info.eps))


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("kind", ["labels", "distributions", "pair"])
def test_an_amount_times_a_gap_that_no_double_holds(kind: str, n_classes: int, n_rows: int) -> None:
    """Each of the two is far from the largest number; the normalizer brings the loss back."""
    amount, gap, normalizer = 1e300, 1e10, 1e20
    logits, target = np.zeros((n_rows, n_classes)), np.zeros((n_rows, n_classes))
    logits[:, 0], target[:, 1] = gap, amount
    column = np.ones((n_rows, 1), int)
    targets = {"labels": column[:, 0], "distributions": target, "pair": (column, column * amount)}[kind]
    weight = {"weight": np.full(n_classes, amount)} if kind == "labels" else {}
    loss, grad = sx.value_and_grad(logits, targets, normalizer=normalizer, **weight)
    assert loss == pytest.approx(n_rows * (amount / normalizer * gap), rel=1e-14)
    expected = np.zeros(n_classes)
    expected[:2] = amount / normalizer, -amount / normalizer
    np.testing.assert_allclose(grad, [expected] * n_rows, rtol=1e-14)


@pytest.mark.parametrize("n_rows", [1, N_ROWS, 3000])
@pytest.mark.parametrize("n_classes", [2, 400])
def test_losses_without_a_sum(n_classes: int, n_rows: int) -> None:
    """The mean of losses that add up to more than a double holds, and a loss that only its weight brings back."""
    largest = np.finfo(float).max
    logits = np.zeros((n_rows, n_classes))
    logits[:, 1] = -largest
    labels = [1] * n_rows
    assert sx.cross_entropy(logits, labels) == pytest.approx(largest, rel=3e-16)
    logits[:, 0] = largest
    losses = sx.cross_entropy(logits, labels, sample_weight=[0.25] * n_rows, reduction="none")
    np.testing.assert_array_equal(losses, largest / 2)
    assert sx.cross_entropy(logits, labels, normalizer=8 * n_rows) == pytest.approx(largest / 4, rel=3e-16)
    assert sx.cross_entropy(logits, labels, weight=np.full(n_classes, 0.25), normalizer=n_rows) == pytest.approx(
        largest / 2, rel=3e-16
    )
    soft = np.zeros((n_rows, n_classes))
    soft[:, 0], soft[:, 1] = 0.9, 0.125
    assert sx.cross_entropy(logits, soft) == pytest.approx(largest / 4, rel=1e-15)
    assert sx.cross_entropy(logits, labels) == np.inf  # nor can it be held
    # Gaps of both signs, each too large by itself.
    if n_classes > 2:
        logits[:, :3], soft[:, :2] = (-largest, -largest / 2, largest), (-0.75, 0.125)
        assert sx.cross_entropy(logits, soft, normalizer=4 * n_rows) == pytest.approx(-1.3125 / 4 * largest, rel=1e-15)


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight", [2e-310, 5e-324, 1e-300, 1e300, 1e308, 1.7e308])
def test_weights_of_any_size_give_the_result_of_their_ratios(weight: float, dtype: str, n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    logits, labels = rng.normal(0, 3, (N_ROWS, n_classes)).astype(dtype), rng.integers(n_classes, size=N_ROWS)
    ratios = 2.0 ** -(np.arange(N_ROWS) % 3) if weight > 1e-300 else np.ones(N_ROWS)
    soft = rng.random((N_ROWS, n_classes)).astype(dtype)
    for targets in (labels, soft):
        for more in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"temperature": 0.5}):
            loss, grad = sx.value_and_grad(logits, targets, sample_weight=ratios, **more)
            for sample_weight, normalizer in (
                (weight * ratios, None),
                (weight * ratios, weight * ratios.sum() if weight < 1e307 else None),
            ):
                given = {"sample_weight": sample_weight, "normalizer": normalizer, **more}
                other, other_grad = sx.value_and_grad(logits, targets, **given)
                assert other == pytest.approx(loss, rel=1e-13)
                assert_close(other_grad, grad, np.dtype(dtype), 1 / N_ROWS)


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_of_next_to_no_weight_counts_beside_the_heaviest(dtype: str, n_classes: int) -> None:
    logits, labels = np.zeros((N_ROWS, n_classes), dtype), np.ones(N_ROWS, int)
    weights = np.full(N_ROWS, 1.7e308)
    weights[1] = 5e-324
    result = sx.evaluate(logits, labels, sample_weight=weights)
    np.testing.assert_allclose(result.lse, np.log(n_classes), rtol=1e-6)
    np.testing.assert_array_equal(result.argmax, 0)
    logits[1, 0] = np.nan
    loss, grad = sx.value_and_grad(logits, labels, sample_weight=weights)
    assert np.isnan(loss)
    assert np.isnan(grad[1]).all()
    assert not np.isnan(np.delete(grad, 1, axis=0)).any()


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight", [2e-310, 5e-324, 1e-50, 1e38, 1e58, 1e307, 1.7e308])
def test_so_do_weights_of_classes(weight: float, dtype: str, n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    logits, labels = rng.normal(0, 3, (N_ROWS, n_classes)).astype(dtype), rng.integers(n_classes, size=N_ROWS)
    ratios = 2.0 ** -(np.arange(n_classes) % 3) if weight > 1e-300 else np.ones(n_classes)
    for targets in (labels, rng.random((N_ROWS, n_classes)).astype(dtype)):
        for more in ({}, {"label_smoothing": 0.1}, {"temperature": 0.5}):
            expected = sx.value_and_grad(logits, targets, weight=ratios, **more)
            for given in (weight * ratios, (weight * ratios).tolist()):
                loss, grad = sx.value_and_grad(logits, targets, weight=given, **more)
                assert loss == pytest.approx(expected[0], rel=1e-7 if dtype == "float32" else 1e-13)
                assert_close(grad, expected[1], np.dtype(dtype), 1 / N_ROWS)
    with_normalizer = sx.cross_entropy(logits, labels, weight=weight * ratios, normalizer=weight, z_loss=weight)
    expected = sx.cross_entropy(logits, labels, weight=ratios, reduction="sum", z_loss=1)
    assert with_normalizer == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_rows_with_weights_of_classes_of_any_size(dtype: str, n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    logits, labels = rng.normal(0, 3, (N_ROWS, n_classes)).astype(dtype), rng.integers(n_classes, size=N_ROWS)
    losses, grad = sx.value_and_grad(logits, labels, reduction="none")
    for weight in (float(np.finfo(dtype).smallest_normal) * 1024, float(np.finfo(dtype).max) / 1024):
        for given in (np.full(n_classes, weight, dtype), [weight] * n_classes):
            weighted = sx.value_and_grad(logits, labels, weight=given, reduction="none")
            np.testing.assert_allclose(weighted[0] / weight, losses, rtol=1e-5)
            np.testing.assert_allclose(weighted[1] / weight, grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_divisor_of_next_to_nothing(dtype: str, n_rows: int) -> None:
    """What can be held is right, what cannot is infinite, and what is 0 stays 0."""
    logits = np.array([[1.0, 2.0, -np.inf]] * n_rows, dtype)
    p = 1 / (1 + np.exp(1))
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, normalizer=1e-309)
    assert loss == pytest.approx(float(-np.log1p(-p) * n_rows / 1e-9) * 1e300) or loss == np.inf
    assert grad[0, 2] == 0
    if dtype == "float32":
        np.testing.assert_array_equal(grad[0, :2], [np.inf, -np.inf])
    else:
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(grad[0, :2], np.array([p, -p]) * 1e9 * 1e300, rtol=1e-12)
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, normalizer=1e-309, sample_weight=[1e-309] * n_rows)
    assert loss == pytest.approx(-np.log1p(-p) * n_rows, rel=1e-6)
    np.testing.assert_allclose(grad[0], [p, -p, 0], rtol=1e-6)
    loss, grad = sx.value_and_grad(logits, [1] * n_rows, sample_weight=[1e60] * n_rows, reduction="sum")
    assert loss == pytest.approx(-np.log1p(-p) * n_rows * 1e60, rel=1e-6)
    expected = [in_dtype(mpmath.mpf(value), np.dtype(dtype)) for value in (1e60 * p, -1e60 * p, 0)]
    np.testing.assert_allclose(grad[0], expected, rtol=1e-6)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_only_a_product_brings_into_range(dtype: str, n_classes: int, n_rows: int) -> None:
    """Two whose product is too large, and small probabilities; one that is too large itself, and a small one."""
    large = 1e20 if dtype == "float32" else 1e170
    spread = 1 if dtype == "float32" else 8
    for logits, label, weight, sample_weight in (
        (np.array([0, -50, -90]) * spread, 0, large, large),
        (np.array([0, -1, -2]), 1, 1 / large, large * large if dtype == "float32" else 1e305),
    ):
        row = np.pad(logits.astype(float), (0, n_classes - 3), constant_values=-np.inf)
        p = np.exp(row)
        p /= p.sum()
        others = np.delete(p, label).sum()
        expected = weight * np.where(np.arange(n_classes) == label, -others, p) * sample_weight
        loss, grad = sx.value_and_grad(
            np.stack([row.astype(dtype)] * n_rows),
            [label] * n_rows,
            weight=[weight] * n_classes,
            sample_weight=[sample_weight] * n_rows,
            reduction="sum",
        )
        assert loss == pytest.approx(weight * np.log1p(others / p[label]) * sample_weight * n_rows, rel=1e-6)
        np.testing.assert_allclose(grad, [expected] * n_rows, rtol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("targets", ["labels", "distributions"])
def test_zeros_of_a_target_stay_zeros_at_any_scale(targets: str, dtype: str) -> None:
    for n_classes, n_rows in ((4, N_ROWS), (4, 1), (300, 3)):
        logits = np.zeros((n_rows, n_classes), dtype)
        logits[:, 2] = -1000
        given: Any = [1] * n_rows if targets == "labels" else np.eye(n_classes, dtype=dtype)[[1] * n_rows]
        _, grad = sx.value_and_grad(logits, given, sample_weight=[1e200] * n_rows, reduction="sum")
        assert (grad[:, 2] == 0).all()
        assert not np.isnan(grad).any()
        assert (grad[:, 1] < -1e38).all()


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
def test_the_square_of_a_large_log_sum_exp(n_rows: int) -> None:
    logits = np.array([[1e200, 0.0, 1e200]] * n_rows)
    loss, grad = sx.value_and_grad(logits, [0] * n_rows, z_loss=1e-300)
    assert loss == pytest.approx(1e100)
    np.testing.assert_allclose(grad.sum(axis=0), [-0.5, 0, 0.5], rtol=1e-13)


def rows_for_evaluation(dtype: str) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for n_classes in (3, 10, 70, 300):
        yield rng.normal(0, 3, n_classes).astype(dtype)
        for margin in (5, 40, 90):
            logits = (rng.normal(0, 1, n_classes) - margin).astype(dtype)
            logits[n_classes // 2] = 0
            yield logits
            yield logits + np.asarray(margin, dtype)
    yield np.array([1.5, 1.5, -3, 1.5], dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_said_of_a_row_does_not_depend_on_its_target(dtype: str) -> None:
    """To the bit, in both kernels; and it is right to the last digit."""
    for logits in rows_for_evaluation(dtype):
        n = logits.size
        every = np.arange(n) if n > 8 else np.resize(np.arange(n), 16)
        many = sx.evaluate(np.stack([logits] * every.size), every)
        alone = [sx.evaluate(logits, label) for label in range(0, n, max(1, n // 5))]
        truth = exact(logits, np.zeros(n))
        for field in ("lse", "entropy", "argmax"):
            values = [*getattr(many, field).tolist(), *(float(getattr(one, field)) for one in alone)]
            assert len(set(values)) == 1, (field, logits)
        assert many.argmax[0] == logits.argmax()
        unit = np.spacing(np.asarray(max(abs(float(truth.lse)), abs(float(logits.max()))), dtype))
        assert abs(many.lse[0] - float(truth.lse)) <= unit
        entropy = float(mpmath.fsum(p * (truth.lse - z) for p, z in zip(truth.p, truth.z, strict=True)))
        assert many.entropy[0] == pytest.approx(entropy, rel=8 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_without_a_likeliest_class(dtype: str, n_classes: int, n_rows: int) -> None:
    """A NaN leaves nothing to be right about; the log-sum-exp of infinities is as SciPy has it."""
    rows = np.zeros((4, n_classes), dtype)
    rows[0, 1] = np.nan
    rows[1] = -np.inf
    rows[2, 1] = np.inf
    rows[3, :2] = np.inf, np.nan
    for row, lse, argmax in zip(rows, (np.nan, -np.inf, np.inf, np.nan), (-1, 0, 1, -1), strict=True):
        result = sx.evaluate(np.stack([row] * n_rows), [0 if argmax < 0 else argmax] * n_rows)
        np.testing.assert_array_equal(result.lse, lse)
        np.testing.assert_array_equal(result.argmax, argmax)
        assert result.accuracy == (0 if argmax < 0 else 1)
        assert np.isnan([*result.entropy, *result.log_prob]).all()
    masked = sx.evaluate(rows[:1], [0], where=np.arange(n_classes) != 1)
    assert masked.accuracy == 1
    assert sx.evaluate(rows[:1], [0], where=np.zeros(n_classes, bool)).lse[0] == -np.inf


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("dtype", FLOATS)
def test_evaluation_of_logits_that_a_temperature_takes_out_of_range(dtype: str, n_rows: int) -> None:
    lowest = np.finfo(dtype).min
    result = sx.evaluate(np.full((n_rows, 4), lowest), [2] * n_rows, temperature=0.5)
    np.testing.assert_array_equal(result.lse, -np.inf)  # as far as the dtype goes
    np.testing.assert_allclose(result.log_prob, -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(result.entropy, np.log(4), rtol=1e-6)
    np.testing.assert_array_equal(result.argmax, 0)
    row = np.array([0.5 * float(lowest), 0.625 * float(lowest)], dtype)
    result = sx.evaluate([row] * n_rows, [1] * n_rows, temperature=0.55)
    np.testing.assert_allclose(result.log_prob, 0.125 / 0.55 * float(lowest), rtol=1e-6)
    np.testing.assert_allclose(result.lse, row[0] / 0.55, rtol=1e-6)


# Logits in shares of the largest number, z_loss, label; derivatives or their parts are beyond the range.
Z_LOSSES: dict[str, tuple[list[float], float, int]] = {
    "one far above": ([0.3, 0.0], 1e3, 0),
    "the label far below": ([0.3, 0.0, 0.2], 1e3, 1),
    "all far below 0": ([-0.3, -0.3, -0.35], 1e3, 0),
    "equal ones": ([0.25, 0.25, 0.25], 1e30, 2),
    "as large a weight as there is": ([0.25, 0.0, 0.25], 1.5e308, 0),
}
# Those of near logits: the z-loss alone is too large.
NEAR: dict[str, tuple[list[float], float, int]] = {
    "confident": ([5.0, -60.0, 0.0], 1e40, 0),
    "confident and wrong": ([5.0, -60.0, 0.0], 1e40, 1),
    "below 0": ([-5.0, -60.0, -7.0], 1e40, 2),
    "two that cancel": ([-0.75, -1.0, -1.25], 1e39, 0),
}


FEWER_DIGITS = 200  # enough where logits are less than 100 apart, or so far that nothing is left of an exponential


def second_truth(x: np.ndarray, t: Any, v: np.ndarray, **options: Any) -> dict[str, list[mpmath.mpf]]:
    """Gradient, diagonal of the Hessian, product of the Hessian with v, and the size of its parts."""
    with mpmath.workdps(FEWER_DIGITS):
        row = exact(x, t, digits=FEWER_DIGITS, **options)
        z = mpmath.mpf(options.get("z_loss", 0))
        slope = 1 / mpmath.mpf(options.get("temperature", 1))
        mass, p = mpmath.fsum(row.u) + 2 * z * row.lse, row.p
        w = [mpmath.mpf(value) for value in v.tolist()]
        mean = mpmath.fsum(a * b for a, b in zip(p, w, strict=True))
        gaps = [abs(value - w[int(np.argmax(x))]) for value in w]
        mean_gap = mpmath.fsum(a * b for a, b in zip(p, gaps, strict=True))
        return {
            "size": [
                slope**2 * a * (abs(mass) * (gap + mean_gap) + 2 * z * abs(mean))
                for a, gap in zip(p, gaps, strict=True)
            ],
            "grad": row.grad,
            "hess": [slope**2 * (mass * a * (1 - a) + 2 * z * a * a) for a in p],
            "hvp": [slope**2 * a * (mass * (b - mean) + 2 * z * mean) for a, b in zip(p, w, strict=True)],
            "vjp": [slope * a * (b - mean) for a, b in zip(p, w, strict=True)],
        }


def assert_all_close(actual: np.ndarray, truth: list[mpmath.mpf], sizes: Any = 0.0) -> None:
    """Each row within a few ulp of the true numbers, or of `sizes`; infinite where the truth is beyond the range."""
    rows = actual.reshape(-1, len(truth))
    np.testing.assert_array_equal(rows, np.tile(rows[0], (len(rows), 1)))
    assert not np.isnan(rows).any()
    of_class = [in_dtype(size, actual.dtype) for size in np.broadcast_to(sizes, len(truth))]
    for value, true, size in zip(rows[0], truth, of_class, strict=True):
        if math.isfinite(size):  # else any result is within its rounding errors
            expected = in_dtype(true, actual.dtype)
            assert_close(value, expected, actual.dtype, max(size, abs(expected)) if math.isfinite(expected) else 0)


@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*Z_LOSSES, *NEAR])
def test_derivatives_of_a_z_loss_that_is_too_large(name: str, dtype: str, n_rows: int, n_classes: int) -> None:
    """They are infinite where the true ones are, and never NaN."""
    shares, z_loss, label = Z_LOSSES[name] if name in Z_LOSSES else NEAR[name]
    row = np.full(n_classes, -np.inf, dtype)
    row[: len(shares)] = np.array(shares) * (float(np.finfo(dtype).max) if name in Z_LOSSES else 1)
    if dtype == "float64" and name in NEAR:
        z_loss *= 1e268
    v = np.linspace(1, 2, n_classes).astype(dtype)
    x, vectors, labels = np.tile(row, (n_rows, 1)), np.tile(v, (n_rows, 1)), np.full(n_rows, label)
    soft = np.zeros((n_rows, n_classes), dtype)
    soft[:, label] = 0.75
    soft[:, 0] += 0.25
    pair = (np.tile([label, 0], (n_rows, 1)), np.tile(np.array([0.75, 0.25], dtype), (n_rows, 1)))
    for targets, smoothing, temperature in (
        (labels, 0, 1),
        (soft, 0, 1),
        (pair, 0, 1),
        (labels, 0.1, 1),
        (labels, 0, 2),
    ):
        t = label if targets is labels else soft[0].astype(np.float64)
        options = {"z_loss": z_loss, "label_smoothing": smoothing, "temperature": temperature}
        finite = np.arange(n_classes) < len(shares)
        if smoothing:  # spread over classes that are infinitely far below, the loss alone would be infinite
            options["where"] = finite
        true = second_truth(row, t, v, **options)
        _, grad, hess = sx.value_grad_and_hess(x, targets, reduction="sum", **options)
        same = sx.value_and_grad(x, targets, reduction="sum", **options)[1]
        np.testing.assert_array_equal(grad, same)
        assert_all_close(grad, true["grad"])
        assert_all_close(hess, true["hess"])
        assert_all_close(sx.hvp(x, targets, vectors, reduction="sum", **options), true["hvp"], true["size"])
        across = sx.value_grad_and_hess(x.T, targets if targets is not soft else soft.T, axis=0, reduction="sum",
                                        **options)  # fmt: skip
        np.testing.assert_array_equal(across[1].T, grad)
        np.testing.assert_array_equal(across[2].T, hess)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("top", [0.5, 20.0])
def test_a_distribution_whose_sum_is_too_large(top: float, n_classes: int, n_rows: int) -> None:
    """Derivatives are divided by the normalizer, and keep their digits, also of a row that is sure of its class."""
    logits, targets = np.zeros((n_rows, n_classes)), np.zeros((n_rows, n_classes))
    logits[:, 1], targets[:, :3] = top, [1.5, 0.5, 1.25]
    large, of_large = targets * 2.0**1023, 2.0**1000
    vectors = np.tile(np.linspace(1, 2, n_classes), (n_rows, 1))
    _, grad, hess = sx.value_grad_and_hess(logits, large, normalizer=of_large)
    _, expected, expected_hess = sx.value_grad_and_hess(logits, targets, normalizer=2.0**-23)
    np.testing.assert_allclose(grad, expected, rtol=1e-15)
    np.testing.assert_allclose(hess, expected_hess, rtol=1e-15)
    narrowed = sx.value_and_grad(logits, large, normalizer=of_large, out=np.empty(logits.shape, np.float32))[1]
    np.testing.assert_array_equal(narrowed, grad.astype(np.float32))
    product, expected = (
        sx.hvp(logits, t, vectors, normalizer=normalizer) for t, normalizer in ((large, of_large), (targets, 2.0**-23))
    )
    np.testing.assert_allclose(product, expected, rtol=1e-13)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_products_with_vectors_as_large_as_there_are(dtype: str, n_classes: int, n_rows: int) -> None:
    """Neither the differences of two of them nor their sum fit the dtype, but the products do."""
    largest = float(np.finfo(dtype).max)
    for logits, shares in (
        ([0.0, 0.0, -1.0], [0.9, -0.9, 0.0]),
        ([0.5, 0.0, 0.0], [0.0, -1.0, 1.0]),
        ([0.0, 1.0, 0.9], [-1.0, 0.1, 1.0]),
        ([0.0, -40.0, -60.0], [-0.9, 0.9, 0.0]),
        ([0.0, -40.0, 0.0], [1.0, 1.0, 1.0]),
    ):
        row = np.full(n_classes, -np.inf, dtype)
        row[:3] = logits
        v = np.zeros(n_classes, dtype)
        v[:3] = np.array(shares) * largest
        x, vectors, labels = np.tile(row, (n_rows, 1)), np.tile(v, (n_rows, 1)), np.zeros(n_rows, int)
        true = second_truth(row, 0, v)
        size = largest * float(sx.softmax(row.astype(np.float64))[np.argsort(row)[-2]])
        assert_all_close(sx.softmax_vjp(x, vectors), true["vjp"], size)
        assert_all_close(sx.hvp(x, labels, vectors, reduction="sum"), true["hvp"], size)
        probs = sx.softmax(x)
        kept = sx.hvp(None, labels, vectors, probs=probs, reduction="sum")
        np.testing.assert_allclose(kept, sx.hvp(x, labels, vectors, reduction="sum"), rtol=1e-5, atol=size * 1e-6)
        in_place = vectors.copy()
        np.testing.assert_array_equal(sx.softmax_vjp(x, in_place, out=in_place), sx.softmax_vjp(x, vectors))
        u = [mpmath.mpf(value) for value in v.tolist()]
        total = mpmath.fsum(u)
        p = [mpmath.mpf(float(value)) for value in sx.softmax(row.astype(np.float64))]
        logs = sx.log_softmax_vjp(x, vectors)
        assert_all_close(logs, [a - b * total for a, b in zip(u, p, strict=True)], largest)
    assert not sx.softmax_vjp(x[:, [0, 2]], vectors[:, [0, 2]]).any()
    assert not sx.log_softmax_vjp(x[:, [0, 2]], vectors[:, [0, 2]]).any()


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("n_classes", [3, 300])
@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_a_float64_out_holds_what_the_logits_cannot(dtype: str, n_classes: int, n_rows: int) -> None:
    """The softmax family computes in float64 if that is where its results go."""
    row = np.zeros(n_classes, np.dtype(dtype))
    row[:3] = np.array([1.0, -1.0, 0.5]) * float(np.finfo(np.float32 if dtype == "float32" else np.float16).max) * 0.9
    x = np.tile(row, (n_rows, 1))
    for logits, axis in ((x, -1), (np.asfortranarray(x), -1), (x.T.copy(), 0)):
        for temperature in (1.0, 0.01, 1e-37):
            out = np.empty(logits.shape)
            options: dict[str, Any] = {"axis": axis, "temperature": temperature}
            sx.log_softmax(logits, out=out, **options)
            np.testing.assert_array_equal(out, sx.log_softmax(logits.astype(np.float64), **options))
            assert np.isfinite(out).all()
            sx.softmax(logits, out=out, **options)
            np.testing.assert_array_equal(out, sx.softmax(logits.astype(np.float64), **options))
            for product in (sx.softmax_vjp, sx.log_softmax_vjp):
                product(logits, logits, out=out, **options)
                np.testing.assert_array_equal(
                    out, product(logits.astype(np.float64), logits.astype(np.float64), **options)
                )
    near = np.tile(np.array([0.0, -80.0, -8.0]).astype(x.dtype), (n_rows, 1))
    out = np.empty(near.shape)
    np.testing.assert_allclose(sx.softmax(near, out=out, temperature=0.25)[:, 1], np.exp(-320.0), rtol=1e-12)
