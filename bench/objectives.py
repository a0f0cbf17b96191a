"""What an objective costs: gradient and Hessian for XGBoost and LightGBM, and their share of the time of training.

First a call, on one thread: softxent's objective, the NumPy that people write, and scikit-learn's `gradient_hessian`,
in rounds as `measure.py` tells, from the scores as the library passes them to what it reads. Then training, on several
threads, with the library's own objective, with softxent's and with that of NumPy, in turn: the median of the times, and
which part of it goes to the objective. XGBoost tells what its own takes; LightGBM does not.
"""

import argparse
import contextlib
import gc
import io
import re
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from cases import Shape, shapes
from measure import figures_of, time_in_rounds
from peers import SOFTXENT

from softxent import set_num_threads
from softxent.boosting import LightGBMObjective, XGBoostObjective

CALL_SHAPES = shapes("200000x10 1000000x3")
LIBRARIES = ("xgboost", "lightgbm")
OBJECTIVES: dict[str, Any] = {"xgboost": XGBoostObjective(n_threads=1), "lightgbm": LightGBMObjective(n_threads=1)}
N_FEATURES = 10
ROUNDS = 10
Result = tuple[np.ndarray, np.ndarray]


class Labels:
    """The part of a DMatrix or a Dataset that an objective looks at."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels.astype(np.float32)

    def get_label(self) -> np.ndarray:
        return self.labels

    def get_weight(self) -> None:
        return None


def as_read(library: str, grad: np.ndarray, hess: np.ndarray) -> Result:
    """What the library makes of what it gets: LightGBM wants float32, class after class; XGBoost takes any matrix."""
    if library == "xgboost":
        return grad, hess
    flat = grad.ravel("F"), hess.ravel("F")
    return flat[0].astype(np.float32, copy=False), flat[1].astype(np.float32, copy=False)


def usual(library: str, scores: np.ndarray, data: Any) -> Result:
    """What people write."""
    n_rows, n_classes = scores.shape
    labels = data.get_label().astype(int)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    grad = p.copy()
    grad[np.arange(n_rows), labels] -= 1
    factor = 2.0 if library == "xgboost" else n_classes / (n_classes - 1)
    hess = factor * p * (1 - p)
    return grad, np.maximum(hess, 1e-16) if library == "xgboost" else hess


def calls(library: str, shape: Shape) -> dict[str, Callable[[], Result]]:
    """The objectives, softxent's first; each result was compared with it."""
    rng = np.random.default_rng(0)
    n_rows, n_classes = shape.axes
    order, dtype = ("C", np.float32) if library == "xgboost" else ("F", np.float64)
    scores = np.array(rng.normal(0, 2, shape.axes), dtype, order=order)  # type: ignore[call-overload]
    data = Labels(rng.integers(n_classes, size=n_rows))
    objective = OBJECTIVES[library]
    made: dict[str, Callable[[], Result]] = {
        SOFTXENT.name: lambda: as_read(library, *objective(scores, data)),
        "numpy": lambda: as_read(library, *usual(library, scores, data)),
    }
    with contextlib.suppress(ImportError):
        from sklearn._loss.loss import HalfMultinomialLoss  # private: it may move or change

        loss = HalfMultinomialLoss(n_classes=n_classes)
        labels = data.labels.astype(dtype)
        made["scikit-learn"] = lambda: as_read(library, *loss.gradient_hessian(labels, scores, n_threads=1))
    right = made[SOFTXENT.name]()
    for name, call in made.items():
        np.testing.assert_allclose(call()[0], right[0], rtol=1e-3, atol=1e-6, err_msg=name)
    return made


def watched(objective: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The objective, which adds the time of each call to `seconds`; LightGBM copies anything but a function."""

    def call(scores: np.ndarray, data: Any) -> Any:
        start = time.perf_counter()
        result = objective(scores, data)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def train_xgboost(data: Any, n_classes: int, objective: Any, threads: int) -> float | None:
    """The seconds that XGBoost logs of its own objective, if that is used."""
    import xgboost

    parameters: dict[str, Any] = {"num_class": n_classes, "objective": "multi:softprob", "base_score": 0.5}
    parameters |= {"nthread": threads, "max_depth": 6, "disable_default_eval_metric": True}
    log = io.StringIO()
    with contextlib.redirect_stdout(log), xgboost.config_context(verbosity=3):
        xgboost.train(parameters, data, ROUNDS, obj=objective)
        gc.collect()  # a model that goes logs its times
    found = re.search(r"GetGradient: ([\d.e-]+)s", log.getvalue())
    return float(found[1]) if found else None


def train_lightgbm(data: Any, n_classes: int, objective: Any, threads: int) -> None:
    import lightgbm

    parameters = {"num_class": n_classes, "objective": objective or "multiclass", "boost_from_average": False}
    parameters |= {"num_threads": threads, "num_leaves": 63, "verbosity": -1, "metric": "None"}
    lightgbm.train(parameters, data, ROUNDS)


def training(library: str, shape: Shape, threads: int, repeats: int) -> dict[str, tuple[float, float | None]]:
    """Medians of the seconds of a round, and of the part of the objective in them, by objective."""
    rng = np.random.default_rng(0)
    n_rows, n_classes = shape.axes
    labels = rng.integers(n_classes, size=n_rows)
    x = rng.normal(size=(n_rows, N_FEATURES)) + rng.normal(size=(n_classes, N_FEATURES))[labels]
    set_num_threads(threads)
    objective = type(OBJECTIVES[library])()
    train: Callable[..., float | None]
    data: Any
    if library == "xgboost":
        import xgboost

        data, train = xgboost.QuantileDMatrix(x, labels), train_xgboost
    else:
        import lightgbm

        data, train = lightgbm.Dataset(x, labels, params={"verbosity": -1}).construct(), train_lightgbm
    made: dict[str, Any] = {"its own": None, "softxent": objective, "numpy": lambda z, d: usual(library, z, d)}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    parts: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, called in made.items():
            of_objective: list[float] = []
            start = time.perf_counter()
            logged = train(data, n_classes, None if called is None else watched(called, of_objective), threads)
            total = time.perf_counter() - start
            seconds[name].append(total / ROUNDS)
            if called is not None or logged is not None:
                parts[name].append((sum(of_objective) if called is not None else logged or 0) / total)
    return {name: (median(seconds[name]), median(parts[name]) if parts[name] else None) for name in made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=CALL_SHAPES, help="rows x classes")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the calls of a shape (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of training (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each training; 0 for none (default: %(default)s)")
    args = parser.parse_args()
    for library in args.libraries:
        for shape in args.shapes:
            rounds = time_in_rounds(calls(library, shape), args.seconds)
            print(f"\n{library}, {shape.title}: gradient and Hessian, one thread")
            for name in rounds:
                found = figures_of(name, rounds)
                print(
                    f"{name:>14}  {1e3 * found.seconds:8.2f} ms  {found.to_softxent or 1:6.2f} times softxent",
                    flush=True,
                )
            if args.repeats:
                print(f"{library}, {shape.title}: a round of training, {args.threads} threads")
                found_rounds = training(library, shape, args.threads, args.repeats)
                own = found_rounds["its own"][0]
                for name, (seconds, part) in found_rounds.items():
                    share = "" if part is None else f", of which the objective {part:6.1%}"
                    print(f"{name:>14}  {1e3 * seconds:8.1f} ms  {seconds / own:6.2f} times its own{share}", flush=True)


if __name__ == "__main__":
    main()
