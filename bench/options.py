"""What does an option cost, next to the same call without any? And another kind of target or result?

Times softxent's loss and gradient, mean over the rows, on one thread, in rounds as `measure.py` tells. Each call stands
in a group, and its cost is the ratio to the first call of the group.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import Shape, shapes
from measure import compact, figures_of, time_in_rounds
from peers import SOFTXENT

import softxent as sx

OPTION_SHAPES = shapes("1024x1000 20000x10 64x50257")
SECONDS = 20.0
WITH_OPTIONS, OUT = "float32, with an option", "float64 logits, by the dtype and order of out"
GROUPS = (WITH_OPTIONS, OUT)


@dataclass(frozen=True)
class Costs:
    """The costs of the calls of a group, by name: median and quartiles of the ratio to the plain call."""

    shape: Shape
    group: str
    plain_ns: float  # for each logit
    ratios: dict[str, tuple[float, float, float]]

    def flat(self) -> dict[str, Any]:
        ratios = {name: [float(f"{ratio:.4g}") for ratio in of_name] for name, of_name in self.ratios.items()}
        return {"shape": str(self.shape), "group": self.group, **compact({"plain_ns": self.plain_ns}), "ratios": ratios}

    @classmethod
    def unflat(cls, fields: Mapping[str, Any]) -> "Costs":
        ratios = {name: (of_name[0], of_name[1], of_name[2]) for name, of_name in fields["ratios"].items()}
        return cls(Shape.parse(fields["shape"]), fields["group"], fields["plain_ns"], ratios)


def calls(group: str, n_rows: int, n_classes: int) -> dict[str, Callable[[], Any]]:
    """The calls of a group, the plain one first, under softxent's own name."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n_rows, n_classes))
    labels = rng.integers(n_classes, size=n_rows)
    if group == OUT:
        return calls_by_out(logits, labels)
    return calls_with_options(logits.astype(np.float32), labels, rng)


def calls_by_out(logits: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], Any]]:
    def call(dtype: str, order: Any = "C") -> Callable[[], Any]:
        grad = np.zeros(logits.shape, dtype, order)
        return lambda: sx.value_and_grad(logits, labels, out=grad, n_threads=1)

    return {
        SOFTXENT.name: call("float64"),
        "float32": call("float32"),
        "float64, Fortran order": call("float64", "F"),
        "float32, Fortran order": call("float32", "F"),
    }


def calls_with_options(
    logits: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> dict[str, Callable[[], Any]]:
    n_rows, n_classes = logits.shape
    some_ignored = np.where(rng.random(n_rows) < 0.1, -100, labels)
    soft = rng.random(logits.shape, np.float32)
    soft /= soft.sum(axis=1, keepdims=True)
    weight = rng.random(n_classes, np.float32)
    allowed = rng.random(logits.shape) < 0.9
    allowed[np.arange(n_rows), labels] = True
    grad = np.empty_like(logits)

    def pair(k: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(n_classes, size=(n_rows, k)), np.full((n_rows, k), 1 / k, np.float32)

    def call(targets: Any = labels, **options: Any) -> Callable[[], Any]:
        return lambda: sx.value_and_grad(logits, targets, out=grad, n_threads=1, **options)

    return {
        SOFTXENT.name: call(),
        "sample_weight": call(sample_weight=rng.random(n_rows)),
        "weight": call(weight=weight),
        "ignore_index": call(some_ignored, ignore_index=-100),
        "label_smoothing": call(label_smoothing=0.1),
        "z_loss": call(z_loss=1e-4),
        "temperature": call(temperature=0.7),
        "softcap": call(softcap=30.0),
        "where": call(where=allowed),
        "weight and label_smoothing": call(weight=weight, label_smoothing=0.1),
        "distributions": call(soft),
        "pairs, k = 2": call(pair(2)),
        "pairs, k = 8": call(pair(8)),
        "evaluate": lambda: sx.evaluate(logits, labels, n_threads=1),
    }


def measure_costs(shape: Shape, group: str, seconds: float) -> Costs:
    rounds = time_in_rounds(calls(group, shape.n_rows, shape.n_classes), seconds)
    figures = {name: figures_of(name, rounds) for name in rounds}
    plain = figures.pop(SOFTXENT.name)
    ratios = {name: (found.to_softxent or 0, found.lower or 0, found.upper or 0) for name, found in figures.items()}
    return Costs(shape, group, 1e9 * plain.seconds / shape.size, ratios)


def table(costs: Costs) -> str:
    lines = [f"\n{costs.shape.title}, {costs.group}: {costs.plain_ns:.3f} ns a logit for the plain call"]
    lines += [
        f"{name:>28}  {ratio:.2f}  ({low:.2f} to {high:.2f})" for name, (ratio, low, high) in costs.ratios.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=OPTION_SHAPES, help="rows x classes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each group (default: %(default)s)")
    args = parser.parse_args()
    for shape in args.shapes:
        for group in GROUPS:
            print(table(measure_costs(shape, group, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
