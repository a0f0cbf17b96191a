"""What does an option cost, next to the same call without any?

Times softxent's loss and gradient of labelled logits, mean over the rows, on one thread, with each option by itself and
with other kinds of targets, in rounds as `measure.py` tells, and prints the ratios to the plain call.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import Shape, shapes
from measure import figures_of, time_in_rounds
from peers import SOFTXENT

import softxent as sx

DEFAULT_SHAPES = shapes("1024x1000 20000x10 64x50257")


def calls(n_rows: int, n_classes: int) -> dict[str, Callable[[], Any]]:
    """The plain call under softxent's own name, and the others."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n_rows, n_classes)).astype(np.float32)
    labels = rng.integers(n_classes, size=n_rows)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=DEFAULT_SHAPES, help="rows x classes")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape (default: %(default)s)")
    args = parser.parse_args()
    for shape in args.shapes:
        rounds = time_in_rounds(calls(shape.n_rows, shape.n_classes), args.seconds)
        plain = figures_of(SOFTXENT.name, rounds)
        print(f"\n{shape.title}, float32: {1e9 * plain.seconds / shape.size:.3f} ns a logit without options")
        for name in rounds:
            figures = figures_of(name, rounds)
            if name != SOFTXENT.name:
                print(f"{name:>28}  {figures.to_softxent:.2f}  ({figures.lower:.2f} to {figures.upper:.2f})")


if __name__ == "__main__":
    main()
