import numpy as np

def loss_and_grad(
    logits: object,
    targets: object,
    losses: np.ndarray | None,
    grad: object,
    mean: bool,
    n_threads: int,
    scratch: np.ndarray | None = None,
) -> float | None: ...
def team_size(n_rows: int, n_classes: int, n_threads: int) -> int: ...
def max_threads() -> int: ...
def openmp() -> bool: ...
