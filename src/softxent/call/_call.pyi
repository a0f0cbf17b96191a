from typing import Any, Final, Self, final

import numpy as np

NOT_AS_IT_IS: Final[int]
OVERLAPS: Final[int]
NONE_NEEDED: Final[object]
RESULTS: Final[dict[str, int]]

def thread_limit(n_threads: int) -> int: ...
def team_size(n_rows: int, n_classes: int, n_threads: int) -> int: ...
def share_memory(a: np.ndarray, b: np.ndarray) -> bool: ...
def openmp() -> bool: ...
def diagnostics_of(logits: object, axis: object) -> tuple[np.ndarray, ...] | None: ...
def may_overlap_itself(array: np.ndarray) -> bool: ...

@final
class Kernels:
    def __new__(cls, capsule: object) -> Self: ...
    def run(
        self,
        logits: object,
        targets: object,
        axis: int,
        losses: np.ndarray | None,
        grad: object,
        mean: bool,
        n_threads: int,
        options: Any = None,
        diagnostics: tuple[np.ndarray, ...] | None = None,
        result: int = 0,
        vectors: object = None,
        hess: np.ndarray | None = None,
    ) -> float | int: ...
    def offer(self, level: str) -> object: ...
    def exp_of(self, x: np.ndarray, m: float, out: np.ndarray) -> float: ...
    def log1p_of(self, u: np.ndarray, out: np.ndarray) -> None: ...
