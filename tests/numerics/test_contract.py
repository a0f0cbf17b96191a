"""The numerical contract against 50-digit arithmetic: losses within 2 ulp, every entry of the gradient within 4 ulp."""

from collections.abc import Iterator
from functools import cache

import mpmath
import numpy as np
import pytest
from exact import error_in_ulp, split

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

LOSS_ULP, GRAD_ULP = 2, 4
MARGINS = {"float32": [5, 10, 17.3, 20, 50, 90, 95], "float64": [5, 10, 17.3, 20, 36, 50, 95, 300, 700, 730]}


def cases(dtype: str) -> Iterator[tuple[str, np.ndarray, int]]:
    """Name, logits and label of one row after the other."""
    rng = np.random.default_rng(0)
    for n_classes in (2, 3, 10, 100, 1000, 100_000):
        for margin in MARGINS[dtype]:
            # Summed up, the others must stay below the top class for the margin to mean anything.
            others = np.where(np.arange(n_classes) % 3 == 1, 0.0, -1.0) - margin - np.log(n_classes)
            others[n_classes // 2] = 0.25
            yield f"margin {margin}, {n_classes} classes", others, n_classes // 2
    for margin in (20, 90):
        yield f"wrong by {margin}", np.array([0.5, 0.5 + margin, 0.25, -3]), 0
        yield f"wrong by {margin}, 1000 classes", np.append(rng.normal(size=999), 5 + margin), 3
    for n_classes in (1, 2, 3, 10, 33, 400, 1000, 100_000):
        yield f"all equal, {n_classes} classes", np.full(n_classes, 0.7), n_classes - 1
        yield f"alternating by 1, {n_classes} classes", np.resize([1.0, -1.0], n_classes), n_classes // 3
        yield f"alternating by 30, {n_classes} classes", np.resize([30.0, -30.0], n_classes), n_classes // 3
    yield "50 against -50", np.array([50.0, -50.0, -50.0]), 0
    yield "50 against -50, label below", np.array([50.0, -50.0, 3.0]), 1
    for offset in (1e4, -1e4, 1e7, 1e30, 511.0, 513.0, -4095.0, 4097.0):
        yield f"around {offset}", rng.normal(size=100) * 3 + offset, 17
    yield "near ties", np.array([1.0, np.nextafter(1, 0), np.nextafter(1, 2), 1.0]).repeat(5), 3
    for spread in (1, 10):
        for n_classes in (64, 480, 1000, 32768):
            logits = rng.normal(size=n_classes) * spread
            yield f"N(0, {spread}), {n_classes} classes, label on top", logits, int(logits.argmax())
            yield f"N(0, {spread}), {n_classes} classes, label elsewhere", logits, int(np.abs(logits).argmin())


ROWS = {f"{dtype}, {name}": (logits.astype(dtype), label) for dtype in MARGINS for name, logits, label in cases(dtype)}


@cache
def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss, then the gradient, each as a double and what it leaves out."""
    logits, label = ROWS[name]
    with mpmath.workdps(50):
        values, places = np.unique(logits, return_inverse=True)
        exact = [mpmath.mpf(float(value)) for value in values]
        powers = [mpmath.exp(value - exact[-1]) for value in exact]
        counts = np.bincount(places)

        def total_without(left_out: int) -> mpmath.mpf:
            """The sum of all powers but for one at that place: 50 digits are too few to take it off again."""
            kept = counts - (np.arange(counts.size) == left_out)
            return mpmath.fsum(int(count) * power for count, power in zip(kept, powers, strict=True))

        total = total_without(-1)
        loss = mpmath.log1p(total_without(counts.size - 1)) + (exact[-1] - exact[places[label]])
        at_label = -total_without(places[label]) / total
        grad = np.array([split(power / total) for power in powers])[places]
        grad[label] = split(at_label)
        return np.array(split(loss)), grad


def alone(logits: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The losses and gradients of a row, by itself, and where its first class then stands in each."""
    loss, grad = sx.value_and_grad(logits, label, reduction="none")
    return loss[None], grad[None], np.zeros(1, int)


def among_others(
    logits: np.ndarray, label: int, axis: int = 1, n_rows: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of so many rows that the narrow kernel takes them, each with the classes moved on by some more."""
    shifts = np.arange(n_rows) * (1 + logits.size // n_rows)
    rows = np.stack([np.roll(logits, shift) for shift in shifts], axis=1 - axis)
    labels = (label + shifts) % logits.size
    losses, grad = sx.value_and_grad(rows, labels, axis=axis, reduction="none")
    return losses, np.moveaxis(grad, axis, 1), shifts


def along_axis_0(logits: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return among_others(logits, label, axis=0, n_rows=3)


WAYS = {"alone": alone, "among others": among_others, "along axis 0": along_axis_0}


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for way in WAYS for name, row in ROWS.items() if way == "alone" or row[0].size <= 1000],
)
def test_a_label(way: str, name: str) -> None:
    logits, label = ROWS[name]
    true_loss, true_grad = truth(name)
    smallest = np.finfo(logits.dtype).smallest_subnormal
    for loss, moved, shift in zip(*WAYS[way](logits, label), strict=True):
        grad = np.roll(moved, -shift)
        assert error_in_ulp(loss, true_loss) <= LOSS_ULP
        assert error_in_ulp(grad, true_grad).max() <= GRAD_ULP
        # Nothing vanishes but what is below the smallest subnormal number.
        assert np.all((grad != 0) | (np.abs(true_grad[:, 0]) < smallest))
        # Rows sum to zero to within the rounding of their largest entry, and of entries that are subnormal.
        total = abs(np.sum(grad, dtype=np.longdouble))
        assert total <= 4 * np.spacing(np.abs(grad).max()) + grad.size * float(smallest)


@pytest.mark.parametrize("name", [name for name in ROWS if not name.endswith(" 100000 classes")])
def test_a_one_hot_row_is_its_label(name: str) -> None:
    logits, label = ROWS[name]
    one_hot = np.arange(logits.size) == label
    for reduction in ("none", "mean"):
        loss, grad = sx.value_and_grad(logits, label, reduction=reduction)
        same_loss, same_grad = sx.value_and_grad(logits, one_hot, reduction=reduction)
        assert same_loss == loss
        np.testing.assert_array_equal(same_grad, grad)


@pytest.mark.parametrize("n_classes", [3, 7, 10, 49, 130, 1000])
def test_equal_logits_share_exactly(n_classes: int) -> None:
    """In float64 the division by the sum is rounded once, so that the gradient is w / C as NumPy has it."""
    weights = np.random.default_rng(n_classes).random(40)
    labels = np.zeros(40, np.intp)
    _, grad = sx.value_and_grad(np.zeros((40, n_classes)), labels, sample_weight=weights, reduction="sum")
    np.testing.assert_array_equal(grad[:, 1:], np.broadcast_to(weights[:, None] / n_classes, (40, n_classes - 1)))
