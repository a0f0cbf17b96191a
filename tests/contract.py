"""The numerical contract: its bounds, and the rows that it is measured on, for the tests and for docs/numerics.md."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from exact import Array

DTYPES = ("float32", "float64")
LOSS_ULP, GRAD_ULP = 2.0, 4.0
SOFTMAX_ULP = 2.2
HESS_ULP = 4.0
LOG_SOFTMAX_ULP = {"float32": 2.0, "float64": 2.1}
LSE_ULP_OF_M, LSE_ULP = 1.0, 2.1  # of the largest logit or of itself, whichever is larger

CLASSES = (2, 3, 10, 1000, 100_000)
MARGINS = {
    "float32": (5, 10, 17.3, 20, 50, 90, 95),
    "float64": (5, 10, 17.3, 20, 30, 36, 40, 50, 90, 95, 200, 500, 700, 730),
}
LARGEST_MARGIN = {"float32": 103.0, "float64": 744.0}  # beyond, the truth is below the smallest subnormal
RANDOM_ROWS = 2000
# The worst rows that longer searches found; all other cases are as they were thought of.
FOUND: dict[str, Sequence[tuple[list[float], int]]] = {
    "float32": [([-16.963396072387695, -47.47047805786133], 0), ([-28.066509246826172, -36.38438415527344], 0)],
    "float64": [
        ([28.778695803102586, -7.958795038433109], 0),
        ([22.573473911323745, 0.3804088138834061], 0),
        ([11.959682518769242, 11.57264539456979], 1),
        ([-2.0768503477185227, -7.620071886366305], 0),
        ([25.00571741971507, 3.8267965341360792, 13.175105697143174], 1),
    ],
}


class Row(NamedTuple):
    logits: Array
    label: int


@dataclass(frozen=True)
class Case:
    name: str
    rows: Sequence[Row]


def cases(dtype: str) -> list[Case]:
    """With the logits rounded to the dtype."""
    return [Case(name, [Row(x.astype(dtype), label) for x, label in rows]) for name, rows in cases_in_double(dtype)]


def cases_in_double(dtype: str) -> Iterator[tuple[str, list[Row]]]:
    rng = np.random.default_rng(0)
    eps = float(np.finfo(dtype).eps)

    def behind(n_classes: int) -> Array:
        """Logits of which the largest is 0. A thousand different ones are enough to compute in many digits."""
        x = np.resize(rng.uniform(-3, 0, min(n_classes, 1000)), n_classes)
        x[-1] = 0
        return x

    def first_at(gap: float) -> list[Row]:
        """The label's logit is 0, the best of the others lies `gap` below; at a place in the middle of the row."""
        labels = {n: n // 3 for n in CLASSES}
        return [Row(np.insert(behind(n - 1) - gap, label, 0), label) for n, label in labels.items()]

    def sure_by(margin: float, last: float | None = None) -> list[Row]:
        """All others together stay below the label, except the last if it is given."""
        rows = []
        for n in (*CLASSES, 100):
            x = np.where(np.arange(n) % 3 == 1, 0.0, -1.0) - margin - np.log(n)
            x[-1] = x[-1] if last is None else last
            x[(n - 1) // 2] = 0.25
            rows.append(Row(x, (n - 1) // 2))
        return rows

    def top_and_other(x: Array) -> list[Row]:
        return [Row(x, int(np.argmax(x))), Row(x, int(np.argmin(x))), Row(x, len(x) // 2)]

    yield "one class", [Row(np.array([3.0]), 0)]
    for margin in MARGINS[dtype]:
        yield f"right by {margin:g}", first_at(margin) + sure_by(margin)
    for gap in (20, 90):
        yield f"wrong by {gap}", first_at(-gap)
        yield f"one above by {2 * gap}", sure_by(gap, 2.0 * gap)
    yield "all equal", [Row(np.full(n, value), n - 1) for n in (*CLASSES, 33, 400) for value in (1.7, 0.7)]
    yield "N(0, 1) + 1e4", top_and_other(rng.normal(size=1000) + 1e4)
    yield "N(0, 10) - 1e4", top_and_other(10 * rng.normal(size=1000) - 1e4)
    offsets = (1e4, -1e4, 1e7, 1e30, 511.0, 513.0, -4095.0, 4097.0)
    yield "N(0, 3) + 511 and others", [Row(3 * rng.normal(size=100) + offset, 17) for offset in offsets]
    yield "all 1e30", [Row(np.full(n, 1e30), 0) for n in CLASSES]
    spread = 1e30 * np.array([1, 1, -1, 0, 1e-25, 1 - eps])
    yield "of size 1e30", [Row(spread, label) for label in range(len(spread))]
    fifty = [Row(np.resize([50.0, -50.0], n), label) for n in CLASSES for label in (0, 1)]
    yield "+50 and -50", [*fifty, Row(np.array([50.0, -50.0, 3.0]), 1)]
    for size in (1.0, 30.0):
        alternating = [np.resize([size, -size], n) for n in (*CLASSES, 33, 400)]
        yield f"alternating +-{size:g}", [Row(x, label) for x in alternating for label in (0, 1)]
    for scale in (1, 10):
        for n in (64, 480, 1000, 32768):
            yield f"N(0, {scale}), C = {n}", top_and_other(scale * rng.normal(size=n))[::2]
    ties = [1 + eps * rng.integers(8, size=n) for n in (2, 3, 10, 1000) for _ in range(3)]
    yield "near ties", [row for x in ties for row in top_and_other(x)]
    yield f"{RANDOM_ROWS} random rows", list(random_rows(rng, LARGEST_MARGIN[dtype]))
    yield "found by search", [Row(np.array(x), label) for x, label in FOUND[dtype]]


def random_rows(rng: np.random.Generator, largest_margin: float) -> Iterator[Row]:
    """Of many widths, spreads, offsets and margins: they meet by chance what the other cases do not look for."""
    for _ in range(RANDOM_ROWS):
        n = int(rng.choice([2, 3, 10, 64, 130]))
        x = 10 ** rng.uniform(-6, np.log10(largest_margin / 5)) * rng.normal(size=n)
        x += rng.choice([0, 1]) * rng.normal(scale=1000)
        if rng.integers(2):
            x[rng.integers(n)] = x.max() + rng.uniform(0, largest_margin / 2)
        yield Row(x, int(rng.choice([np.argmax(x), rng.integers(n)])))
