"""Gradient boosting of handwritten digits by XGBoost and LightGBM, with their own objectives and with softxent's.

First the objectives are compared: both build the same trees. Then softxent does what the built-in objectives do not
take. Pairs of digits are blended, so that nobody can be sure what they show, and annotators say what they see. A model
is trained on what one annotator says, on that smoothed, and on what two annotators say, as a distribution for each
image. The picture shows whether the models are as sure as they are right about what a third annotator says, and what an
objective takes of the time of a round on a large made-up data set.

To run it: `pip install ".[examples,xgboost,lightgbm]"` in the checkout, then `python examples/boosting.py`.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    import lightgbm
    import xgboost
    from command_line import loss_text, parser, whole_number
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits

    import softxent as sx
    from softxent.boosting import LightGBMObjective, XGBoostObjective
except ModuleNotFoundError as error:
    extras = '".[examples,xgboost,lightgbm]"'
    raise SystemExit(f"{error.name} is missing. To install it: {sys.executable} -m pip install {extras}") from None

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

N_CLASSES = 10
N_BINS = 10
LIBRARIES = {"XGBoost": XGBoostObjective, "LightGBM": LightGBMObjective}
BLACK, BLUE, ORANGE = "black", "#0072B2", "#D55E00"  # easy to tell apart with any colour vision


def watched(objective: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The objective, which adds the time of each call to `seconds`; LightGBM copies anything but a function."""

    def call(scores: Any, data: Any) -> Any:
        start = time.perf_counter()
        result = objective(scores, data)
        seconds.append(time.perf_counter() - start)
        return result

    return call


class Model(NamedTuple):
    """A trained model: raw scores of any rows, the text of its trees without rounded numbers, and times of a round."""

    scores: Callable[[Floats], Floats]
    splits: str
    seconds: float
    of_objective: float


def train(library: str, x: Floats, labels: Labels, objective: Any, rounds: int, learning_rate: float) -> Model:
    """The built-in objective if it is None. Both start from equal scores for all classes."""
    of_objective: list[float] = []
    called = None if objective is None else watched(objective, of_objective)
    start = time.perf_counter()
    booster: Any
    if library == "XGBoost":
        parameters = {"num_class": N_CLASSES, "objective": "multi:softprob", "base_score": 0.5, "eta": learning_rate}
        parameters |= {"disable_default_eval_metric": True}
        booster = xgboost.train(parameters, xgboost.DMatrix(x, labels), rounds, obj=called)
        splits = "".join(re.sub(r"leaf=.*|(?<=<)[^\]]*", "", tree) for tree in booster.get_dump())
    else:
        parameters = {"num_class": N_CLASSES, "objective": called or "multiclass", "learning_rate": learning_rate}
        parameters |= {"boost_from_average": False, "metric": "None", "verbosity": -1}
        booster = lightgbm.train(parameters, lightgbm.Dataset(x, labels), rounds)
        splits = booster.model_to_string().partition("Tree=0\n")[2].partition("end of trees")[0]
    seconds = time.perf_counter() - start

    def scores(rows: Floats) -> Floats:
        if library == "XGBoost":
            return np.asarray(booster.predict(xgboost.DMatrix(rows), output_margin=True), np.float64)
        return np.asarray(booster.predict(rows, raw_score=True))

    return Model(scores, splits, seconds / rounds, sum(of_objective) / rounds)


class Images(NamedTuple):
    """Blends of two images of digits, and how much of the first is in them."""

    pixels: Floats  # (N, 64)
    digits: Labels  # (N, 2)
    share: Floats  # (N,), from one half to one

    def annotate(self, rng: np.random.Generator) -> Labels:
        """What somebody sees: one of the two digits, the more of it there is, the more often."""
        more, less = self.digits.T
        seen: Labels = np.where(rng.random(self.share.size) < self.share, more, less)
        return seen


def blend(images: Floats, digits: Labels, n: int, rng: np.random.Generator) -> Images:
    pairs = rng.integers(len(images), size=(n, 2))
    share = rng.uniform(0.5, 1, n)
    pixels = share[:, np.newaxis] * images[pairs[:, 0]] + (1 - share)[:, np.newaxis] * images[pairs[:, 1]]
    return Images(pixels, digits[pairs], share)


def reliability(scores: Floats, labels: Labels) -> tuple[Floats, Floats, float]:
    """Mean confidence and accuracy in bins of the confidence, and the expected calibration error."""
    result = sx.evaluate(scores, labels)
    bins = np.minimum((result.confidence * N_BINS).astype(int), N_BINS - 1)
    counts = np.bincount(bins, minlength=N_BINS)
    confidence, correct = (np.bincount(bins, of, N_BINS) for of in (result.confidence, result.correct))
    filled = counts >= 20  # fewer say nothing
    gap = float(np.abs(confidence - correct).sum() / counts.sum())
    return confidence[filled] / counts[filled], correct[filled] / counts[filled], gap


