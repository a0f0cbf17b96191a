"""Softmax regression as scikit-learn's LogisticRegression fits it, by SciPy's optimisers and softxent's linear head.

    minimise  1/N sum_n -log softmax(x_n W + b)[label_n] + 1/(2 c N) ||W||^2

Two data sets: handwritten digits, dense, and made-up documents, a sparse matrix of thousands of words. Two optimisers:
L-BFGS-B, which needs the gradient, and Newton-CG, which needs products with the Hessian, too. The example shows the
progress of each, compares coefficients and times with scikit-learn's solvers of the same kind, and saves a picture. To
run it: `pip install ".[examples]"` in the checkout, then `python examples/softmax_regression.py`.
"""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from command_line import parser, positive, whole_number
    from matplotlib.figure import Figure
    from scipy.optimize import minimize
    from scipy.sparse import csr_array
    from sklearn.datasets import load_digits
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from tqdm import tqdm

    import softxent as sx
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. To install it: {sys.executable} -m pip install ".[examples]"') from None

Floats = npt.NDArray[np.float64]

THEIRS = {"L-BFGS-B": "lbfgs", "Newton-CG": "newton-cg"}  # the solvers of scikit-learn
COLORS = {"L-BFGS-B": "#0072B2", "Newton-CG": "#D55E00"}  # easy to tell apart with any colour vision


class Data(NamedTuple):
    name: str
    features: Any  # (N, D), an array or a sparse matrix
    labels: npt.NDArray[np.int64]  # (N,)

    @property
    def n_classes(self) -> int:
        return int(self.labels.max()) + 1


class Progress(NamedTuple):
    """After each iteration: the seconds since the start, and the largest entry of the gradient."""

    seconds: list[float]
    slopes: list[float]


class Objective:
    """The function that is minimised. The parameters are a flat array of (D + 1, C), the bias last."""

    def __init__(self, data: Data, c: float) -> None:
        self.x, self.labels, self.penalty = data.features, data.labels, 1 / (c * len(data.labels))
        self.shape = (data.features.shape[1] + 1, data.n_classes)
        self.point: Floats | None = None  # where self.probs belong
        self.slope = np.inf

    def value_and_grad(self, flat: Floats) -> tuple[float, Floats]:
        w = flat.reshape(self.shape)
        # A new array for each call: Newton-CG stops too early if its gradients share one.
        grad = np.empty_like(w)
        # softxent has classes first. A transposed view is not copied.
        out = (None, grad[:-1].T, grad[-1])
        loss, _ = sx.linear_value_and_grad(self.x, w[:-1].T, self.labels, linear_bias=w[-1], out=out)
        grad[:-1] += self.penalty * w[:-1]
        self.slope = float(np.abs(grad).max())
        return loss + self.penalty / 2 * float(np.vdot(w[:-1], w[:-1])), grad.ravel()

    def hessian_product(self, flat: Floats, direction: Floats) -> Floats:
        w, v = flat.reshape(self.shape), direction.reshape(self.shape)
        if self.point is None or not np.array_equal(flat, self.point):
            # Kept for all products at this point: they need no exponentials then.
            logits = self.x @ w[:-1] + w[-1]
            self.probs, self.point = sx.softmax(logits, out=logits), flat.copy()
        of_weights, of_bias = sx.linear_hvp(self.x, None, self.labels, v[:-1].T, bias_vector=v[-1], probs=self.probs)
        return np.concatenate([of_weights.T + self.penalty * v[:-1], of_bias[np.newaxis]]).ravel()


def digits() -> Data:
    pixels, labels = load_digits(return_X_y=True)
    return Data("digits", pixels / 16, labels)


