"""Two workers of Dask, in processes of their own, for the tests that need them."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as two_workers,
            distributed.Client(two_workers) as client,
        ):
            yield client


@pytest.fixture
def on_both_workers(cluster: Any) -> Callable[[np.ndarray], Any]:
    """An array of Dask with these rows on each worker: then it does not matter which of the two comes first."""
    array, dask = pytest.importorskip("dask.array"), pytest.importorskip("dask")
    workers = sorted(cluster.scheduler_info()["workers"])

    def place(rows: np.ndarray) -> Any:
        held = [cluster.scatter(rows, workers=[worker], hash=False) for worker in workers]
        return array.concatenate([array.from_delayed(dask.delayed(one), rows.shape, rows.dtype) for one in held])

    return place