def made_up(n_rows: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """A cloud of points in ten dimensions for each class."""
    labels = rng.integers(N_CLASSES, size=n_rows)
    return rng.normal(size=(n_rows, 10)) + rng.normal(size=(N_CLASSES, 10))[labels], labels


def compare(library: str, train_set: tuple[Floats, Labels], rounds: int, learning_rate: float) -> None:
    """The built-in objective and softxent's."""
    own, ours = (train(library, *train_set, made, rounds, learning_rate) for made in (None, LIBRARIES[library]()))
    apart = np.abs(own.scores(train_set[0]) - ours.scores(train_set[0])).max()
    same = "the same" if own.splits == ours.splits else "not the same"
    print(f"{library}: {same} splits with softxent's objective as with the built-in one; scores differ by {apart:.1e}")


def draw_reliability(axes: Axes, library: str, lines: dict[str, tuple[Floats, Floats, float]]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    for (name, (confidence, accuracy, gap)), color in zip(lines.items(), (BLACK, BLUE, ORANGE), strict=True):
        axes.plot(confidence, accuracy, marker="o", markersize=4, color=color, label=f"{name} ({gap:.3f})")
    axes.set(title=library, xlabel="confidence", ylabel="accuracy", xlim=(0.1, 1), ylim=(0, 1.02))
    axes.legend(loc="lower right", title="trained on (calibration error)", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.3)


def draw_times(axes: Axes, rounds: dict[str, dict[str, Model]], n_rows: int) -> None:
    names = [f"{library}\n{name}" for library, models in rounds.items() for name in models]
    models = [model for by_name in rounds.values() for model in by_name.values()]
    whole, part = ([1e3 * getattr(model, field) for model in models] for field in ("seconds", "of_objective"))
    axes.bar(names, whole, color="lightgrey", label="the round")
    axes.bar(names, part, color=BLUE, label="softxent's objective in it")
    axes.set(title=f"A round, {n_rows} rows, {N_CLASSES} classes", ylabel="milliseconds")
    axes.legend(fontsize=8)


def main() -> None:
    options = parser("XGBoost and LightGBM with softxent's objective.", "boosting.png")
    options.set_defaults(learning_rate=0.1)
    options.add_argument("--rounds", type=whole_number(1), default=60, help="of boosting, a tree for each class")
    options.add_argument("--rows", type=whole_number(N_CLASSES), default=100_000, help="of the large data set")
    args = options.parse_args()
    rng = np.random.default_rng(args.seed)

    images, digits = load_digits(return_X_y=True)
    half = len(images) // 2
    order = rng.permutation(len(images))
    for library in LIBRARIES:
        compare(library, (images, digits), min(args.rounds, 20), args.learning_rate)

    fit, test = (blend(images[part], digits[part], 2000, rng) for part in (order[:half], order[half:]))
    first, second, third = fit.annotate(rng), fit.annotate(rng), test.annotate(rng)
    both = (np.eye(N_CLASSES)[first] + np.eye(N_CLASSES)[second]) / 2
    print(f"\nTwo annotators agree on {np.mean(first == second):.0%} of {first.size} images. What a third one says:\n")
    print("library    trained on                        test loss   test accuracy   calibration error")
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    *panels, last = figure.subplots(1, 3)
    for (library, made), axes in zip(LIBRARIES.items(), panels, strict=True):
        objectives = {
            "labels of one, built-in": None,
            "labels of one, smoothed": made(label_smoothing=0.1),
            "labels of both": made(targets=both),
        }
        lines = {}
        for name, objective in objectives.items():
            model = train(library, fit.pixels, first, objective, args.rounds, args.learning_rate)
            scores = model.scores(test.pixels)
            result, lines[name] = sx.evaluate(scores, third), reliability(scores, third)
            loss = loss_text(result.loss)
            print(f"{library:<11}{name:<30}{loss:>13}{result.accuracy:>16.1%}{lines[name][2]:>20.3f}", flush=True)
        draw_reliability(axes, library, lines)

    large = made_up(args.rows, rng)
    rounds = {
        library: {name: train(library, *large, objective, 3, args.learning_rate) for name, objective in by_name.items()}
        for library, by_name in {
            name: {"built-in": None, "softxent": made()} for name, made in LIBRARIES.items()
        }.items()
    }
    print(f"\nA round of training, {args.rows} rows, {N_CLASSES} classes:")
    for library, by_name in rounds.items():
        own, ours = by_name.values()
        part = f"{1e3 * ours.of_objective:.1f} ms of it for the objective"
        print(f"{library:<11}{1e3 * own.seconds:7.0f} ms built-in, {1e3 * ours.seconds:7.0f} ms softxent, {part}")
    draw_times(last, rounds, args.rows)
    figure.savefig(args.out)
    print(f"picture saved to {args.out}")


if __name__ == "__main__":
    main()
