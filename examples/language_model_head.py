"""The head of a small language model with a large vocabulary, trained by softxent's linear head, beside PyTorch.

    logits = h W^T,    loss = -1/N sum_n log softmax(logits_n)[next word_n],    h = embedding of the word

The text is made up: a Markov chain over the vocabulary, of which the head learns the transitions. Both train the same
embeddings and weights on the same batches by gradient descent, softxent without an array of logits. The example prints
losses and times, watches the memory of each in a process of its own, and saves a picture. To run it:
`pip install ".[examples]" torch` in the checkout, then `python examples/language_model_head.py`.
"""

import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    from command_line import loss_text, parser, whole_number
    from matplotlib.figure import Figure
    from tqdm import tqdm

    import softxent as sx
except ModuleNotFoundError as error:
    raise SystemExit(f'{error.name} is missing. To install it: {sys.executable} -m pip install ".[examples]"') from None

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

MIB = 2**20
COLORS = {"softxent": "#0072B2", "PyTorch": "#D55E00"}  # easy to tell apart with any colour vision
STATUS = Path("/proc/self/statm")  # on Linux, the resident memory of a process


class Model(NamedTuple):
    embedding: Floats  # (C, D)
    weight: Floats  # (C, D)


class Settings(NamedTuple):
    steps: int
    tokens: int  # in a batch
    width: int  # D
    vocabulary: int  # C
    learning_rate: float
    seed: int


class Course(NamedTuple):
    """Of a training: losses and seconds of the steps, and the memory beyond that at the start, in MiB."""

    losses: list[float]
    seconds: list[float]
    memory: list[float]


def start(settings: Settings) -> Model:
    rng = np.random.default_rng(settings.seed)
    shape = (settings.vocabulary, settings.width)
    return Model(rng.standard_normal(shape, np.float32), 0.02 * rng.standard_normal(shape, np.float32))


def batch(settings: Settings, step: int) -> tuple[Labels, Labels]:
    """Words, frequent ones first as in a language, and the words that follow: one of three for each word."""
    rng = np.random.default_rng((settings.seed, step))
    rank = np.exp(rng.random(settings.tokens) * np.log(settings.vocabulary))
    words = np.minimum(rank.astype(np.int64), settings.vocabulary - 1)
    return words, (words * 31 + rng.integers(3, size=settings.tokens) * 7) % settings.vocabulary


def softxent_step(settings: Settings) -> Callable[[Labels, Labels], float]:
    model = start(settings)
    gradient = np.empty_like(model.weight)

    def step(words: Labels, following: Labels) -> float:
        hidden = model.embedding[words]
        out = (None, gradient, None)
        wrt = ("inputs", "linear_weight")
        loss, grads = sx.linear_value_and_grad(hidden, model.weight, following, wrt=wrt, out=out)
        np.multiply(gradient, settings.learning_rate, out=gradient)
        np.subtract(model.weight, gradient, out=model.weight)
        np.subtract.at(model.embedding, words, settings.learning_rate * grads.inputs)
        return loss

    return step


def torch_step(settings: Settings) -> Callable[[Labels, Labels], float]:
    import torch

    model = start(settings)
    embedding, weight = (torch.nn.Parameter(torch.from_numpy(array)) for array in model)
    optimizer = torch.optim.SGD([embedding, weight], lr=settings.learning_rate)

    def step(words: Labels, following: Labels) -> float:
        hidden = torch.nn.functional.embedding(torch.from_numpy(words), embedding)
        logits = torch.nn.functional.linear(hidden, weight)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(following))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


STEPS = {"softxent": softxent_step, "PyTorch": torch_step}


class MemoryWatch:
    """Samples the resident memory of this process in a thread of its own; nothing where the system does not tell."""

    def __enter__(self) -> "MemoryWatch":
        self.samples: list[float] = []
        self.running = STATUS.exists()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.samples.append(int(STATUS.read_text().split()[1]) * 4096 / MIB)
            sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def train(name: str, settings: Settings) -> Course:
    step = STEPS[name](settings)
    losses, seconds = [], []
    with MemoryWatch() as watch, tqdm(range(settings.steps), desc=name, unit="step") as bar:
        for number in bar:
            words, following = batch(settings, number)
            begin = perf_counter()
            losses.append(step(words, following))
            seconds.append(perf_counter() - begin)
            bar.set_postfix(loss=loss_text(losses[-1]), refresh=False)
    return Course(losses, seconds, [sample - watch.samples[0] for sample in watch.samples])


def draw(courses: dict[str, Course], settings: Settings) -> Figure:
    """The losses of both, one on the other, and the memory of both while they train."""
    figure = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, course), style in zip(courses.items(), ("-", "--"), strict=False):
        left.plot(range(1, settings.steps + 1), course.losses, style, color=COLORS[name], label=name)
        if course.memory:
            shares = np.linspace(0, 100, len(course.memory))
            right.plot(shares, course.memory, color=COLORS[name], label=f"{name}, at most {max(course.memory):.0f} MiB")
    logits = settings.tokens * settings.vocabulary * 4 / MIB
    right.axhline(logits, color="0.6", linewidth=0.8, label=f"the logits, {logits:.0f} MiB")
    left.set(title="Loss", xlabel="step", ylabel="mean cross-entropy")
    right.set(title="Memory beyond the model", xlabel="% of the training", ylabel="MiB")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    options = parser("The head of a language model, with softxent and with PyTorch.", "language_model_head.png", 3.0)
    options.add_argument("--steps", type=whole_number(1), default=10)
    options.add_argument("--tokens", type=whole_number(1), default=1024, help="in a batch")
    options.add_argument("--width", type=whole_number(1), default=128)
    options.add_argument("--vocabulary", type=whole_number(10), default=32000)
    args = options.parse_args()
    settings = Settings(args.steps, args.tokens, args.width, args.vocabulary, args.learning_rate, args.seed)

    courses: dict[str, Course] = {}
    print("              first loss   last loss   ms a step   memory in MiB")
    for name in STEPS:
        try:
            course: Any = in_fresh_process(name, settings)
        except ModuleNotFoundError as error:
            print(f"{name:>12}   {error.name} is missing; the example goes on without it")
            continue
        courses[name] = course
        milliseconds = 1e3 * sorted(course.seconds)[len(course.seconds) // 2]
        memory = f"{max(course.memory):15.0f}" if course.memory else "         unknown"
        first, last = loss_text(course.losses[0]), loss_text(course.losses[-1])
        print(f"{name:>12}{first:>12}{last:>12}{milliseconds:12.1f}{memory}", flush=True)
    draw(courses, settings).savefig(args.out)
    print(f"\npicture saved to {args.out}")


def in_fresh_process(name: str, settings: Settings) -> Course:
    """So that the memory of one is not that of the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, name, settings).result()


if __name__ == "__main__":
    main()