def documents(n_documents: int, n_words: int, n_classes: int, seed: int) -> Data:
    """Each class prefers some words to those that all share, and words are as rare as in a language."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, n_words + 1)
    labels = rng.integers(n_classes, size=n_documents)
    labels[:n_classes] = np.arange(n_classes)
    taste = frequency * rng.gamma(0.3, size=(n_classes, n_words))
    taste = 0.5 * frequency / frequency.sum() + 0.5 * taste / taste.sum(axis=1, keepdims=True)
    length = rng.integers(30, 120, size=n_documents)
    words = np.concatenate([rng.choice(n_words, n, p=taste[label]) for n, label in zip(length, labels, strict=True)])
    documents = np.repeat(np.arange(n_documents), length)
    counts = csr_array((np.ones(len(words)), (documents, words)), shape=(n_documents, n_words))
    counts.sum_duplicates()
    return Data("documents", csr_array(TfidfTransformer(sublinear_tf=True).fit_transform(counts)), labels)


def fit(data: Data, method: str, c: float, tolerance: float, iterations: int) -> tuple[Floats, Progress]:
    """The parameters, (D + 1, C), at which no entry of the gradient is larger than the tolerance."""
    objective, progress = Objective(data, c), Progress([], [])
    options = {
        "L-BFGS-B": {"gtol": tolerance, "ftol": 0, "maxiter": iterations, "maxfun": 10 * iterations, "maxls": 50},
        "Newton-CG": {"xtol": 0, "maxiter": iterations},
    }
    with tqdm(total=iterations, desc=f"{data.name}, {method}", unit="step") as bar:

        def after_step(intermediate_result: Any) -> None:
            progress.seconds.append(perf_counter() - start)
            progress.slopes.append(objective.slope)
            bar.update()
            bar.set_postfix(loss=f"{intermediate_result.fun:.6f}", slope=f"{objective.slope:.1e}", refresh=False)
            if objective.slope <= tolerance:
                raise StopIteration

        start = perf_counter()
        result = minimize(
            objective.value_and_grad, np.zeros(objective.shape).ravel(), jac=True, method=method,
            hessp=objective.hessian_product if method == "Newton-CG" else None,
            callback=after_step, options=options[method],
        )  # fmt: skip
    return result.x.reshape(objective.shape), progress


def fit_scikit_learn(data: Data, method: str, c: float, tolerance: float, iterations: int) -> tuple[Floats, float]:
    """The parameters that scikit-learn finds, and the seconds that it takes."""
    model = LogisticRegression(C=c, solver=THEIRS[method], tol=tolerance, max_iter=iterations)
    start = perf_counter()
    model.fit(data.features, data.labels)
    seconds = perf_counter() - start
    return np.concatenate([model.coef_.T, model.intercept_[np.newaxis]]), seconds


def difference(ours: Floats, theirs: Floats) -> float:
    """The largest difference of coefficients; only differences of the bias of classes have a meaning."""
    return float(max(
        np.abs(ours[:-1] - theirs[:-1]).max(),
        np.abs(ours[-1] - ours[-1].mean() - theirs[-1] + theirs[-1].mean()).max(),
    ))  # fmt: skip


def draw(results: dict[str, dict[str, tuple[Progress, float]]], tolerance: float) -> Figure:
    """How the gradient shrinks with time, and when scikit-learn is done, for each data set."""
    figure = Figure(figsize=(6 * len(results), 4), dpi=150, layout="constrained")
    for axes, (title, of_data) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for method, (progress, theirs) in of_data.items():
            axes.plot(progress.seconds, progress.slopes, color=COLORS[method], label=f"{method} and softxent")
            axes.axvline(theirs, color=COLORS[method], linestyle=":", label=f"scikit-learn's {THEIRS[method]} is done")
        axes.axhline(tolerance, color="0.6", linewidth=0.8)
        axes.set(title=title, xlabel="seconds", ylabel="largest entry of the gradient", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def compare(data: Data, fits: Callable[[str], tuple[Floats, Progress]], theirs: Callable[[str], Any]) -> Any:
    """Fit by both optimisers, and print a row for each."""
    results = {}
    for method in THEIRS:
        ours, progress = fits(method)
        reference, seconds = theirs(method)
        results[method] = progress, seconds
        steps, taken = len(progress.seconds), progress.seconds[-1] if progress.seconds else 0.0
        tqdm.write(
            f"{data.name:>10}{method:>11}{steps:7}{taken:12.2f}{seconds:15.2f}{difference(ours, reference):14.1e}"
        )
    return results


def main() -> None:
    options = parser("Softmax regression by SciPy's optimisers, with softxent.", "softmax_regression.png", None)
    options.add_argument("--c", type=positive, default=1.0, help="as C of LogisticRegression")
    options.add_argument("--tolerance", type=positive, default=1e-6)
    options.add_argument("--iterations", type=whole_number(1), default=1000, help="at most")
    options.add_argument("--documents", type=whole_number(100), default=3000)
    args = options.parse_args()

    print("      data  optimiser  steps     seconds   scikit-learn    difference")
    pictures = {}
    for data in (digits(), documents(args.documents, 5000, 30, args.seed)):
        n_rows, n_columns = data.features.shape
        pictures[f"{data.name}: {n_rows} x {n_columns}, {data.n_classes} classes"] = compare(
            data,
            lambda method, data=data: fit(data, method, args.c, args.tolerance, args.iterations),  # type: ignore[misc]
            lambda method, data=data: fit_scikit_learn(data, method, args.c, args.tolerance, args.iterations),  # type: ignore[misc]
        )
    draw(pictures, args.tolerance).savefig(args.out)
    print(f"\npicture saved to {args.out}")


if __name__ == "__main__":
    main()
