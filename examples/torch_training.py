"""Two networks in PyTorch, each trained with PyTorch's loss and with softxent's: the curves are the same.

- digits: 64 pixels, a hidden layer, 10 classes, on the handwritten digits that come with scikit-learn;
- text: a language model of characters. It reads 8 characters and guesses the next, on the descriptions of the data sets
  that come with scikit-learn.

The only line that differs is the import of CrossEntropyLoss. It prints the losses, then times both losses and watches
their memory on the logits of a large vocabulary, and saves a picture. To run it:
`pip install ".[examples,torch]"` in the checkout, then `python examples/torch_training.py`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any, NamedTuple

try:
    import torch
    from command_line import loss_text, parser, whole_number
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator
    from sklearn import datasets
    from tqdm import tqdm

    import softxent.torch
except ModuleNotFoundError as error:
    command = f'{sys.executable} -m pip install ".[examples,torch]"'
    raise SystemExit(f"{error.name} is missing. To install it: {command}") from None

BLUE, ORANGE = "#0072B2", "#D55E00"  # easy to tell apart with any colour vision
COLOURS = {"PyTorch": BLUE, "softxent": ORANGE}
LOSSES: dict[str, Any] = {"PyTorch": torch.nn.CrossEntropyLoss, "softxent": softxent.torch.CrossEntropyLoss}

CONTEXT = 8  # characters that the language model reads
BATCH = 8192
VOCABULARY = (256, 50257)  # the rows and classes of the comparison
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: sets the peak of a process's memory back


class Run(NamedTuple):
    losses: list[float]
    seconds: float  # of all calls of the loss, forward and backward


def digits(seed: int) -> tuple[Any, Callable[[int], tuple[Any, Any]]]:
    """A network, and its batches: all digits each time."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    images, targets = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
    return network, lambda step: (images, targets)


def text(seed: int) -> tuple[Any, Callable[[int], tuple[Any, Any]]]:
    """A language model, and its batches: places in the text."""
    loaders = (datasets.load_digits, datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer)
    characters = "".join(loader().DESCR for loader in loaders)
    alphabet = sorted(set(characters))
    codes = torch.tensor([alphabet.index(character) for character in characters])
    windows = codes.unfold(0, CONTEXT + 1, 1)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Embedding(len(alphabet), 16),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * CONTEXT, 128),
        torch.nn.Tanh(),
        torch.nn.Linear(128, len(alphabet)),
    )

    def batch(step: int) -> tuple[Any, Any]:
        places = torch.randint(len(windows), (BATCH,), generator=torch.Generator().manual_seed(step))
        return windows[places, :-1], windows[places, -1]

    return network, batch


TASKS = {"digits": digits, "text": text}


def train(task: str, loss: str, steps: int, learning_rate: float, seed: int, bar: Any) -> Run:
    network, batch = TASKS[task](seed)
    criterion = LOSSES[loss]()
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    losses, seconds = [], 0.0
    for step in range(steps):
        inputs, targets = batch(step)
        outputs = network(inputs)
        logits = outputs.detach().requires_grad_()
        start = thread_time()
        value = criterion(logits, targets)
        value.backward()
        seconds += thread_time() - start
        optimizer.zero_grad()
        outputs.backward(logits.grad)
        optimizer.step()
        losses.append(value.item())
        bar.set_postfix(task=task, loss=loss_text(losses[-1]), refresh=False)
        bar.update()
    return Run(losses, seconds)


def large_step(loss: str) -> Callable[[], Any]:
    """Forward and backward on the logits of a large vocabulary."""
    criterion = LOSSES[loss]()
    logits = torch.randn(VOCABULARY, requires_grad=True)
    labels = torch.randint(VOCABULARY[1], VOCABULARY[:1])
    return lambda: torch.autograd.grad(criterion(logits, labels), logits)


def seconds_of(step: Callable[[], Any], repeats: int = 7) -> float:
    def once() -> float:
        start = thread_time()
        step()
        return thread_time() - start

    once()
    return median(once() for _ in range(repeats))


def peak() -> int:
    """The most memory that this process had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def arrays_of(step: Callable[[], Any]) -> float | None:
    """What a step takes at its peak beyond the logits, in arrays of their size; None where the system cannot tell."""
    if not os.access(CLEAR_REFS, os.W_OK):
        return None
    CLEAR_REFS.write_text("5")
    before = peak()
    step()
    return (peak() - before) / (4 * VOCABULARY[0] * VOCABULARY[1])


def draw(runs: dict[tuple[str, str], Run], seconds: dict[str, float], arrays: dict[str, float | None]) -> Figure:
    figure = Figure(figsize=(12, 4), dpi=150, layout="constrained")
    *curves, times, memory = figure.subplots(1, 4, width_ratios=[2, 2, 1, 1])
    for axes, task in zip(curves, TASKS, strict=True):
        for loss, style in (("PyTorch", {"linewidth": 5, "alpha": 0.35}), ("softxent", {"linewidth": 1.2})):
            losses = runs[task, loss].losses
            axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[loss], label=loss, **style)
        gain = runs[task, "PyTorch"].seconds / runs[task, "softxent"].seconds
        axes.set(xlabel="step", ylabel="mean cross-entropy", yscale="log")
        axes.set_title(f"{task}: loss and backward\n{gain:.1f} times as fast")
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    rows, classes = VOCABULARY
    for axes, title, values in (
        (times, f"{rows} x {classes}:\nmilliseconds", {loss: 1e3 * value for loss, value in seconds.items()}),
        (memory, "memory at its peak,\nin arrays of logits", {loss: value or 0.0 for loss, value in arrays.items()}),
    ):
        bars = axes.bar(list(values), list(values.values()), color=[COLOURS[loss] for loss in values])
        axes.bar_label(bars, fmt="%.3g")
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = parser("Training in PyTorch with PyTorch's loss and with softxent's.", "torch_training.png")
    options.add_argument("--steps", type=whole_number(1), default=150)
    args = options.parse_args()

    torch.set_num_threads(1)  # one core for each: the comparison is then one of the losses
    runs = {}
    with tqdm(total=len(TASKS) * len(LOSSES) * args.steps, desc="training", unit="step") as bar:
        for task in TASKS:
            for loss in LOSSES:
                runs[task, loss] = train(task, loss, args.steps, args.learning_rate, args.seed, bar)
    print("task     loss        first       last   seconds in the loss")
    for (task, loss), run in runs.items():
        print(f"{task:9}{loss:8}{loss_text(run.losses[0]):>9}{loss_text(run.losses[-1]):>11}{run.seconds:22.3f}")
    for task in TASKS:
        theirs, ours = runs[task, "PyTorch"].losses, runs[task, "softxent"].losses
        worst = max(abs(a - b) / abs(a) for a, b in zip(theirs, ours, strict=True))
        print(f"{task}: the curves differ by {worst:.1e} at most, relative to the loss")

    steps = {loss: large_step(loss) for loss in LOSSES}
    seconds = {loss: seconds_of(step) for loss, step in steps.items()}
    arrays = {loss: arrays_of(step) for loss, step in steps.items()}
    draw(runs, seconds, arrays).savefig(args.out)
    print(f"\npicture saved to {args.out}")


if __name__ == "__main__":
    main()
