"""The numerical contract with options, against arithmetic of many digits.

What keeps every digit without options keeps it with weights, smoothing and classes left out: losses within 2 ulp,
gradients within 4. Temperature and softcap make other logits, which are rounded: that is an error of so much in an
exponent, and nothing else may be lost. A z-loss adds a term that is as exact as its square.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from contract import DTYPES, GRAD_ULP, LOSS_ULP, Row, cases
from exact import ENLARGED, Array, Exact, Truth, exact
from reference import as_distributions

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

ROWS: dict[tuple[str, str], list[Row]] = {
    (dtype, case.name): [row for row in case.rows if row.logits.size <= 400]
    for dtype in DTYPES
    for case in cases(dtype)
    if case.name.startswith(("right by", "wrong by", "one above", "all equal", "alternating"))
    or case.name.endswith("C = 64")
}


def option_sets(n_classes: int, label: int) -> dict[str, dict[str, Any]]:
    """Weights are the same number in float32 and float64."""
    classes = np.arange(n_classes)
    weight = (1 + classes % 5).astype(np.float32) / 7
    heavy = np.where(classes == n_classes - 1, 1, 1e-12).astype(np.float32)
    where = (classes - label) % 4 != 1
    return {
        "weight": {"weight": weight},
        "where": {"where": where},
        "smoothing": {"label_smoothing": 0.1},
        "weight, smoothing": {"weight": weight, "label_smoothing": 0.1},
        "one heavy class, smoothing": {"weight": heavy, "label_smoothing": 0.1},
        "one weight, smoothing": {"weight": (heavy == 1).astype(np.float32), "label_smoothing": 0.1},
        "where, smoothing": {"where": where, "label_smoothing": 0.25},
        "weight, where, smoothing": {"weight": weight, "where": where, "label_smoothing": 0.1},
    }


@cache
def truths(dtype: str, name: str, options: str) -> list[tuple[Truth, Truth]]:
    rows = [exact(*row, **option_sets(row.logits.size, row.label)[options]) for row in ROWS[dtype, name]]
    return [(Truth.of([row.loss]), Truth.of(row.grad)) for row in rows]


def results(logits: Array, targets: Any, options: dict[str, Any]) -> Iterator[tuple[Array, Array]]:
    """Loss and gradient of a row by itself, and among others, where another kernel may take it."""
    yield sx.value_and_grad(logits, targets, reduction="none", **options)
    many = tuple(np.stack([part] * 9) for part in targets) if isinstance(targets, tuple) else np.stack([targets] * 9)
    losses, grad = sx.value_and_grad(np.stack([logits] * 9), many, reduction="none", **options)
    yield losses[5], grad[5]


def is_far(name: str) -> bool:
    """Whether no class has about the probability that smoothing gives it.

    Where one has, its gradient is what two numbers of a size differ by: see test_bounds.
    """
    return name.startswith(("right by", "one above")) and float(name.split()[-1]) >= 10


@pytest.mark.parametrize(
    ("dtype", "name", "options"),
    [
        (*case, options)
        for case in ROWS
        for options in option_sets(1, 0)
        if "smoothing" not in options or is_far(case[1])
    ],
)
def test_every_digit(dtype: str, name: str, options: str) -> None:
    for row, (true_loss, true_grad) in zip(ROWS[dtype, name], truths(dtype, name, options), strict=True):
        for loss, grad in results(*row, option_sets(row.logits.size, row.label)[options]):
            assert true_loss.error_in_ulp(loss).max() <= LOSS_ULP
            assert true_grad.error_in_ulp(grad).max() <= GRAD_ULP


ROUNDED = [
    {"temperature": 1.7},
    {"temperature": 0.3},
    {"softcap": 30.0},
    {"softcap": 2.5},
    {"temperature": 0.7, "softcap": 9.0},
    {"z_loss": 1e-4},
    {"z_loss": 0.5},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"label_smoothing": 0.1, "temperature": 1.3, "softcap": 15.0, "z_loss": 0.01},
]


def assert_within_bounds(loss: Array, grad: Array, row: Exact, options: dict[str, Any], exponent_ulp: float) -> None:
    """The contract, of each of the terms that a result is made up of, and what a rounding of the logits comes to."""
    z_loss = options.get("z_loss", 0)
    with np.errstate(under="ignore"):
        p, u, z, slope = (np.array(values, float) for values in (row.p, row.u, row.z, row.slope))
    eps, lse, mass = float(np.finfo(grad.dtype).eps), float(row.lse), float(sum(row.u))
    top = int(np.argmax(p))
    # How far a transformed logit may be off, and the log-sum-exp, which is one of them and a logarithm.
    step = exponent_ulp * eps * np.abs(z[p > 0]).max()
    lse_step = eps * (abs(z[top]) + abs(lse - z[top])) + step
    rest = np.array([float(1 - q) for q in row.p])
    pull, push = mass * p - u, 2 * z_loss * lse * p
    pull[top] = float(sum(row.u[:top] + row.u[top + 1 :])) - mass * rest[top]
    bound = LOSS_ULP * eps * float(row.loss) + np.abs(pull + push).sum() * 2 * step + 2 * z_loss * abs(lse) * lse_step
    assert abs(loss - float(row.loss)) <= bound
    terms = np.abs(mass * p) + np.abs(u)
    terms[top] = float(sum(row.u[:top] + row.u[top + 1 :])) + mass * rest[top]
    bound = GRAD_ULP * eps * (terms + np.abs(push)) + 2 * z_loss * p * lse_step
    bound += (mass + 2 * z_loss * abs(lse)) * p * np.minimum(rest, 1) * 2 * step
    bound *= slope
    if "softcap" in options:  # its slope is 1 less a square
        bound += 2 * (exponent_ulp + 1) * eps * np.abs(pull + push) / options.get("temperature", 1)
    error = np.ldexp(Truth.of(row.grad).distance(grad), -ENLARGED)
    assert np.all(error <= bound + float(np.finfo(grad.dtype).smallest_subnormal))


@cache
def bounded_truths(dtype: str, name: str, number: int) -> list[tuple[Row, Exact]]:
    return [(row, exact(*row, **ROUNDED[number])) for row in ROWS[dtype, name] if row.logits.size <= 100]


@pytest.mark.parametrize("options", ROUNDED, ids=str)
@pytest.mark.parametrize(("dtype", "name"), ROWS)
def test_bounds(dtype: str, name: str, options: dict[str, Any]) -> None:
    exponent_ulp = 4 if "softcap" in options else 1 if "temperature" in options else 0
    for row, truth in bounded_truths(dtype, name, ROUNDED.index(options)):
        for loss, grad in results(*row, options):
            assert_within_bounds(loss, grad, truth, options, exponent_ulp)


@pytest.mark.parametrize("kind", ["soft", "pair"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, *ROUNDED[-3:]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions(dtype: str, options: dict[str, Any], kind: str) -> None:
    rng = np.random.default_rng(5)
    for n_classes, margin in ((3, 20), (10, 0), (100, 20), (300, 3)):
        logits = rng.normal(0, 2, n_classes).astype(dtype)
        logits[1] += np.asarray(margin, dtype)
        targets: Any = (rng.integers(1, 64, n_classes) / 64).astype(dtype)
        if kind == "pair":
            targets = np.array([1, 0, 2, 1]), np.array([0.5, 0.25, 0.125, 0.125], dtype)
        whole = {**options, "weight": (1 + np.arange(n_classes) % 5).astype(np.float32) / 7}
        row = exact(logits, as_distributions(targets, (n_classes,))[1], **whole)
        for loss, grad in results(logits, targets, whole):
            assert_within_bounds(loss, grad, row, whole, 4 if "softcap" in options else 0)
