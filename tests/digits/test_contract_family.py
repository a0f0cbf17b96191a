"""The softmax family keeps the contract of docs/numerics.md over the rows of the loss's contract."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from contract import DTYPES, HESS_ULP, LOG_SOFTMAX_ULP, LSE_ULP, LSE_ULP_OF_M, SOFTMAX_ULP, cases
from exact import ENLARGED, Array, Family, solve_family

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

CASES = {(dtype, case.name): case.rows for dtype in DTYPES for case in cases(dtype)}
every_case = pytest.mark.parametrize(("dtype", "name"), CASES)


@cache
def solved(dtype: str, name: str) -> list[tuple[Array, Family]]:
    distinct = {row.logits.tobytes(): row.logits for row in CASES[dtype, name]}
    return [(logits, solve_family(logits)) for logits in distinct.values()]


def each_way(logits: Array) -> Iterator[tuple[Callable[[Any], Array], Callable[[Array], Array]]]:
    """How to call a function with the row alone, among others along axis 1, and along axis 0; and rows as it came."""
    yield lambda function: function(logits)[None], lambda rows: rows
    if logits.size > 1000:
        return
    for axis, n_rows in ((1, 9), (0, 3)):
        shifts = np.arange(n_rows)[:, None] * (1 + logits.size // n_rows)
        places = (np.arange(logits.size) + shifts) % logits.size
        rows = np.empty((n_rows, logits.size), logits.dtype)
        np.put_along_axis(rows, places, logits[None], 1)
        x = np.ascontiguousarray(rows if axis == 1 else rows.T)

        def back(result: Array, axis: int = axis, places: Array = places) -> Array:
            return np.take_along_axis(np.moveaxis(result, axis, 1), places, 1)

        yield (lambda function, x=x, axis=axis: function(x, axis=axis)), back


def hessian(logits: Array, label: int, axis: int) -> Array:
    """The diagonal for a label, the same one for all rows."""
    labels = np.full(np.delete(logits.shape, axis), label)
    return sx.value_grad_and_hess(logits, labels, axis=axis, reduction="sum")[2]


@every_case
def test_the_family(dtype: str, name: str) -> None:
    smallest = np.finfo(dtype).smallest_subnormal
    for logits, true in solved(dtype, name):
        for call, back in each_way(logits):
            p, log_p, lse = back(call(sx.softmax)), back(call(sx.log_softmax)), call(sx.logsumexp)
            assert true.softmax.error_in_ulp(p).max() <= SOFTMAX_ULP
            assert np.all((p != 0) | (true.softmax.nearest < smallest))
            assert np.all(np.abs(p.sum(axis=1, dtype=np.longdouble) - 1) <= 2 * np.finfo(dtype).eps)
            assert true.log_softmax.error_in_ulp(log_p).max() <= LOG_SOFTMAX_ULP[dtype]
            assert np.all((log_p != 0) | (np.abs(true.log_softmax.nearest) < smallest))
            for label in (0, int(np.argmax(logits)), logits.size // 2):
                hess = back(call(lambda x, axis=-1, label=label: hessian(x, label, axis)))
                assert true.hess.error_in_ulp(hess).max() <= HESS_ULP
                assert np.all((hess != 0) | (true.hess.nearest < smallest))
            of_m = LSE_ULP_OF_M * np.ldexp(float(np.spacing(np.abs(logits.max()))), ENLARGED)
            assert true.lse.distance(lse).max() <= of_m or true.lse.error_in_ulp(lse).max() <= LSE_ULP
