"""Train softmax regression in compiled loops, from several threads at once, and compare it with NumPy's loop.

Each thread trains a model of its own on a part of the handwritten digits left out (cross-validation). The loops hold no
GIL, so the threads run at the same time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import regression_cpp
import regression_cython

import softxent as sx

FOLDS, EPOCHS, RATE = 4, 10, 0.05
Train = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]


def in_cython(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> float:
    logits = np.empty(len(bias), np.float32)
    return float(regression_cython.train(inputs, labels, weights, bias, logits, RATE, EPOCHS))


def in_cpp(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> float:
    return float(regression_cpp.train(inputs, labels, weights, bias, RATE, EPOCHS))


def in_python(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> float:
    total = 0.0
    for _ in range(EPOCHS):
        total = 0.0
        for x, label in zip(inputs, labels, strict=True):
            logits = weights @ x + bias
            loss, grad = sx.value_and_grad(logits, label, reduction="sum", out=logits)
            total += loss
            bias -= RATE * grad
            weights -= RATE * np.outer(grad, x)
    return total / len(inputs)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits if scikit-learn is there, else clusters around ten random points."""
    try:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return (pixels / 16).astype(np.float32), labels.astype(np.int64)
    except ModuleNotFoundError:
        rng = np.random.default_rng(0)
        labels = rng.integers(10, size=1800)
        return (rng.random((10, 64))[labels] + rng.normal(0, 0.5, (1800, 64))).astype(np.float32), labels


def accuracy(train: Train, inputs: np.ndarray, labels: np.ndarray, fold: int) -> float:
    """Of the rows of a fold, by a model that was trained on all others."""
    held_out = np.arange(len(labels)) % FOLDS == fold
    weights, bias = np.zeros((10, inputs.shape[1]), np.float32), np.zeros(10, np.float32)
    train(inputs[~held_out], labels[~held_out], weights, bias)
    logits = inputs[held_out] @ weights.T + bias
    return sx.evaluate(logits, labels[held_out]).accuracy


def main() -> None:
    inputs, labels = digits()
    seen = {}
    for name, train in {"Cython": in_cython, "C++": in_cpp, "Python": in_python}.items():
        start = perf_counter()
        with ThreadPoolExecutor(FOLDS) as pool:
            seen[name] = list(pool.map(lambda fold, train=train: accuracy(train, inputs, labels, fold), range(FOLDS)))
        print(f"{name:<8}{perf_counter() - start:6.2f} s   accuracy {np.mean(seen[name]):.3f}")
    spread = max(abs(a - b) for a, b in zip(seen["Cython"], seen["C++"], strict=True))
    if min(map(np.mean, seen.values())) < 0.9 or spread > 0.01:
        raise SystemExit("the models differ, or are bad")


if __name__ == "__main__":
    main()
