"""A head over a vocabulary that no process holds whole: softxent.shards, with torch.distributed as the transport.

Each process has some of the words: their rows of the head, and so their columns of the logits. A step is

    logits = hidden W_part^T                          (batch, words here), in each process
    summary = shards.summarize(logits, ...)           80 bytes a row, which each process sends to all others
    merged = shards.merge(all summaries)
    dlogits = shards.grad(logits, ..., merged)        in place
    dW_part = dlogits^T hidden,    dhidden = sum over the processes of dlogits W_part

The model predicts the next word of this project's documents from the current one. To run it on one machine:
`pip install . torch` in the checkout, then `python examples/vocabulary_parallel.py --processes 3`.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing

    import softxent as sx
    from softxent import shards
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing. To install both: {sys.executable} -m pip install . torch") from None

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

DOCUMENTS = Path(__file__).resolve().parents[1]
WIDTH = 64  # of a hidden state


class Corpus(NamedTuple):
    current: Labels  # (N,)
    following: Labels  # (N,)
    n_words: int


class Plan(NamedTuple):
    processes: int
    steps: int
    batch_size: int
    learning_rate: float


def read_corpus() -> Corpus:
    text = " ".join(path.read_text("utf-8") for path in sorted(DOCUMENTS.glob("**/*.md")))
    words, tokens = np.unique(re.findall(r"[a-z]+|[.,:;()]", text.lower()), return_inverse=True)
    return Corpus(tokens[:-1], tokens[1:], len(words))


def gathered(summary: npt.NDArray[np.void], processes: int) -> list[npt.NDArray[np.void]]:
    """The summaries of all processes: they travel as bytes."""
    mine = torch.from_numpy(summary.view(np.uint8))
    theirs = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(theirs, mine)
    return [part.numpy().view(shards.SUMMARY) for part in theirs]


def sum_of_all(part: Floats) -> Floats:
    total = torch.from_numpy(part)
    dist.all_reduce(total)
    return part  # which shares its memory with the tensor


def compare(logits: Floats, labels: Labels, loss: float, dlogits: Floats, first: int, n_words: int) -> str:
    """How far loss and gradient are from those of one call on all logits, which are brought together for this."""
    whole = np.zeros((len(labels), n_words), np.float32)
    whole[:, first : first + logits.shape[1]] = logits
    whole_loss, whole_grad = sx.value_and_grad(sum_of_all(whole), labels)
    difference = np.abs(dlogits - whole_grad[:, first : first + logits.shape[1]]).max() / np.abs(whole_grad).max()
    return f"differences from one call: loss {abs(loss / whole_loss - 1):.1e}, gradient {difference:.1e}"


def train(rank: int, plan: Plan, meeting_point: str) -> None:
    """What each process does; the first one prints."""
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=plan.processes)
    corpus, rng = read_corpus(), np.random.default_rng(0)
    first, stop = (corpus.n_words * i // plan.processes for i in (rank, rank + 1))
    hidden_of = rng.normal(0, 0.5, (corpus.n_words, WIDTH)).astype(np.float32)  # the same in every process
    head = rng.normal(0, 0.1, (corpus.n_words, WIDTH)).astype(np.float32)[first:stop]

    if rank == 0:
        print(f"{corpus.n_words} words, about {stop - first} in each of {plan.processes} processes")
    for step in range(plan.steps):
        batch = rng.integers(len(corpus.current), size=plan.batch_size)
        current, labels = corpus.current[batch], corpus.following[batch]
        hidden = hidden_of[current]
        logits = hidden @ head.T
        kept = logits.copy() if step == 0 else None

        summary = shards.summarize(logits, labels, first_class=first, n_classes=corpus.n_words)
        merged = shards.merge(gathered(summary, plan.processes))
        loss = shards.loss(merged)
        dlogits = shards.grad(logits, labels, merged, first_class=first, out=logits)

        dhidden = sum_of_all(dlogits @ head)
        if kept is not None:
            report = compare(kept, labels, loss, dlogits, first, corpus.n_words)
            if rank == 0:
                print(f"{summary.nbytes // len(labels)} bytes a row leave each process; {report}")
        head -= plan.learning_rate * (dlogits.T @ hidden)
        np.subtract.at(hidden_of, current, plan.learning_rate * dhidden)
        if rank == 0 and (step % max(1, plan.steps // 10) == 0 or step == plan.steps - 1):
            print(f"step {step + 1:5}   loss {loss:.4f}   accuracy {np.mean(shards.argmax(merged) == labels):6.1%}")
    dist.destroy_process_group()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    options = argparse.ArgumentParser(description="A vocabulary-parallel head, with softxent and torch.distributed.")
    options.add_argument("--processes", type=positive, default=2)
    options.add_argument("--steps", type=positive, default=300)
    options.add_argument("--batch-size", type=positive, default=256)
    options.add_argument("--learning-rate", type=float, default=1.0)
    plan = Plan(**vars(options.parse_args()))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the processes share the CPUs
        os.environ.setdefault(name, "1")
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = (Path(folder) / "meeting_point").as_uri()
        multiprocessing: Any = torch.multiprocessing  # whose functions have no types
        multiprocessing.spawn(train, (plan, meeting_point), nprocs=plan.processes)


if __name__ == "__main__":
    main()
