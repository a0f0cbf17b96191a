"""What leaves each worker, and what merging costs, with classes or rows in up to 1024 parts, simulated in one process.

Classes: each part sums up its block of each row (`softxent.shards`); the summaries are merged at once and as trees. The
losses are compared with those of float64 logits in one call. Rows: the loss of every part is a few numbers whose
exact sum is that of its rows, and a tree adds them up; the result must have the bits of one call. `--quick` for a test.
"""

import argparse
import math
from collections.abc import Callable
from time import thread_time

import numpy as np

import softxent as sx
from softxent import shards
from softxent._doubles import Sum

BANDWIDTHS = {"1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}


def seconds(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = thread_time()
        function()
        times.append(thread_time() - start)
    return sorted(times)[len(times) // 5]


def merged_as_tree(parts: list[np.ndarray], fan_in: int) -> np.ndarray:
    while len(parts) > 1:
        parts = [shards.merge(parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
    return parts[0]


def of_classes(counts: list[int], n_rows: int, n_classes: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (n_rows, n_classes)).astype(np.float32)
    labels = rng.integers(n_classes, size=n_rows)
    logits[np.arange(n_rows // 2), labels[: n_rows // 2]] = 40  # confident rows
    true = sx.cross_entropy(logits.astype(np.float64), labels, reduction="none")
    one_call = seconds(lambda: sx.value_and_grad(logits, labels, n_threads=1), repeats) / logits.size

    print(f"classes in parts: {n_rows} rows x {n_classes} classes, float32; one call: {one_call * 1e9:.2f} ns a logit")
    print("parts   summarize + grad      merge, us a row       largest error of a loss, ulp of float64")
    print("        ns a logit          at once   tree of 16     at once    tree of 2   tree of 16")
    costs = [cost_of_parts(logits, labels, n_parts, true, repeats) for n_parts in counts]
    compute, merge = min(cost[0] for cost in costs), costs[-1][1] / counts[-1]

    print(f"\nA holder of C / P classes of a row computes for C / P times {compute * 1e9:.1f} ns. If each merges all")
    print(f"summaries, add 80 P bytes and P times {merge * 1e6:.2f} us. If each merges its share of rows and sends the")
    print("merged ones to all, add 160 bytes and the time of one. Parts at which this takes as long as computing:")
    for name, bandwidth in BANDWIDTHS.items():
        for classes in (32_000, 128_000):
            all_merge = math.sqrt(classes * compute / (80 / bandwidth + merge))
            shared = classes * compute / (160 / bandwidth + merge)
            print(
                f"  {name:>10}, {classes:6} classes: {all_merge:5.0f} if all merge, {shared:6.0f} if merging is shared"
            )


def cost_of_parts(
    logits: np.ndarray, labels: np.ndarray, n_parts: int, true: np.ndarray, repeats: int
) -> tuple[float, float]:
    """Seconds to compute a logit, and to merge a row."""
    n_rows, n_classes = logits.shape
    firsts = [n_classes * i // n_parts for i in range(n_parts)]
    blocks = list(zip(firsts, np.split(logits, firsts[1:], axis=1), strict=True))

    def summarize() -> list[np.ndarray]:
        return [shards.summarize(x, labels, first_class=first, n_classes=n_classes) for first, x in blocks]

    def grads() -> list[np.ndarray]:
        return [shards.grad(x, labels, ways[0], first_class=first) for first, x in blocks]

    parts = summarize()
    ways = [shards.merge(parts), merged_as_tree(parts, 2), merged_as_tree(parts, 16)]
    errors = [(np.abs(shards.loss(way, reduction="none") - true) / np.spacing(true)).max() for way in ways]
    assert max(errors) <= 4, errors  # 2 of one call, and 2 of the parts
    compute = (seconds(summarize, repeats) + seconds(grads, repeats)) / logits.size
    at_once = seconds(lambda: shards.merge(parts), repeats) / n_rows
    tree = seconds(lambda: merged_as_tree(parts, 16), repeats) / n_rows
    print(
        f"{n_parts:5}{compute * 1e9:13.2f}{at_once * 1e6:18.1f}{tree * 1e6:12.1f}",
        *(f"{e:12.2f}" for e in errors),
        sep="",
    )
    return compute, at_once


def of_rows(counts: list[int], n_rows: int) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(n_rows, 10)) * 10 ** rng.uniform(-3, 1, (n_rows, 1))).astype(np.float32)
    labels = rng.integers(10, size=n_rows)
    whole = sx.cross_entropy(logits, labels, reduction="sum")
    losses = np.zeros(n_rows)
    sx._loss.visit(logits, labels, -1, "sum", None, None, None, False, losses=losses)

    print(f"\nrows in parts: {n_rows} rows, tree of 16")
    print("parts   levels   most numbers that a task hands on   same bits as one call")
    for n_parts in counts:
        sums = [Sum.of(part) for part in np.array_split(losses, n_parts)]
        most, levels = max(len(part.parts) for part in sums), 0
        while len(sums) > 1:
            sums = [Sum.merged(sums[i : i + 16]) for i in range(0, len(sums), 16)]
            most, levels = max(most, *(len(part.parts) for part in sums)), levels + 1
        same = sums[0].rounded() == whole
        assert same
        print(f"{n_parts:5}{levels:9}{most:37}{same!s:>24}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer classes and rows")
    quick = options.parse_args().quick
    counts = [2, 64, 1024] if quick else [1, 2, 4, 16, 64, 256, 1024]
    of_classes(counts, 16 if quick else 64, 1024 if quick else 65536, 1 if quick else 5)
    of_rows(counts, 20_000 if quick else 1_000_000)


if __name__ == "__main__":
    main()
