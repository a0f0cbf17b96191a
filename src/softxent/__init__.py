"""Softmax cross-entropy loss and its gradient for NumPy arrays, in one fused pass on the CPU."""

from softxent._evaluation import Evaluation, evaluate
from softxent._loss import cross_entropy, value_and_grad
from softxent._options import Options
from softxent._threads import get_num_threads, set_num_threads
from softxent._version import __version__

__all__ = [
    "Evaluation",
    "Options",
    "__version__",
    "cross_entropy",
    "evaluate",
    "get_num_threads",
    "set_num_threads",
    "value_and_grad",
]

for _public in (Evaluation, Options, cross_entropy, evaluate, get_num_threads, set_num_threads, value_and_grad):
    _public.__module__ = __name__  # what help, error messages and pickles call them by
del _public
