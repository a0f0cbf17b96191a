"""What arrays are accepted: the one place that reads logits, targets and out, and says what is wrong with them.

Nothing here writes to an array of the caller's. What comes out is plain ndarrays that the kernels take as they are:
any strides, alignment and byte order, of the dtypes below.
"""

import operator
from contextlib import suppress
from typing import Any, SupportsIndex, TypeGuard

import numpy as np
import numpy.typing as npt

from softxent.call._call import may_overlap_itself

FLOATS = "float16, bfloat16, float32 or float64"

Pair = tuple[np.ndarray, np.ndarray]  # classes, and what the target gives to each


def is_float(dtype: np.dtype) -> bool:
    # bfloat16 is known by the name that ml_dtypes gives it, so that ml_dtypes need not be there.
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or dtype.name == "bfloat16"


def is_real(dtype: np.dtype) -> bool:
    return dtype.kind in "iub" or is_float(dtype) or dtype.type is np.longdouble


def read_array(value: Any, name: str) -> np.ndarray:
    """`value` as an ndarray, unless the conversion would lose something or load what is not in memory."""
    if type(value) is np.ndarray:
        return value
    if _has_mask(value):
        raise TypeError(f"{name} must not be a masked array: the mask would be ignored; fill it, or leave rows out")
    libraries = {str(base.__module__).partition(".")[0] for base in type(value).__mro__}
    if "dask" in libraries:
        raise TypeError(
            f"{name} must be in memory, got a Dask {type(value).__name__}, which would be loaded whole; "
            f"softxent.dask has the functions for Dask arrays, or pass {name}.compute()"
        )
    if "scipy" in libraries and hasattr(value, "toarray"):
        raise TypeError(f"{name} must be dense, got a SciPy {type(value).__name__}; pass {name}.toarray()")
    if "torch" in libraries and getattr(value, "requires_grad", False):
        raise TypeError(
            f"{name} must not require grad: softxent takes no part in autograd, and no gradient would reach it; "
            f"pass {name}.detach()"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from None
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from None
    if array.dtype == object and array.ndim == 0:
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
    return array


def _has_mask(value: object) -> bool:
    """Whether it is a masked array, or a list that holds one, a masked element included."""
    if isinstance(value, list | tuple):
        # For a list of numbers this looks at their types only, which is fast.
        return any(
            issubclass(kind, np.ma.MaskedArray)
            or (issubclass(kind, list | tuple) and any(_has_mask(part) for part in value if type(part) is kind))
            for kind in set(map(type, value))
        )
    return isinstance(value, np.ma.MaskedArray)


def taken_as(array: npt.ArrayLike, dtype: npt.DTypeLike) -> np.ndarray:
    """`array` as a kernel takes it, in `dtype`; what that cannot hold becomes infinite or 0, as in a kernel."""
    with np.errstate(all="ignore"):
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


def _axes_to_remove(shape: tuple[int, ...], rest: tuple[int, ...]) -> list[int]:
    """The axes without which `shape` is `rest`."""
    return [axis for axis in range(len(shape)) if shape_without(shape, axis) == rest]


def read_logits(logits: npt.ArrayLike, axis: SupportsIndex, name: str = "logits") -> tuple[np.ndarray, int]:
    """`logits` as an array with at least one class, and their axis, counted from the first."""
    x = read_array(logits, name)
    if not (is_float(x.dtype) or x.dtype.kind in "iub"):
        advice = "; convert them by .astype(np.float64)" if x.dtype.kind in "OSTUf" else ""
        raise TypeError(f"{name} must be {FLOATS}, integers or bool, got dtype {x.dtype}{advice}")
    if x.ndim == 0:
        raise ValueError(f"{name} must have a class axis: expected shape (..., C), got a scalar, {x}")
    try:
        class_axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {type(axis).__name__}") from None
    if not -x.ndim <= class_axis < x.ndim:
        raise np.exceptions.AxisError(
            f"axis must be in [{-x.ndim}, {x.ndim}) for {name} of shape {x.shape}, got {shown(class_axis)}"
        )
    class_axis %= x.ndim
    if x.shape[class_axis] == 0:
        raise ValueError(
            f"{name} must have at least one class: expected C >= 1 along axis {class_axis}, got shape {x.shape}"
        )
    return x, class_axis


def result_dtypes(logits: np.ndarray) -> tuple[np.dtype, np.dtype]:
    """The dtype of the gradient, and the one that rows are computed and their losses returned in."""
    if not is_float(logits.dtype):
        return np.dtype(np.float64), np.dtype(np.float64)
    native = logits.dtype.newbyteorder("=")
    return native, np.dtype(np.float32) if native.itemsize == 2 else native


def _is_pair(targets: Any, logits: np.ndarray) -> TypeGuard[Pair]:
    """Whether targets are classes and amounts: a tuple that means something else has arrays of fewer axes."""
    return (
        type(targets) is tuple
        and len(targets) == 2
        and all(isinstance(part, np.ndarray) and part.ndim == logits.ndim for part in targets)
        and targets[0].dtype.kind in "iu"
        and is_real(targets[1].dtype)
    )


def read_targets(
    targets: npt.ArrayLike | Pair, logits: np.ndarray, class_axis: int, ignore_index: int | None, dtype: np.dtype
) -> np.ndarray | Pair:
    """Class labels, without the class axis, distributions, with it, or a pair of classes and amounts of `dtype`."""
    leading, n_classes = shape_without(logits.shape, class_axis), logits.shape[class_axis]
    if _is_pair(targets, logits):
        _refuse_ignore_index(ignore_index, leading, "a pair of indices and probs")
        return _read_pair(targets, leading, n_classes, dtype)
    if isinstance(targets, list | tuple) and len(targets) == 2:
        _refuse_pair_of_others(targets, leading)
    t = read_array(targets, "targets")
    if t.shape == leading:
        if t.size == 0 and not isinstance(targets, np.ndarray):
            t = t.astype(np.intp)  # an empty list becomes float64, whatever was meant
        if t.dtype.kind not in "iu":
            raise TypeError(
                f"targets of shape {t.shape} are class labels and must be integers, got dtype {t.dtype}; "
                f"{_how_to_make_labels(t)}, or pass distributions of shape {logits.shape}"
            )
        _check_labels(t, "targets", n_classes, ignore_index)
        return t
    if t.shape == logits.shape:
        _refuse_ignore_index(ignore_index, leading, f"distributions of shape {t.shape}")
        if not is_real(t.dtype):
            raise TypeError(f"targets must be real numbers, got dtype {t.dtype}")
        return t
    raise ValueError(
        f"targets must be class labels of shape {leading} or distributions of shape {logits.shape} "
        f"for logits of shape {logits.shape}, got shape {t.shape}{_advice_on_shape(t.shape, logits.shape, leading)}"
    )


def _advice_on_shape(shape: tuple[int, ...], logits_shape: tuple[int, ...], leading: tuple[int, ...]) -> str:
    """What to do with targets of a shape that fits neither labels nor distributions, if that can be guessed."""
    if shape == (*leading, 1):
        return "; for a column of labels, pass targets[..., 0]"
    if axes := _axes_to_remove(logits_shape, shape):
        return f"; they are class labels with {' or '.join(f'axis={axis}' for axis in axes)}"
    if _axes_to_remove(shape, logits_shape):
        return "; logits come first, then targets: these look swapped"
    if shape == (2, *leading):
        return "; in a pair (indices, probs) both arrays have one axis more, at the end"
    return ""


def _refuse_pair_of_others(targets: Any, leading: tuple[int, ...]) -> None:
    """Refuse two things that have the shapes of a pair: they are too deep for anything else."""
    indices, probs = (read_array(part, f"targets[{i}]") for i, part in enumerate(targets))
    if not all(part.ndim == len(leading) + 1 and part.shape[:-1] == leading for part in (indices, probs)):
        return
    kinds = (f"{type(part).__name__} of {array.dtype}" for part, array in zip(targets, (indices, probs), strict=True))
    advice = "pass (np.asarray(indices), np.asarray(probs))"
    if indices.dtype.kind not in "iu":
        advice = "swap the two" if probs.dtype.kind in "iu" else "convert the indices by .astype(int)"
    raise TypeError(
        "targets as a pair must be a tuple (indices, probs) of two NumPy arrays, integers and real numbers, "
        f"got {type(targets).__name__} of {' and '.join(kinds)}; {advice}"
    )


def _how_to_make_labels(t: np.ndarray) -> str:
    """What to do with labels that are not integers."""
    if t.dtype.kind in "SUT":
        return "number the classes by np.unique(targets, return_inverse=True)[1]"
    if is_real(t.dtype) or t.dtype == object:
        with np.errstate(all="ignore"), suppress(TypeError, ValueError, OverflowError):
            if (t == t.astype(np.int64)).all():
                return "they are whole numbers: convert them by .astype(int)"
    return "convert them to integers"


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
    classes, amounts = read_array(pair[0], "targets[0]"), read_array(pair[1], "targets[1]")
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
    if ignore_index is None and labels[index] < 0 and name == "targets":
        besides = f"; if such rows do not count, pass ignore_index={labels[index]}"
    raise ValueError(
        f"{_place(name, index)} = {labels[index]} is not a class: expected 0 <= label < {n_classes}{besides}"
    )


def read_vectors(value: npt.ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array with a number for each logit."""
    vectors = read_array(value, name)
    if not is_real(vectors.dtype):
        raise TypeError(f"{name} must be real numbers, got dtype {vectors.dtype}")
    if vectors.shape != shape:
        raise ValueError(f"{name} must have the shape of the logits, {shape}, got {vectors.shape}")
    return vectors


def read_out(out: object, shape: tuple[int, ...], name: str = "out", of: str = "the logits") -> np.ndarray:
    """`out` as a plain array that a result can be written to; `of` is what has that shape."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain NumPy array, got {type(out).__name__}")
    plain = np.asarray(out)  # a subclass may say anything of itself
    if not is_float(plain.dtype):
        raise TypeError(f"{name} must be {FLOATS}, got dtype {plain.dtype}")
    if plain.shape != shape:
        raise ValueError(f"{name} must have the shape of {of}, {shape}, got {plain.shape}")
    if not plain.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if plain.size and may_overlap_itself(plain):
        raise ValueError(f"{name} must not overlap itself, got strides {plain.strides} for shape {shape}")
    return plain
