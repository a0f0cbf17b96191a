"""The list of options: of each its type, its default, how it is read and refused, and what its documentation says.

Functions take `**options: Unpack[Options]`, and only those that were given are looked at: `read_options` reads each by
itself, before a kernel is tried; `Given.fitted` reads them beside the logits, once a kernel has refused the arrays.
`with_options` shows all of them in a function's signature and docstring.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NotRequired, SupportsFloat, SupportsIndex, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from softxent._inputs import is_real, read_array, shape_without, shown, taken_as

F = TypeVar("F", bound=Callable[..., Any])
INT64 = range(-(2**63), 2**63)


class LogitOptions(TypedDict, total=False):
    """The options that change the logits before the softmax is taken: those of `softmax` and its like."""

    temperature: SupportsFloat
    softcap: SupportsFloat | None
    where: ArrayLike | None


class Options(LogitOptions, total=False):
    """The options of `cross_entropy`, `value_and_grad` and `evaluate`, to annotate functions that pass them on.

    Attributes
    ----------
    temperature : float, default 1.0
        The logits are divided by this.
    softcap : float, optional
        Logits :math:`x`, divided by the temperature, become ``softcap * tanh(x / softcap)``.
    where : array_like of bool, shape (C,) or (..., C), optional
        Which classes are allowed. Others have no probability, whatever their logits hold, and a gradient of 0. One axis
        always means classes, even if there are as many rows.
    weight : array_like, shape (C,), optional
        A weight for each class, that its part of the loss is multiplied by. The mean divides by the weights of the
        targets.
    sample_weight : array_like, shape (...), optional
        A weight for each row, of any real or bool dtype, that its loss and its gradient are multiplied by. A row of
        weight 0 is ignored, as with `ignore_index`; its label must be a class all the same.
    ignore_index : int, optional
        The label of rows that do not count: whatever their logits hold is not used, and their loss and gradient are
        exactly 0. It may be a class, negative or beyond all classes. Only with class labels.
    label_smoothing : float, default 0.0
        The share of each target, in ``[0, 1]``, that is taken from it and given to all allowed classes alike.
    z_loss : float, default 0.0
        Adds ``z_loss`` times the square of the logarithm of the sum of the exponentials to the loss of each row.
    """

    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: SupportsIndex | None
    label_smoothing: SupportsFloat
    z_loss: SupportsFloat


class Call(Options, total=False):
    """What the overloads of a function take by name; their reduction, and whether it divides, is added below."""

    axis: SupportsIndex
    n_threads: SupportsIndex | None


class Mean(TypedDict, total=False):
    reduction: Literal["mean"]
    normalizer: SupportsFloat | None


class Sum(TypedDict):
    reduction: Literal["sum"]
    normalizer: NotRequired[None]


class OfRows(TypedDict):
    reduction: Literal["none"]
    normalizer: NotRequired[None]


class MeanCall(Call, Mean, total=False): ...


class SumCall(Call, Sum): ...


class RowsCall(Call, OfRows): ...


class LinearCall(Options, total=False):
    """The same for a linear head."""

    linear_bias: ArrayLike | None
    memory: SupportsFloat
    n_threads: SupportsIndex | None


class LinearProductCall(LinearCall, total=False):
    reduction: Literal["mean", "sum", "none"]
    normalizer: SupportsFloat | None
    probs: ArrayLike | None


class LinearMeanCall(LinearCall, Mean, total=False): ...


class LinearSumCall(LinearCall, Sum): ...


class LinearRowsCall(LinearCall, OfRows): ...


def read_number(name: str, value: Any, otherwise: str = "", positive: bool = False) -> float:
    if type(value) is float and 0 < value < math.inf:
        return value
    try:
        number = float(value) if _is_number(value) else None
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):  # such as a Series of several numbers
        number = None
    if number is None:
        raise TypeError(f"{name} must be a number{otherwise}, got {type(value).__name__}")
    if not 0 <= number < math.inf or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'positive' if positive else 'not negative'}, got {shown(value)}")
    return number


def _is_number(value: object) -> bool:
    if isinstance(value, np.generic | np.ndarray):
        return value.ndim == 0 and is_real(value.dtype) and not isinstance(value, np.ma.MaskedArray)
    return isinstance(value, SupportsFloat)


def _read_share(name: str, value: Any) -> float:
    share = read_number(name, value)
    if share > 1:
        raise ValueError(f"{name} must be a share, 0 <= {name} <= 1, got {value}")
    return share


def _read_positive(name: str, value: Any) -> float:
    return read_number(name, value, positive=True)


def _read_cap(name: str, value: Any) -> float | None:
    return None if value is None else read_number(name, value, " or None", positive=True)


def _read_label(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        label = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer or None, got {type(value).__name__}") from None
    if label not in INT64:
        raise ValueError(f"{name} must fit into 64 bits, got {shown(label)}")
    return label


def _read_array(name: str, value: Any) -> np.ndarray | None:
    return None if value is None else read_array(value, name)


def _fit_scale(name: str, value: float, logits: np.ndarray, class_axis: int, dtype: np.dtype) -> float:
    if not float(np.finfo(dtype).smallest_normal) <= value <= float(np.finfo(dtype).max):
        raise ValueError(f"{name} must be in the range of {dtype}, which the logits are computed in, got {value}")
    return value


def _fit_weight(name: str, value: np.ndarray, logits: np.ndarray, class_axis: int, dtype: np.dtype) -> np.ndarray:
    shapes = {"weight": (logits.shape[class_axis],), "sample_weight": shape_without(logits.shape, class_axis)}
    units = {"weight": "class", "sample_weight": "row"}
    if not is_real(value.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {value.dtype}")
    if value.shape != shapes[name]:
        other = "sample_weight" if name == "weight" else "weight"
        advice = f"; {other} has one for each {units[other]}" if value.shape == shapes[other] else ""
        raise ValueError(
            f"{name} must have one number for each {units[name]}, shape {shapes[name]}, got shape {value.shape}{advice}"
        )
    return value


def _in_unit(weights: np.ndarray, dtype: np.dtype, z_loss: float) -> tuple[np.ndarray, float]:
    """Weights of classes in `dtype`, in a unit, a power of two, in which they neither vanish nor have no sum."""
    wide, info, exponent = taken_as(weights, np.float64), np.finfo(dtype), 0
    with np.errstate(all="ignore"):
        largest = float(np.max(np.abs(wide), where=np.isfinite(wide), initial=0))
        if 0 < largest < float(info.smallest_normal) * 2**26:
            exponent = math.frexp(largest)[1]
            if z_loss:  # which is divided by the unit
                exponent = max(exponent, math.frexp(z_loss)[1] - 900)
        elif largest > float(info.max) * 2.0**-28:
            # All of them are brought into range, if it is wide enough; else the largest become infinite.
            smallest = float(np.min(np.abs(wide), where=wide != 0, initial=np.inf))
            exponent = math.frexp(largest)[1] - math.frexp(float(info.max))[1] + 28
            exponent = exponent if math.ldexp(smallest, -exponent) >= float(info.smallest_normal) else 64
        if exponent:
            weights = np.ldexp(wide, -exponent)
    return taken_as(weights, dtype), math.ldexp(1, exponent)


def _fit_where(name: str, value: np.ndarray, logits: np.ndarray, class_axis: int, dtype: np.dtype) -> np.ndarray:
    if value.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, True for the classes that are allowed, got dtype {value.dtype}")
    n_classes = logits.shape[class_axis]
    if value.shape == (n_classes,):
        value = value.reshape(n_classes, *(1 for _ in logits.shape[class_axis + 1 :]))
    elif value.shape != logits.shape:
        of_rows = value.shape == shape_without(logits.shape, class_axis)
        advice = "; to leave out rows, give them a sample_weight of 0" if of_rows else ""
        raise ValueError(
            f"{name} must be of shape {(n_classes,)}, or {logits.shape} as the logits, got shape {value.shape}{advice}"
        )
    return np.broadcast_to(value, logits.shape)


class Option(NamedTuple):
    """What there is to an option besides its type and its documentation."""

    default: Any
    read: Callable[[str, Any], Any]  # of its name and the value that was given
    fit: Callable[[str, Any, np.ndarray, int, np.dtype], Any] | None = None  # and of logits, axis, dtype computed in


OPTIONS = {
    "temperature": Option(1.0, _read_positive, _fit_scale),
    "softcap": Option(None, _read_cap, _fit_scale),
    "where": Option(None, _read_array, _fit_where),
    "weight": Option(None, _read_array, _fit_weight),
    "sample_weight": Option(None, _read_array, _fit_weight),
    "ignore_index": Option(None, _read_label),
    "label_smoothing": Option(0.0, _read_share),
    "z_loss": Option(0.0, read_number),
}
READERS = {name: option.read for name, option in OPTIONS.items()}
OF_LOGITS = tuple(LogitOptions.__annotations__)
FITTERS = {name: option.fit for name, option in OPTIONS.items() if option.fit is not None}


class Given:
    """The options of a call, as attributes, and the numbers below; those not given are as by default."""

    ignore_index: int | None
    label_smoothing: float
    sample_weight: np.ndarray | None
    softcap: float | None
    temperature: float
    where: np.ndarray | None
    z_loss: float
    normalizer: float | None = None  # what the mean is divided by
    hess_factor: float = 1.0  # what the diagonal of a Hessian is multiplied by
    weight: np.ndarray | None
    weight_unit: float | None = None  # the weights of classes were divided by it

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values

    def fitted(self, logits: np.ndarray, class_axis: int, dtype: np.dtype) -> Given:
        """The same beside the logits: arrays as the kernels take them, weights of classes in `dtype`."""
        values = dict(self.__dict__)
        for name, value in values.items():
            if name in FITTERS and value is not None:
                values[name] = FITTERS[name](name, value, logits, class_axis, dtype)
        if values.get("weight") is not None:
            values["weight"], values["weight_unit"] = _in_unit(values["weight"], dtype, values.get("z_loss", 0.0))
        return Given(values)


for _name, _option in OPTIONS.items():
    setattr(Given, _name, _option.default)


def read_options(options: Any) -> Given:
    """Numbers that make sense by themselves, and arrays. The dict that comes is used up."""
    for name, value in options.items():
        try:
            read = READERS[name]
        except KeyError:
            raise TypeError(f"got an unexpected keyword argument {name!r}{nearest(name)}") from None
        options[name] = read(name, value)
    return Given(options)


def read_logit_options(options: Any) -> Given:
    """As read_options, for a function without targets: an option of the loss has no meaning there."""
    for name in options:
        if name in OPTIONS and name not in OF_LOGITS:
            raise TypeError(f"{name} changes a loss, and there is none: the options here are {', '.join(OF_LOGITS)}")
    return read_options(options)


def nearest(name: str) -> str:
    from difflib import get_close_matches  # rarely needed

    near = get_close_matches(name, [*OPTIONS, "axis", "reduction", "normalizer", "n_threads"], 1)
    return f"; did you mean {near[0]!r}?" if near and near[0] != name else ""


# An entry of a docstring, with its name, and what stands in a docstring for such entries.
ENTRY = re.compile(r"^    (\w+) : .*\n(?:        .*\n)+", re.MULTILINE)
REFERENCE = re.compile(r"^    ([\w*, ]+)\n        (?:As in|See) `(\w+)`\.\n", re.MULTILINE)


def _entries_of(docstring: str | None) -> dict[str, str]:
    """The entries of a docstring by their names, and all options as one."""
    found = {entry[1]: entry[0] for entry in ENTRY.finditer(docstring or "")}  # none with python -OO
    return {**found, "**options": "".join(found.get(name, "") for name in OPTIONS)}


# By the name of a function, and by its module and name: integrations have functions of the same names.
entries = {"Options": _entries_of(Options.__doc__)}
LISTS = {"Unpack[Options]": tuple(OPTIONS), "Unpack[LogitOptions]": OF_LOGITS}  # by annotation


def with_options(function: F) -> F:
    """Show every option in the signature and the docstring of a function, in place of `**options`.

    Where the docstring says "As in" another function, it gets what is said there, too: in its own module, if there is
    one of that name, else in softxent.
    """
    public: Any = function
    signature = inspect.signature(function)
    *named, options = signature.parameters.values()
    for name in LISTS[options.annotation]:
        kind, type_name = inspect.Parameter.KEYWORD_ONLY, Options.__annotations__[name].__forward_arg__
        named.append(inspect.Parameter(name, kind, default=OPTIONS[name].default, annotation=type_name))
    public.__signature__ = signature.replace(parameters=named)
    if function.__doc__:
        module = function.__module__

        def said_there(found: re.Match[str]) -> str:
            there = entries.get(f"{module}.{found[2]}") or entries[found[2]]
            return "".join(there[name] for name in found[1].split(", "))

        public.__doc__ = REFERENCE.sub(said_there, function.__doc__)
        own = entries[f"{module}.{function.__name__}"] = _entries_of(public.__doc__)
        entries.setdefault(function.__name__, own)
    return function
