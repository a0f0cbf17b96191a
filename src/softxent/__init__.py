"""Softmax cross-entropy loss and its gradient for NumPy arrays, in one fused pass on the CPU."""

from softxent._evaluation import Evaluation, evaluate
from softxent._loss import cross_entropy, value_and_grad
from softxent._threads import get_num_threads, set_num_threads
from softxent._version import __version__

__all__ = [
    "Evaluation",
    "__version__",
    "cross_entropy",
    "evaluate",
    "get_num_threads",
    "set_num_threads",
    "value_and_grad",
]
