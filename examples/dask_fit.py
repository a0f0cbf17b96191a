"""Softmax regression on data that no memory holds: a fit over Dask arrays in Zarr, by L-BFGS.

    loss(W, b) = -1/N sum_n log softmax(W x_n + b)[label_n] + penalty / 2 |W|^2

The example writes its data, in chunks of rows, and then fits. Each task computes the loss and the gradients of a chunk;
a tree of tasks adds these up, so that what reaches the client is one gradient an evaluation. Without options it runs on
the threads of this process. With `--workers N` it starts N processes on this machine, each with a memory limit that is
far below the size of the data; with `--scheduler ADDRESS` it uses a cluster that is there. To run it:
`pip install ".[dask,examples]"` in the checkout, then `python examples/dask_fit.py --workers 2`.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    import dask
    import dask.array as da
    import zarr  # noqa: F401  # which dask.array writes with
    from dask.diagnostics import ProgressBar
    from distributed import Client, LocalCluster, progress
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    import softxent as sx
    import softxent.dask
except ModuleNotFoundError as error:
    command = f'{sys.executable} -m pip install ".[dask,examples]"'
    raise SystemExit(f"{error.name} is missing. To install it: {command}") from None

Floats = npt.NDArray[np.float32]

ADDED_AT_ONCE = 8  # gradients, by one task of the tree
PENALTY = 1e-4


class Part(NamedTuple):
    """Of a chunk of rows, or of several, added up."""

    loss: float
    weights: npt.NDArray[np.float64]  # (C, D): the gradient
    bias: npt.NDArray[np.float64]  # (C,)


class Head(NamedTuple):
    weights: Floats  # (C, D)
    bias: Floats  # (C,)


def true_head(n_classes: int, n_features: int) -> Head:
    """What the labels are drawn from."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 2 / np.sqrt(n_features), (n_classes, n_features))
    return Head(weights.astype(np.float32), rng.normal(0, 0.5, n_classes).astype(np.float32))


def make_rows(n_classes: int, n_features: int, block_info: Any = None) -> Floats:
    """A chunk of the data: features, and the label as the last column."""
    (start, stop), _ = block_info[None]["array-location"]
    rng = np.random.default_rng(start)
    inputs = rng.standard_normal((stop - start, n_features), dtype=np.float32)
    head = true_head(n_classes, n_features)
    logits = inputs @ head.weights.T + head.bias
    logits += rng.gumbel(size=logits.shape)  # the class with the largest sum is drawn from the softmax
    return np.concatenate([inputs, logits.argmax(axis=1)[:, np.newaxis].astype(np.float32)], axis=1)


def value_and_grad(rows: Floats, head: Head, n_rows: int) -> Part:
    """The part of the mean loss, and of its gradient, that comes from a chunk."""
    inputs, labels = rows[:, :-1], rows[:, -1].astype(np.int64)
    loss, grads = sx.linear_value_and_grad(
        inputs, head.weights, labels, linear_bias=head.bias, wrt=("linear_weight", "linear_bias"), normalizer=n_rows,
        n_threads=1,
    )  # fmt: skip
    return Part(loss, grads.linear_weight.astype(np.float64), grads.linear_bias.astype(np.float64))


def add(parts: list[Part]) -> Part:
    return Part(*(sum(values) for values in zip(*parts, strict=True)))


def sum_as_tree(parts: list[Any]) -> Any:
    """The sum of delayed parts: no task holds more than ADDED_AT_ONCE of them."""
    while len(parts) > 1:
        parts = [dask.delayed(add)(parts[i : i + ADDED_AT_ONCE]) for i in range(0, len(parts), ADDED_AT_ONCE)]
    return parts[0]


