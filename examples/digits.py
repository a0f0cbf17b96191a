"""Softmax regression on the handwritten digits that come with scikit-learn: a linear head in NumPy and softxent.

    logits = x W + b,    loss = -1/N sum_n log softmax(logits_n)[label_n]
    dlogits = (softmax(logits) - onehot(label)) / N,    dW = x^T dlogits,    db = sum_n dlogits_n

It prints losses and accuracies, saves a picture, and compares the loss step with plain NumPy's on one batch. To run it:
`pip install ".[examples]"` in the checkout, then `python examples/digits.py`.
"""

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from command_line import loss_text, parser, whole_number
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    import softxent as sx
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. To install it: {sys.executable} -m pip install ".[examples]"') from None

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#D55E00"  # easy to tell apart with any colour vision


class Data(NamedTuple):
    images: Floats  # (N, 64): 8 x 8 pixels, from 0 (paper) to 1 (ink)
    labels: Labels  # (N,)


class Head(NamedTuple):
    weights: Floats  # (64, 10)
    bias: Floats  # (10,)

    def logits(self, images: Floats) -> Floats:
        return images @ self.weights + self.bias


class Score(NamedTuple):
    loss: float
    accuracy: float


def load(seed: int) -> tuple[Data, Data]:
    """Digits to train on and digits to test on, four to one."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    return Data(parts[0], parts[2]), Data(parts[1], parts[3])


def evaluate(head: Head, data: Data) -> Score:
    logits = head.logits(data.images)
    return Score(sx.cross_entropy(logits, data.labels), float(np.mean(logits.argmax(axis=1) == data.labels)))


def step(head: Head, images: Floats, labels: Labels, learning_rate: float) -> None:
    """Gradient descent on one batch."""
    logits = head.logits(images)
    _, dlogits = sx.value_and_grad(logits, labels, out=logits)  # in place: the logits are gone from here on
    head.weights[...] -= learning_rate * (images.T @ dlogits)
    head.bias[...] -= learning_rate * dlogits.sum(axis=0)


def train(
    train_data: Data, test_data: Data, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[Head, list[tuple[Score, Score]]]:
    """The trained head, and the scores on both sets after each epoch."""
    rng = np.random.default_rng(seed)
    head = Head(np.zeros((64, 10), np.float32), np.zeros(10, np.float32))
    history = []
    with tqdm(range(1, epochs + 1), desc="training", unit="epoch") as bar:
        bar.write("epoch   train loss   test loss   train accuracy   test accuracy")
        for epoch in bar:
            order = rng.permutation(len(train_data.labels))
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                step(head, train_data.images[batch], train_data.labels[batch], learning_rate)

            on_train, on_test = evaluate(head, train_data), evaluate(head, test_data)
            history.append((on_train, on_test))
            bar.set_postfix(loss=loss_text(on_train.loss), test_accuracy=f"{on_test.accuracy:.1%}", refresh=False)
            if epoch == 1 or epoch % max(1, epochs // 10) == 0:
                row = f"{epoch:5}{loss_text(on_train.loss):>13}{loss_text(on_test.loss):>12}"
                bar.write(f"{row}{on_train.accuracy:17.1%}{on_test.accuracy:16.1%}")
    return head, history


def draw(head: Head, test_data: Data, history: list[tuple[Score, Score]]) -> Figure:
    """The loss curves, and test digits with what the head takes them for."""
    figure = Figure(figsize=(12, 4.2), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.75], wspace=0.03, squeeze=False)[0]

    axes = left.subplots()
    epochs = range(1, len(history) + 1)
    axes.plot(epochs, [score.loss for score, _ in history], color=BLUE, label="train")
    axes.plot(epochs, [score.loss for _, score in history], color=GREEN, linestyle="--", label="test")
    axes.set(xlabel="epoch", ylabel="mean cross-entropy", yscale="log")
    axes.set_title(f"Loss (test accuracy {evaluate(head, test_data).accuracy:.1%})")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()

    # -log p[class] is a cross-entropy, so a probability is exp(-cross_entropy) with that class as the label.
    logits = head.logits(test_data.images)
    predicted = logits.argmax(axis=1)
    confidence = np.exp(-sx.cross_entropy(logits, predicted, reduction="none"))
    losses = sx.cross_entropy(logits, test_data.labels, reduction="none")
    one_of_each = [np.flatnonzero(test_data.labels == digit)[0] for digit in range(10)]
    hardest = np.argsort(-losses)[:20]
    right.suptitle(
        "Prediction (and its probability), mistakes in orange:\n10 different digits, then the 20 of highest loss"
    )
    for axes, i in zip(right.subplots(3, 10).flat, [*one_of_each, *hardest], strict=True):
        wrong = predicted[i] != test_data.labels[i]
        axes.imshow(test_data.images[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=ORANGE if wrong else "0.8", linewidth=3 if wrong else 1)
        caption = f"{predicted[i]} ({confidence[i]:.0%})" + (f"\nis {test_data.labels[i]}" if wrong else "\n")
        axes.set_xlabel(caption, color=ORANGE if wrong else "black", fontsize=9)
    return figure


def numpy_value_and_grad(logits: Floats, labels: Labels, out: Floats) -> tuple[float, Floats]:
    """The same loss and gradient in NumPy: max, subtract, exp, sum and divide, each a pass over the batch."""
    rows = np.arange(len(labels))
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    at_label = out[rows, labels]
    np.exp(out, out=out)
    total = out.sum(axis=1)
    loss = float(np.mean(np.log(total) - at_label))
    np.divide(out, (len(labels) * total)[:, np.newaxis], out=out)
    out[rows, labels] -= 1 / len(labels)
    return loss, out


def compare(logits: Floats, labels: Labels, repeats: int = 2000) -> None:
    """Check that the two agree on this batch, then time them in turn, each writing to a buffer of its own."""
    steps: dict[str, Callable[..., object]] = {"softxent": sx.value_and_grad, "NumPy": numpy_value_and_grad}
    buffers = {name: np.empty_like(logits) for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, value_and_grad in steps.items():
            start = perf_counter()
            value_and_grad(logits, labels, out=buffers[name])
            seconds[name].append(perf_counter() - start)

    np.testing.assert_allclose(buffers["softxent"], buffers["NumPy"], rtol=0, atol=1e-6)
    difference = np.abs(buffers["softxent"] - buffers["NumPy"]).max()
    ours, numpys = median(seconds["softxent"]), median(seconds["NumPy"])
    print(f"\nloss step on a batch of {logits.shape[0]} x {logits.shape[1]}, medians of {repeats} calls each:")
    print(f"  softxent {ours * 1e6:.1f} us, NumPy {numpys * 1e6:.1f} us: {numpys / ours:.1f} times as fast")
    print(f"  largest difference between the two gradients: {difference:.1e}")


def main() -> None:
    options = parser("Softmax regression on handwritten digits, with softxent.", "digits.png")
    options.add_argument("--epochs", type=whole_number(1), default=200)
    options.add_argument("--batch-size", type=whole_number(1), default=64)
    args = options.parse_args()

    train_data, test_data = load(args.seed)
    head, history = train(
        train_data,
        test_data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    draw(head, test_data, history).savefig(args.out)
    print(f"\npicture saved to {args.out}")
    compare(head.logits(train_data.images[: args.batch_size]), train_data.labels[: args.batch_size])


if __name__ == "__main__":
    main()
