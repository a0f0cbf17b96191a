"""What arrays are accepted: the one place that reads logits, targets and out, and says what is wrong with them.

Nothing here writes to an array of the caller's. What comes out is plain ndarrays that the kernels take as they are:
any strides, alignment and byte order, of the dtypes below.
"""

import math
import operator
from typing import SupportsFloat, SupportsIndex

import numpy as np
import numpy.typing as npt

from softxent._dispatch import active as kernels

FLOATS = "float16, bfloat16, float32 or float64"
INT64 = range(-(2**63), 2**63)


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
            f"axis must be in [{-x.ndim}, {x.ndim}) for logits of shape {x.shape}, got {class_axis}"
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


def read_targets(targets: npt.ArrayLike, logits: np.ndarray, class_axis: int, ignore_index: int | None) -> np.ndarray:
    """`targets` as class labels, without the class axis, or as distributions, with it, by the shape of the logits."""
    t = _array(targets, "targets")
    leading = shape_without(logits.shape, class_axis)
    if t.shape == leading:
        if t.size == 0 and not isinstance(targets, np.ndarray):
            t = t.astype(np.intp)  # an empty list becomes float64, whatever was meant
        if t.dtype.kind not in "iu":
            raise TypeError(
                f"targets of shape {t.shape} are class labels and must be integers, got dtype {t.dtype}; "
                f"convert them to integers, or pass distributions of shape {logits.shape}"
            )
        _check_labels(t, logits.shape[class_axis], ignore_index)
        return t
    if t.shape == logits.shape:
        if ignore_index is not None:
            raise ValueError(
                f"ignore_index needs class labels of shape {leading}, got distributions of shape {t.shape}; "
                "give rows that do not count a sample_weight of 0"
            )
        if not _is_real(t.dtype):
            raise TypeError(f"targets must be real numbers, got dtype {t.dtype}")
        return t
    raise ValueError(
        f"targets must be class labels of shape {leading} or distributions of shape {logits.shape} "
        f"for logits of shape {logits.shape}, got shape {t.shape}"
    )


def _check_labels(labels: np.ndarray, n_classes: int, ignore_index: int | None) -> None:
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
        f"{_place('targets', index)} = {labels[index]} is not a class: expected 0 <= label < {n_classes}{besides}"
    )


def read_ignore_index(ignore_index: SupportsIndex) -> int:
    try:
        label = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer or None, got {type(ignore_index).__name__}") from None
    if label not in INT64:
        raise ValueError(f"ignore_index must fit into 64 bits, got {label}")
    return label


def read_sample_weight(sample_weight: npt.ArrayLike, leading: tuple[int, ...]) -> np.ndarray:
    """`sample_weight` as an array with one number for each row."""
    w = _array(sample_weight, "sample_weight")
    if not _is_real(w.dtype):
        raise TypeError(f"sample_weight must be real numbers, got dtype {w.dtype}")
    if w.shape != leading:
        raise ValueError(f"sample_weight must have one number for each row, shape {leading}, got shape {w.shape}")
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


def check_normalizer(normalizer: SupportsFloat | None, reduction: str) -> None:
    if normalizer is None:
        return
    if not isinstance(normalizer, SupportsFloat):
        raise TypeError(f"normalizer must be a number or None, got {type(normalizer).__name__}")
    if not 0 <= float(normalizer) < math.inf:
        raise ValueError(f"normalizer must be finite and not negative, got {normalizer}")
    if reduction != "mean":
        raise ValueError(f"normalizer is what reduction='mean' divides by, got it with reduction={reduction!r}")


def check_reduction(reduction: object) -> None:
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
