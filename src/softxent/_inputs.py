"""What arrays are accepted: the one place that reads logits, targets and out, and says what is wrong with them.

Nothing here writes to an array of the caller's. What comes out is plain ndarrays that the kernels take as they are:
any strides, alignment and byte order, of the dtypes below.
"""

import math
import operator
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex, TypeGuard

import numpy as np
import numpy.typing as npt

from softxent._dispatch import active as kernels

FLOATS = "float16, bfloat16, float32 or float64"
INT64 = range(-(2**63), 2**63)

# Whether each divides by the weight of the rows, and whether it returns the loss of each row.
REDUCTIONS = {"mean": (True, False), "sum": (False, False), "none": (False, True)}

Pair = tuple[np.ndarray, np.ndarray]  # classes, and what the target gives to each

# Defaults of the public functions, known by identity: an equal number of the caller's is read like any other.
ZERO, ONE = 0.0, 1.0


class Options(NamedTuple):
    """What can make a call more than the loss of plain rows; no option without a value."""

    weight: Any
    sample_weight: Any
    ignore_index: Any
    label_smoothing: Any
    temperature: Any
    softcap: Any
    z_loss: Any
    where: Any
    normalizer: Any


def _is_float(dtype: np.dtype) -> bool:
    # bfloat16 is known by the name that ml_dtypes gives it, so that ml_dtypes need not be there.
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or dtype.name == "bfloat16"


