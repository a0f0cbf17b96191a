"""A two-layer network on scikit-learn's two moons, its backward pass written out by hand from softxent's gradient.

    h = tanh(x W1 + b1),    logits = h W2 + b2,    loss = -1/N sum_n log softmax(logits_n)[label_n]
    dlogits = (softmax(logits) - onehot(label)) / N,    dW2 = h^T dlogits,    db2 = sum_n dlogits_n
    da = (dlogits W2^T) (1 - h^2),    dW1 = x^T da,    db1 = sum_n da_n        (a = x W1 + b1, so h = tanh(a))

It prints losses and accuracies and saves a picture of the decision boundary. To run it: `pip install ".[examples]"` in
the checkout, then `python examples/moons.py`.
"""

import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from command_line import loss_text, parser, whole_number
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator
    from sklearn.datasets import make_moons
    from tqdm import tqdm

    import softxent as sx
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. To install it: {sys.executable} -m pip install ".[examples]"') from None

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BLUE, ORANGE = "#0072B2", "#D55E00"  # easy to tell apart with any colour vision


class Network(NamedTuple):
    """The parameters, or the gradient with respect to each of them."""

    w1: Floats  # (2, H)
    b1: Floats  # (H,)
    w2: Floats  # (H, 2)
    b2: Floats  # (2,)

    def hidden(self, x: Floats) -> Floats:
        return np.tanh(x @ self.w1 + self.b1)

    def logits(self, x: Floats) -> Floats:
        return self.hidden(x) @ self.w2 + self.b2


def initial(n_hidden: int, rng: np.random.Generator) -> Network:
    """Weights of variance 1 / fan-in, and biases that spread the hidden units over the plane."""
    w1 = rng.normal(0, 1 / np.sqrt(2), (2, n_hidden))
    w2 = rng.normal(0, 1 / np.sqrt(n_hidden), (n_hidden, 2))
    return Network(w1, rng.normal(0, 1, n_hidden), w2, np.zeros(2))


def value_and_grad(net: Network, x: Floats, labels: Labels) -> tuple[float, Network]:
    """The mean loss, and its gradient with respect to each parameter, by the chain rule from the logits back."""
    hidden = net.hidden(x)
    logits = hidden @ net.w2 + net.b2
    loss, dlogits = sx.value_and_grad(logits, labels, out=logits)  # in place: the logits are gone from here on
    da = (dlogits @ net.w2.T) * (1 - hidden**2)
    return loss, Network(w1=x.T @ da, b1=da.sum(axis=0), w2=hidden.T @ dlogits, b2=dlogits.sum(axis=0))


def accuracy(net: Network, x: Floats, labels: Labels) -> float:
    return float(np.mean(net.logits(x).argmax(axis=1) == labels))


def train(net: Network, x: Floats, labels: Labels, steps: int, learning_rate: float) -> list[float]:
    """Gradient descent on the whole data set, in place; the loss before each step."""
    losses = []
    with tqdm(range(1, steps + 1), desc="training", unit="step") as bar:
        bar.write(" step   train loss   train accuracy")
        for step in bar:
            loss, gradient = value_and_grad(net, x, labels)
            for parameter, partial in zip(net, gradient, strict=True):
                parameter -= learning_rate * partial
            losses.append(loss)
            if step == 1 or step % max(1, steps // 10) == 0:
                correct = f"{accuracy(net, x, labels):.1%}"
                bar.set_postfix(loss=loss_text(loss), train_accuracy=correct, refresh=False)
                bar.write(f"{step:5}{loss_text(loss):>13}{correct:>17}")
    return losses


def draw(net: Network, x: Floats, labels: Labels, losses: list[float]) -> Figure:
    """The data over the probability that the network gives to the second class, and the loss curve."""
    figure = Figure(figsize=(12, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])

    xs, ys = (np.linspace(x[:, i].min() - 0.4, x[:, i].max() + 0.4, 400) for i in (0, 1))
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)  # (400, 400, 2): any leading axes will do
    ones = np.ones(grid.shape[:-1], np.int64)
    probability = np.exp(-sx.cross_entropy(net.logits(grid), ones, reduction="none"))  # since -log p[1] is the loss
    shades = LinearSegmentedColormap.from_list("moons", [BLUE, "white", ORANGE])
    shading = left.imshow(
        probability,
        extent=(xs[0], xs[-1], ys[0], ys[-1]),
        origin="lower",
        aspect="auto",
        cmap=shades,
        vmin=0,
        vmax=1,
        alpha=0.45,
    )
    left.contour(xs, ys, probability, levels=[0.5], colors="black", linewidths=1.5)
    for label, color, marker in ((0, BLUE, "o"), (1, ORANGE, "^")):
        points = x[labels == label]
        left.scatter(
            *points.T, s=22, c=color, marker=marker, edgecolors="white", linewidths=0.5, label=f"class {label}"
        )
    left.set(xlabel="$x_1$", ylabel="$x_2$", title=f"Decision boundary (train accuracy {accuracy(net, x, labels):.1%})")
    left.legend(loc="lower right")
    figure.colorbar(shading, ax=left, label="probability of class 1")

    right.plot(range(1, len(losses) + 1), losses, color=BLUE)
    right.set(xlabel="step", ylabel="mean cross-entropy", yscale="log", title="Loss")
    right.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    right.grid(alpha=0.3)
    return figure


def main() -> None:
    options = parser("A two-layer network on two moons, with softxent.", "moons.png")
    options.add_argument("--hidden", type=whole_number(1), default=16, help="number of hidden units")
    options.add_argument("--steps", type=whole_number(1), default=2000)
    args = options.parse_args()

    x, labels = make_moons(n_samples=500, noise=0.15, random_state=args.seed)
    net = initial(args.hidden, np.random.default_rng(args.seed))
    losses = train(net, x, labels, args.steps, args.learning_rate)
    fresh_x, fresh_labels = make_moons(n_samples=500, noise=0.15, random_state=args.seed + 1)
    print(f"\ntest accuracy, on as many fresh points: {accuracy(net, fresh_x, fresh_labels):.1%}")
    draw(net, x, labels, losses).savefig(args.out)
    print(f"picture saved to {args.out}")


if __name__ == "__main__":
    main()
