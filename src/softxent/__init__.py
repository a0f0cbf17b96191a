"""Softmax cross-entropy loss and its gradient for NumPy arrays, in one fused pass on the CPU."""

from softxent import _c_api
from softxent._c_api import get_include
from softxent._evaluation import Evaluation, evaluate
from softxent._linear import LinearGradients, linear_cross_entropy, linear_hvp, linear_value_and_grad
from softxent._loss import cross_entropy, value_and_grad
from softxent._options import LogitOptions, Options
from softxent._second_order import hvp, value_grad_and_hess
from softxent._softmax import log_softmax, log_softmax_vjp, logsumexp, softmax, softmax_vjp
from softxent._threads import get_num_threads, set_num_threads
from softxent._version import __version__

__all__ = [
    "Evaluation",
    "LinearGradients",
    "LogitOptions",
    "Options",
    "__version__",
    "cross_entropy",
    "evaluate",
    "get_include",
    "get_num_threads",
    "hvp",
    "linear_cross_entropy",
    "linear_hvp",
    "linear_value_and_grad",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "set_num_threads",
    "softmax",
    "softmax_vjp",
    "value_and_grad",
    "value_grad_and_hess",
]

_C_API = _c_api.capsule  # by this name softxent.h finds it

for _name in __all__:
    if _name != "__version__":
        globals()[_name].__module__ = __name__  # what help, error messages and pickles call them by
del _name