def _array(value: npt.ArrayLike, name: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: the mask would be ignored; fill it, or leave rows out")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None


def taken_as(array: npt.ArrayLike, dtype: npt.DTypeLike) -> np.ndarray:
    """`array` as a kernel takes it, in `dtype`; what is too large for that becomes infinite, as in a kernel."""
    with np.errstate(over="ignore"):
        return np.require(array, dtype, ["C", "A"])


def shown(value: object) -> str:
    """What came, in the message of an error: Python writes no integer of more than 4300 digits."""
    try:
        return str(value)
    except ValueError:
        return f"an {type(value).__name__} of very many digits"


def _place(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def shape_without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def read_logits(logits: npt.ArrayLike, axis: SupportsIndex) -> tuple[np.ndarray, int]:
    """`logits` as an array with at least one class, and their axis, counted from the first."""
    x = _array(logits, "logits")
    if not (_is_float(x.dtype) or x.dtype.kind in "iub"):
        raise TypeError(f"logits must be {FLOATS}, integers or bool, got dtype {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"logits must have a class axis: expected shape (..., C), got a scalar, {x}")
    try:
        class_axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {type(axis).__name__}") from None
    if not -x.ndim <= class_axis < x.ndim:
        raise np.exceptions.AxisError(
            f"axis must be in [{-x.ndim}, {x.ndim}) for logits of shape {x.shape}, got {shown(class_axis)}"
        )
    class_axis %= x.ndim
    if x.shape[class_axis] == 0:
        raise ValueError(
            f"logits must have at least one class: expected C >= 1 along axis {class_axis}, got shape {x.shape}"
        )
    return x, class_axis


def result_dtypes(logits: np.ndarray) -> tuple[np.dtype, np.dtype]:
    """The dtype of the gradient, and the one that rows are computed and their losses returned in."""
    if not _is_float(logits.dtype):
        return np.dtype(np.float64), np.dtype(np.float64)
    native = logits.dtype.newbyteorder("=")
    return native, np.dtype(np.float32) if native.itemsize == 2 else native


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind in "iub" or _is_float(dtype) or dtype.type is np.longdouble


def _is_pair(targets: Any, logits: np.ndarray) -> TypeGuard[Pair]:
    """Whether targets are classes and amounts: a tuple that means something else has arrays of fewer axes."""
    return (
        type(targets) is tuple
        and len(targets) == 2
        and all(isinstance(part, np.ndarray) and part.ndim == logits.ndim for part in targets)
        and targets[0].dtype.kind in "iu"
        and _is_real(targets[1].dtype)
    )


def read_targets(
    targets: npt.ArrayLike | Pair, logits: np.ndarray, class_axis: int, ignore_index: int | None, dtype: np.dtype
) -> np.ndarray | Pair:
    """Class labels, without the class axis, distributions, with it, or a pair of classes and amounts of `dtype`."""
    leading, n_classes = shape_without(logits.shape, class_axis), logits.shape[class_axis]
    if _is_pair(targets, logits):
        _refuse_ignore_index(ignore_index, leading, "a pair of indices and probs")
        return _read_pair(targets, leading, n_classes, dtype)
    t = _array(targets, "targets")
    if t.shape == leading:
        if t.size == 0 and not isinstance(targets, np.ndarray):
            t = t.astype(np.intp)  # an empty list becomes float64, whatever was meant
        if t.dtype.kind not in "iu":
            raise TypeError(
                f"targets of shape {t.shape} are class labels and must be integers, got dtype {t.dtype}; "
                f"convert them to integers, or pass distributions of shape {logits.shape}"
            )
        _check_labels(t, "targets", n_classes, ignore_index)
        return t
    if t.shape == logits.shape:
        _refuse_ignore_index(ignore_index, leading, f"distributions of shape {t.shape}")
        if not _is_real(t.dtype):
            raise TypeError(f"targets must be real numbers, got dtype {t.dtype}")
        return t
    raise ValueError(
        f"targets must be class labels of shape {leading} or distributions of shape {logits.shape} "
        f"for logits of shape {logits.shape}, got shape {t.shape}"
    )


def read_labels(
    targets: npt.ArrayLike, logits: np.ndarray, class_axis: int, ignore_index: int | None, dtype: np.dtype
) -> np.ndarray:
    """`targets` that must be class labels."""
    t = read_targets(targets, logits, class_axis, ignore_index, dtype)
    leading = shape_without(logits.shape, class_axis)
    if isinstance(t, tuple) or t.shape != leading:
        raise ValueError(
            f"targets must be class labels of shape {leading}: in a distribution no class is the one that is right"
        )
    return t


def _read_pair(pair: Pair, leading: tuple[int, ...], n_classes: int, dtype: np.dtype) -> Pair:
    classes, amounts = _array(pair[0], "targets[0]"), _array(pair[1], "targets[1]")
    if classes.shape != amounts.shape or classes.shape[:-1] != leading:
        raise ValueError(
            f"targets as a pair (indices, probs) must both have the shape {leading} and one axis more at the end, "
            f"got shapes {classes.shape} and {amounts.shape}"
        )
    _check_labels(classes, "targets[0]", n_classes, None)
    # An int64 of another name (long, long long) stays one when it is copied, and a kernel knows but one.
    return taken_as(classes, np.int64).view(np.int64), taken_as(amounts, dtype)


def _refuse_ignore_index(ignore_index: int | None, leading: tuple[int, ...], given: str) -> None:
    if ignore_index is not None:
        raise ValueError(
            f"ignore_index needs class labels of shape {leading}, got {given}; "
            "give rows that do not count a sample_weight of 0"
        )


def _check_labels(labels: np.ndarray, name: str, n_classes: int, ignore_index: int | None) -> None:
    if labels.size == 0 or (labels.min() >= 0 and labels.max() < n_classes):
        return
    wrong = (labels < 0) | (labels >= n_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if not wrong.any():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), labels.shape))
    besides = "" if ignore_index is None else f" or the ignore_index {ignore_index}"
    raise ValueError(
        f"{_place(name, index)} = {labels[index]} is not a class: expected 0 <= label < {n_classes}{besides}"
    )


def can_be_taken_as_they_came(options: Options) -> bool:
    """Whether a kernel can look at the arrays."""
    arrays = (options.weight, options.sample_weight, options.where)
    return all(array is None or type(array) is np.ndarray for array in arrays)


def read_scalars(options: Options, reduction: str) -> Options:
    """The same with numbers that were looked at; arrays as they are."""
    weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, where, normalizer = options
    if ignore_index is not None:
        ignore_index = read_ignore_index(ignore_index)
    smoothing = _number(label_smoothing, "label_smoothing")
    if smoothing > 1:
        raise ValueError(f"label_smoothing must be a share, 0 <= label_smoothing <= 1, got {label_smoothing}")
    temperature = _number(temperature, "temperature", positive=True)
    if softcap is not None:
        softcap = _number(softcap, "softcap", " or None", positive=True)
    z_loss = _number(z_loss, "z_loss")
    if normalizer is not None:
        normalizer = _number(normalizer, "normalizer", " or None")
        if reduction != "mean":
            raise ValueError(f"normalizer is what reduction='mean' divides by, got it with reduction={reduction!r}")
    return Options(weight, sample_weight, ignore_index, smoothing, temperature, softcap, z_loss, where, normalizer)


def _is_number(value: object) -> bool:
    if isinstance(value, np.generic | np.ndarray):
        return value.ndim == 0 and _is_real(value.dtype) and not isinstance(value, np.ma.MaskedArray)
    return isinstance(value, SupportsFloat)


def _number(value: Any, name: str, otherwise: str = "", *, positive: bool = False) -> float:
    if type(value) is not float and not _is_number(value):
        raise TypeError(f"{name} must be a number{otherwise}, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'positive' if positive else 'not negative'}, got {shown(value)}")
    return number


def read_ignore_index(ignore_index: SupportsIndex) -> int:
    try:
        label = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer or None, got {type(ignore_index).__name__}") from None
    if label not in INT64:
        raise ValueError(f"ignore_index must fit into 64 bits, got {shown(label)}")
    return label


def read_arrays(options: Options, logits: np.ndarray, class_axis: int, dtype: np.dtype) -> Options:
    """The same with arrays as the kernels take them; weights of classes are of `dtype`."""
    for name, number in (("temperature", options.temperature), ("softcap", options.softcap)):
        if number is not None and not float(np.finfo(dtype).smallest_normal) <= number <= float(np.finfo(dtype).max):
            raise ValueError(f"{name} must be in the range of {dtype}, which the logits are computed in, got {number}")
    leading, n_classes = shape_without(logits.shape, class_axis), logits.shape[class_axis]
    weight, sample_weight, where = options.weight, options.sample_weight, options.where
    if weight is not None:
        weight = taken_as(_read_weights(weight, "weight", "class", (n_classes,)), dtype)
    if sample_weight is not None:
        sample_weight = _read_weights(sample_weight, "sample_weight", "row", leading)
    if where is not None:
        where = _array(where, "where")
        if where.dtype != np.bool_:
            raise TypeError(f"where must be bool, True for the classes that are allowed, got dtype {where.dtype}")
        if where.shape == (n_classes,):
            where = where.reshape(n_classes, *(1 for _ in logits.shape[class_axis + 1 :]))
        elif where.shape != logits.shape:
            raise ValueError(
                f"where must be of shape {(n_classes,)}, or {logits.shape} as the logits, got shape {where.shape}"
            )
        where = np.broadcast_to(where, logits.shape)
    return options._replace(weight=weight, sample_weight=sample_weight, where=where)


def _read_weights(weights: npt.ArrayLike, name: str, of: str, shape: tuple[int, ...]) -> np.ndarray:
    w = _array(weights, name)
    if not _is_real(w.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {w.dtype}")
    if w.shape != shape:
        raise ValueError(f"{name} must have one number for each {of}, shape {shape}, got shape {w.shape}")
    return w


def read_out(out: object, shape: tuple[int, ...]) -> np.ndarray:
    """`out` as a plain array that the gradient can be written to."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a plain NumPy array, got {type(out).__name__}")
    plain = np.asarray(out)  # a subclass may say anything of itself
    if not _is_float(plain.dtype):
        raise TypeError(f"out must be {FLOATS}, got dtype {plain.dtype}")
    if plain.shape != shape:
        raise ValueError(f"out must have the shape of the logits, {shape}, got {plain.shape}")
    if not plain.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if plain.size and kernels.may_overlap_itself(plain):
        raise ValueError(f"out must not overlap itself, got strides {plain.strides} for shape {shape}")
    return plain