class Objective:
    """The loss and the gradient for L-BFGS, of all parameters as one vector of float64."""

    def __init__(self, data: Any, n_classes: int, client: Client | None) -> None:
        self.chunks = data.to_delayed().ravel().tolist()
        self.n_rows, self.n_features = data.shape[0], data.shape[1] - 1
        self.n_classes, self.client = n_classes, client
        self.started, self.evaluations = perf_counter(), 0

    def head(self, parameters: npt.NDArray[np.float64]) -> Head:
        weights = parameters[self.n_classes :].reshape(self.n_classes, self.n_features)
        return Head(weights.astype(np.float32), parameters[: self.n_classes].astype(np.float32))

    def __call__(self, parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        head = self.head(parameters)
        shared = dask.delayed(head) if self.client is None else self.client.scatter([head], broadcast=True)[0]
        parts = [dask.delayed(value_and_grad)(chunk, shared, self.n_rows) for chunk in self.chunks]
        (total,) = dask.compute(sum_as_tree(parts))
        self.evaluations += 1
        weights = parameters[self.n_classes :]
        loss = total.loss + PENALTY / 2 * float(weights @ weights)
        print(f"evaluation {self.evaluations:3}   loss {loss:.6f}   {perf_counter() - self.started:6.1f} s", flush=True)
        return loss, np.concatenate([total.bias, total.weights.ravel() + PENALTY * weights])


@contextmanager
def started(workers: int, scheduler: str | None, memory_limit: str) -> Iterator[Client | None]:
    """A client of a cluster; None for the threads of this process."""
    with ExitStack() as stack:
        client = None
        if scheduler is not None:
            client = stack.enter_context(Client(scheduler))
        elif workers:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=memory_limit)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        if client is not None:
            print(f"dashboard: {client.dashboard_link}")
        yield client


def computed_with_bar(work: list[Any], client: Client | None) -> list[Any]:
    if client is None:
        with ProgressBar():
            return list(dask.compute(*work))
    futures = client.compute(work)
    progress(futures)
    print()
    return list(client.gather(futures))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    options = argparse.ArgumentParser(description="Softmax regression over Dask arrays, with softxent.")
    options.add_argument("--rows", type=positive, default=2_000_000)
    options.add_argument("--features", type=positive, default=100)
    options.add_argument("--classes", type=positive, default=10)
    options.add_argument("--chunk-rows", type=positive, default=50_000)
    options.add_argument("--evaluations", type=positive, default=20)
    options.add_argument("--workers", type=positive, default=0, help="processes to start on this machine")
    options.add_argument("--memory-limit", default="350MiB", help="of each of these processes")
    options.add_argument("--scheduler", help="the address of a cluster to use")
    options.add_argument(
        "--data", help="where to keep the data; all workers must see it. Without it, a folder that goes"
    )
    args = options.parse_args()

    with ExitStack() as stack:
        stack.enter_context(
            threadpool_limits(1, user_api="blas")
        )  # the tasks share the CPUs; workers see to it themselves
        folder = args.data or stack.enter_context(tempfile.TemporaryDirectory())
        client = stack.enter_context(started(args.workers, args.scheduler, args.memory_limit))
        chunks = da.core.normalize_chunks((args.chunk_rows, args.features + 1), (args.rows, args.features + 1))
        rows = da.map_blocks(
            make_rows,
            args.classes,
            args.features,
            chunks=chunks,
            dtype=np.float32,
            meta=np.empty((0, 0), np.float32),
        )
        print(f"writing {rows.nbytes / 2**20:.0f} MiB to {folder}")
        computed_with_bar([rows.to_zarr(folder, overwrite=True, compute=False)], client)

        data = da.from_zarr(folder)
        objective = Objective(data, args.classes, client)
        start = np.zeros(args.classes * (args.features + 1))
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxfun": args.evaluations})
        head = objective.head(found.x)

        logits = data[:, :-1] @ head.weights.T + head.bias
        result = softxent.dask.evaluate(logits, data[:, -1].astype(np.int64))
        loss, accuracy = computed_with_bar([result.loss, result.correct.mean()], client)
        print(f"the fitted head: loss {loss:.6f}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
