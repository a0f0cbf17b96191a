"""What a contender of the benchmark is given, what it returns, and whether that is right.

Losses are means over the rows, and so are gradients, diagonals of Hessians and their products with vectors. All else is
a result of each row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from cases import Case, Task

Array = npt.NDArray[Any]

RESULTS: dict[Task, tuple[str, ...]] = {
    "grad": ("loss", "gradient"),
    "forward": ("loss",),
    "softmax": ("probabilities",),
    "log_softmax": ("log-probabilities",),
    "logsumexp": ("log-sum-exps",),
    "hess": ("loss", "gradient", "diagonal"),
    "hvp": ("product",),
    "hvp_of_probs": ("product",),
}
LOGIT_SCALE = 3.0
# The largest error allowed in a probability, in a loss or a logarithm (relative to the largest one, where that is above
# 1) and in an entry of a derivative (times the number of rows: that of a gradient is a probability less a target then).
# For the halves, four of their eps.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
# The gradient of many rows may be below the normal numbers: so far apart are its neighbours there.
SMALLEST_SUBNORMAL = {"float16": 2.0**-24}


@dataclass(frozen=True)
class Problem:
    """Logits and labels of which the results of a task are wanted.

    Whoever accepts a buffer for its result gets `out`, so that no contender has luckier memory than another; a diagonal
    goes to `second_out`. With `keep_nothing`, memory is being watched: whoever can must not hold on to what it has
    freed.
    """

    task: Task
    logits: Array
    labels: npt.NDArray[np.int64]
    class_axis: int
    out: Array
    n_threads: int
    keep_nothing: bool = False

    @classmethod
    def random(cls, case: Case, keep_nothing: bool = False) -> "Problem":
        rng = np.random.default_rng(0)
        shape = case.shape
        logits = (LOGIT_SCALE * rng.standard_normal(shape.axes)).astype(dtype_of(case.dtype))
        labels = rng.integers(shape.n_classes, size=shape.of_labels)
        out = np.zeros_like(logits)  # touched, so that no first call pays for its pages
        return cls(case.task, logits, labels, shape.class_axis, out, case.threads, keep_nothing)

    @property
    def results(self) -> tuple[str, ...]:
        return RESULTS[self.task]

    @cached_property
    def second_out(self) -> Array:
        return np.zeros_like(self.logits)

    @cached_property
    def vectors(self) -> Array:
        return np.random.default_rng(1).standard_normal(self.logits.shape).astype(self.logits.dtype)

    def in_dtype(self, dtype: npt.DTypeLike) -> "Problem":
        """With the same logits in another dtype."""
        x = self.logits.astype(dtype)
        return replace(self, logits=x, out=np.zeros_like(x))

    @property
    def at_labels(self) -> tuple[Array, ...]:
        """The index of one logit a row: its label's."""
        index: list[Array] = list(np.indices(self.labels.shape, sparse=True))
        index.insert(self.class_axis, self.labels)
        return tuple(index)


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


@dataclass(frozen=True)
class Entry:
    """A contender ready to run: `call` returns one value for each name in `results`."""

    call: Callable[[], Sequence[Any]]
    results: tuple[str, ...]
    to_numpy: Callable[[Any], Array] = np.asarray
    computed_in: str | None = None  # a dtype, if not that of the logits
    scratch: tuple[Array, ...] = ()  # kept from call to call; neither input nor result


def reference(problem: Problem) -> dict[str, Array]:
    """All that a contender may return, computed in float64 with plain NumPy."""
    axis, at_labels, n_rows = problem.class_axis, problem.at_labels, problem.labels.size
    x = problem.logits.astype(np.float64)
    x -= x.max(axis=axis, keepdims=True)
    probabilities = np.exp(x)
    total = probabilities.sum(axis=axis, keepdims=True)
    probabilities /= total
    found = {"logits": problem.logits, "probabilities": probabilities}
    if "loss" in problem.results:
        found["loss"] = np.mean(np.log(total.squeeze(axis)) - x[at_labels])
    if "gradient" in problem.results:
        found["gradient"] = probabilities / n_rows
        found["gradient"][at_labels] -= 1 / n_rows
    if "diagonal" in problem.results:
        found["diagonal"] = probabilities * (1 - probabilities) / n_rows
    if "product" in problem.results:
        vectors = problem.vectors.astype(np.float64)
        means = np.sum(probabilities * vectors, axis=axis, keepdims=True)
        found["product"] = probabilities * (vectors - means) / n_rows
    if "log-probabilities" in problem.results:
        found["log-probabilities"] = x - np.log(total)
    if "log-sum-exps" in problem.results:
        peak = problem.logits.max(axis=axis).astype(np.float64)
        found["log-sum-exps"] = peak + np.log(total.squeeze(axis))
    return found


def find_error(entry: Entry, problem: Problem, right: Mapping[str, Array]) -> str | None:
    """Run the entry once and say what is wrong with its results, if anything is."""
    dtype = entry.computed_in or problem.logits.dtype.name
    mean_of_row = 1 / problem.labels.size
    units = {"gradient": mean_of_row, "diagonal": mean_of_row, "product": mean_of_row}
    for name in {"loss", "log-probabilities", "log-sum-exps"} & right.keys():
        units[name] = max(1.0, float(np.max(np.abs(right[name]))))
    for name, value in zip(entry.results, entry.call(), strict=True):
        got = entry.to_numpy(value)
        if got.shape != right[name].shape:
            return f"wrong {name}: its shape is {got.shape}, not {right[name].shape}"
        unit = units.get(name, 1.0)
        error = float(np.max(np.abs(got.astype(np.float64) - right[name]))) / unit
        allowed = TOLERANCES[dtype] + SMALLEST_SUBNORMAL.get(dtype, 0) / unit
        if not error <= allowed:  # NaN is refused too
            return f"wrong {name}: off by {error:.1e}, allowed {allowed:.0e}"
    return None
