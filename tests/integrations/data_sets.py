"""What the tests of the integrations share: small data sets that trees can learn, and labels without a library."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

N_CLASSES = (3, 10, 50)


class DataSet(NamedTuple):
    x: np.ndarray  # (N, 6)
    y: np.ndarray  # (N,)
    weight: np.ndarray  # (N,)


def data_set(n_classes: int, n_rows: int = 600, seed: int = 0) -> DataSet:
    """A cloud of points for each class; with 3 classes, one of them has most of the rows."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.85, 0.12, 0.03]) if n_classes == 3 else np.full(n_classes, 1 / n_classes)
    y = rng.choice(n_classes, n_rows, p=shares)
    y[:n_classes] = np.arange(n_classes)  # each class is there
    x = rng.normal(size=(n_rows, 6)) + np.random.default_rng(1).normal(size=(n_classes, 6))[y]
    return DataSet(x, y, 3 * rng.random(n_rows) + 0.1)


class Labelled:
    """Labels and weights, as DMatrix and Dataset have them."""

    def __init__(self, labels: npt.ArrayLike | None, weight: npt.ArrayLike | None = None) -> None:
        self.labels = None if labels is None else np.asarray(labels, np.float32)
        self.weight = None if weight is None else np.asarray(weight, np.float32)

    def get_label(self) -> np.ndarray | None:
        return self.labels

    def get_weight(self) -> np.ndarray | None:
        return self.weight
