"""Softmax cross-entropy loss and its gradient for NumPy arrays, in one fused pass on the CPU."""

from softxent._loss import cross_entropy, value_and_grad
from softxent._threads import get_num_threads, set_num_threads
from softxent._version import __version__

__all__ = ["__version__", "cross_entropy", "get_num_threads", "set_num_threads", "value_and_grad"]
