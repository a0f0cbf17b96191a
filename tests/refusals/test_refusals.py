"""Every wrong argument is refused with a reason, before anything is written."""

import re
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import softxent as sx

pytestmark = pytest.mark.usefixtures("level")

MASKED_LOGITS = np.ma.masked_array(np.zeros((2, 3)), mask=np.eye(2, 3))
STRIDE_0_ROWS = np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8))
STRIDE_0_CLASSES = np.lib.stride_tricks.as_strided(np.zeros(2), (2, 3), (8, 0))
SHARED_ELEMENT = np.lib.stride_tricks.as_strided(np.zeros(5), (2, 3), (16, 8))
READ_ONLY = np.frombuffer(bytes(48)).reshape(2, 3)


def stranger(module: str, **members: Any) -> Any:
    """An object of a class that another library is the home of."""
    return type("Stranger", (), {"__module__": module, **members})()


def refuse_conversion(*_: Any, **__: Any) -> None:
    raise RuntimeError("it is on a device")


# What differs from good arguments for logits of shape (2, 3), the error, and how its message starts.
INPUTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "complex logits": (
        {"logits": np.zeros((2, 3), complex)},
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype complex128",
    ),
    "object logits": (
        {"logits": np.zeros((2, 3), object)},
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype object; "
        "convert them by .astype(np.float64)",
    ),
    "string logits": (
        {"logits": [["a", "b", "c"]] * 2},
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype <U1; "
        "convert them by .astype(np.float64)",
    ),
    "datetime logits": (
        {"logits": np.zeros((2, 3), "M8[s]")},
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype datetime64[s]",
    ),
    "structured logits": (
        {"logits": np.zeros((2, 3), "f4,f4")},
        TypeError,
        "logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype [('f0', '<f4'), ",
    ),
    "missing logits": ({"logits": None}, TypeError, "logits must be an array of numbers, got NoneType"),
    "masked logits": (
        {"logits": MASKED_LOGITS},
        TypeError,
        "logits must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "ragged logits": ({"logits": [[1, 2, 3], [4, 5]]}, ValueError, "logits cannot be read as an array: "),
    "scalar logits": (
        {"logits": 1.5},
        ValueError,
        "logits must have a class axis: expected shape (..., C), got a scalar, 1.5",
    ),
    "no classes": (
        {"logits": np.zeros((2, 0))},
        ValueError,
        "logits must have at least one class: expected C >= 1 along axis 1, got shape (2, 0)",
    ),
    "no classes, one example": (
        {"logits": []},
        ValueError,
        "logits must have at least one class: expected C >= 1 along axis 0, got shape (0,)",
    ),
    "no classes along another axis": (
        {"logits": np.zeros((0, 3)), "axis": -2},
        ValueError,
        "logits must have at least one class: expected C >= 1 along axis 0, got shape (0, 3)",
    ),
    "sample_weight of another shape": (
        {"sample_weight": np.ones(3)},
        ValueError,
        "sample_weight must have one number for each row, shape (2,), got shape (3,)",
    ),
    "complex sample_weight": (
        {"sample_weight": [1, 2j]},
        TypeError,
        "sample_weight must be real numbers, got dtype complex128",
    ),
    "ignore_index that is a float": (
        {"ignore_index": 1.0},
        TypeError,
        "ignore_index must be an integer or None, got float",
    ),
    "ignore_index beyond 64 bits": (
        {"ignore_index": 2**63},
        ValueError,
        "ignore_index must fit into 64 bits, got 9223372036854775808",
    ),
    "ignore_index with distributions": (
        {"targets": np.zeros((2, 3)), "ignore_index": -100},
        ValueError,
        "ignore_index needs class labels of shape (2,), got distributions of shape (2, 3)",
    ),
    "a label that is neither a class nor ignored": (
        {"targets": [-100, -1], "ignore_index": -100},
        ValueError,
        "targets[1] = -1 is not a class: expected 0 <= label < 3 or the ignore_index -100",
    ),
    "normalizer without a mean": (
        {"normalizer": 2, "reduction": "sum"},
        ValueError,
        "normalizer is what reduction='mean' divides by, got it with reduction='sum'",
    ),
    "negative normalizer": (
        {"normalizer": -1.0},
        ValueError,
        "normalizer must be finite and not negative, got -1.0",
    ),
    "normalizer that is no number": (
        {"normalizer": "2"},
        TypeError,
        "normalizer must be a number or None, got str",
    ),
    "axis beyond the last": (
        {"axis": 2},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got 2",
    ),
    "axis before the first": (
        {"axis": -3},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got -3",
    ),
    "NumPy axis beyond the last": (
        {"axis": np.int8(5)},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got 5",
    ),
    "axis beyond int64": (
        {"axis": 2**64},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got 18446744073709551616",
    ),
    "axis beyond int32": (
        {"axis": -(2**31) - 1},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got -2147483649",
    ),
    "axis of one example": (
        {"logits": np.zeros(3), "targets": 1, "axis": 1},
        np.exceptions.AxisError,
        "axis must be in [-1, 1) for logits of shape (3,), got 1",
    ),
    "axis of a list": (
        {"logits": [[1, 2, 3], [4, 5, 6]], "axis": 2},
        np.exceptions.AxisError,
        "axis must be in [-2, 2) for logits of shape (2, 3), got 2",
    ),
    "fractional axis": ({"axis": 1.0}, TypeError, "axis must be an integer, got float"),
    "axis in words": ({"axis": "last"}, TypeError, "axis must be an integer, got str"),
    "no axis": ({"axis": None}, TypeError, "axis must be an integer, got NoneType"),
    "two axes": ({"axis": (0, 1)}, TypeError, "axis must be an integer, got tuple"),
    "labels for another axis": (
        {"axis": 0},
        ValueError,
        "targets must be class labels of shape (3,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape (2,); they are class labels with axis=1",
    ),
    "labels for the last axis": (
        {"logits": np.zeros((2, 3, 4)), "targets": np.zeros((2, 3), int), "axis": 1},
        ValueError,
        "targets must be class labels of shape (2, 4) or distributions of shape (2, 3, 4) "
        "for logits of shape (2, 3, 4), got shape (2, 3); they are class labels with axis=2",
    ),
    "float labels, another axis": (
        {"targets": np.zeros(3), "axis": 0},
        TypeError,
        "targets of shape (3,) are class labels and must be integers, got dtype float64; "
        "they are whole numbers: convert them by .astype(int), or pass distributions of shape (2, 3)",
    ),
    "label too large, another axis": (
        {"targets": np.array([0, 1, 2]), "axis": 0},
        ValueError,
        "targets[2] = 2 is not a class: expected 0 <= label < 2",
    ),
    "label on two axes, classes between": (
        {"logits": np.zeros((2, 3, 4)), "targets": [[0, 1, 2, 0], [1, 0, 3, -1]], "axis": -2},
        ValueError,
        "targets[1, 2] = 3 is not a class: expected 0 <= label < 3",
    ),
    "too many labels": (
        {"targets": np.zeros(4, int)},
        ValueError,
        "targets must be class labels of shape (2,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape (4,)",
    ),
    "a column of labels": (
        {"targets": np.zeros((2, 1), int)},
        ValueError,
        "targets must be class labels of shape (2,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape (2, 1); for a column of labels, pass targets[..., 0]",
    ),
    "transposed distributions": (
        {"targets": np.zeros((3, 2))},
        ValueError,
        "targets must be class labels of shape (2,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape (3, 2)",
    ),
    "a scalar label for a batch": (
        {"targets": 1},
        ValueError,
        "targets must be class labels of shape (2,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape ()",
    ),
    "an axis too many": (
        {"targets": np.zeros((1, 2, 3))},
        ValueError,
        "targets must be class labels of shape (2,) or distributions of shape (2, 3) "
        "for logits of shape (2, 3), got shape (1, 2, 3)",
    ),
    "float labels": (
        {"targets": np.array([0.0, 1.0])},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype float64; "
        "they are whole numbers: convert them by .astype(int), or pass distributions of shape (2, 3)",
    ),
    "bool labels": (
        {"targets": [True, False]},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype bool; "
        "they are whole numbers: convert them by .astype(int), or pass distributions of shape (2, 3)",
    ),
    "object labels": (
        {"targets": np.array([0, 1], object)},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype object; "
        "they are whole numbers: convert them by .astype(int), or pass distributions of shape (2, 3)",
    ),
    "timedelta labels": (
        {"targets": np.zeros(2, "m8[s]")},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype timedelta64[s]; "
        "convert them to integers, or pass distributions of shape (2, 3)",
    ),
    "masked labels": (
        {"targets": np.ma.masked_array([0, 1], mask=[0, 1])},
        TypeError,
        "targets must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "ragged targets": ({"targets": [[1, 2, 3], [4, 5]]}, ValueError, "targets cannot be read as an array: "),
    "complex targets": (
        {"targets": np.zeros((2, 3), complex)},
        TypeError,
        "targets must be real numbers, got dtype complex128",
    ),
    "object targets": (
        {"targets": np.zeros((2, 3), object)},
        TypeError,
        "targets must be real numbers, got dtype object",
    ),
    "string targets": ({"targets": [["a", "b", "c"]] * 2}, TypeError, "targets must be real numbers, got dtype <U1"),
    "datetime targets": (
        {"targets": np.zeros((2, 3), "M8[s]")},
        TypeError,
        "targets must be real numbers, got dtype datetime64[s]",
    ),
    "masked targets": (
        {"targets": MASKED_LOGITS},
        TypeError,
        "targets must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "label too large": (
        {"targets": np.array([0, 3])},
        ValueError,
        "targets[1] = 3 is not a class: expected 0 <= label < 3",
    ),
    "first of several": (
        {"targets": np.array([7, -9])},
        ValueError,
        "targets[0] = 7 is not a class: expected 0 <= label < 3",
    ),
    "negative label": (
        {"targets": np.array([0, -1])},
        ValueError,
        "targets[1] = -1 is not a class: expected 0 <= label < 3; if such rows do not count, pass ignore_index=-1",
    ),
    "negative int8 label": (
        {"targets": np.array([0, -128], np.int8)},
        ValueError,
        "targets[1] = -128 is not a class: expected 0 <= label < 3; if such rows do not count, pass ignore_index=-128",
    ),
    "byte-swapped label": (
        {"targets": np.array([0, 256], ">i4")},
        ValueError,
        "targets[1] = 256 is not a class: expected 0 <= label < 3",
    ),
    "largest uint64": (
        {"targets": np.array([0, 2**64 - 1], np.uint64)},
        ValueError,
        "targets[1] = 18446744073709551615 is not a class: expected 0 <= label < 3",
    ),
    "uint64 beyond int64": (
        {"targets": np.array([2**63, 0], np.uint64)},
        ValueError,
        "targets[0] = 9223372036854775808 is not a class: expected 0 <= label < 3",
    ),
    "least int64": (
        {"targets": np.array([0, -(2**63)])},
        ValueError,
        "targets[1] = -9223372036854775808 is not a class: expected 0 <= label < 3; "
        "if such rows do not count, pass ignore_index=-9223372036854775808",
    ),
    "label of one example": (
        {"logits": np.zeros(3), "targets": 5},
        ValueError,
        "targets = 5 is not a class: expected 0 <= label < 3",
    ),
    "label on two axes": (
        {"logits": np.zeros((2, 3, 4)), "targets": [[0, 1, 2], [3, 0, 4]]},
        ValueError,
        "targets[1, 2] = 4 is not a class: expected 0 <= label < 4",
    ),
    "label on two axes that do not merge": (
        {"logits": np.zeros((2, 3, 4)), "targets": np.array([[0, 1, 2, 9], [3, 0, -4, 9]])[:, :3]},
        ValueError,
        "targets[1, 2] = -4 is not a class: expected 0 <= label < 4; if such rows do not count, pass ignore_index=-4",
    ),
    "int8 labels, many classes": (
        {"logits": np.zeros((2, 300)), "targets": np.array([127, -1], np.int8)},
        ValueError,
        "targets[1] = -1 is not a class: expected 0 <= label < 300; if such rows do not count, pass ignore_index=-1",
    ),
    "unknown reduction": (
        {"reduction": "average"},
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'average'",
    ),
    "no reduction": ({"reduction": None}, ValueError, "reduction must be 'mean', 'sum' or 'none', got None"),
    "no threads": ({"n_threads": 0}, ValueError, "n_threads must be at least 1, got 0"),
    "negative threads": ({"n_threads": -2}, ValueError, "n_threads must be at least 1, got -2"),
    "fractional threads": ({"n_threads": 1.5}, TypeError, "n_threads must be an integer or None, got float"),
    "threads in words": ({"n_threads": "all"}, TypeError, "n_threads must be an integer or None, got str"),
}
OUTPUTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "list as out": ({"out": [[0.0] * 3] * 2}, TypeError, "out must be a plain NumPy array, got list"),
    "masked out": ({"out": MASKED_LOGITS.copy()}, TypeError, "out must be a plain NumPy array, got MaskedArray"),
    "integer out": (
        {"out": np.zeros((2, 3), np.int64)},
        TypeError,
        "out must be float16, bfloat16, float32 or float64, got dtype int64",
    ),
    "complex out": (
        {"out": np.zeros((2, 3), complex)},
        TypeError,
        "out must be float16, bfloat16, float32 or float64, got dtype complex128",
    ),
    "object out": (
        {"out": np.zeros((2, 3), object)},
        TypeError,
        "out must be float16, bfloat16, float32 or float64, got dtype object",
    ),
    "small out": (
        {"out": np.zeros((2, 2))},
        ValueError,
        "out must have the shape of the logits, (2, 3), got (2, 2)",
    ),
    "flat out": ({"out": np.zeros(6)}, ValueError, "out must have the shape of the logits, (2, 3), got (6,)"),
    "out with an axis more": (
        {"out": np.zeros((1, 2, 3))},
        ValueError,
        "out must have the shape of the logits, (2, 3), got (1, 2, 3)",
    ),
    "read-only out": ({"out": READ_ONLY}, ValueError, "out must be writeable, got a read-only array"),
    "read-only logits as out": (
        {"logits": READ_ONLY, "out": READ_ONLY},
        ValueError,
        "out must be writeable, got a read-only array",
    ),
    "one row for all in out": (
        {"out": STRIDE_0_ROWS},
        ValueError,
        "out must not overlap itself, got strides (0, 8) for shape (2, 3)",
    ),
    "one row for all in place": (
        {"logits": STRIDE_0_ROWS, "out": STRIDE_0_ROWS},
        ValueError,
        "out must not overlap itself, got strides (0, 8) for shape (2, 3)",
    ),
    "one class for all in out": (
        {"out": STRIDE_0_CLASSES},
        ValueError,
        "out must not overlap itself, got strides (8, 0) for shape (2, 3)",
    ),
    "rows of out that share an element": (
        {"out": SHARED_ELEMENT},
        ValueError,
        "out must not overlap itself, got strides (16, 8) for shape (2, 3)",
    ),
}
if np.dtype(np.longdouble).itemsize > 8:  # elsewhere it is another name for double
    LONG = np.zeros((2, 3), np.longdouble)
    INPUTS |= {
        "longdouble logits": (
            {"logits": LONG},
            TypeError,
            f"logits must be float16, bfloat16, float32 or float64, integers or bool, got dtype {LONG.dtype}; "
            "convert them by .astype(np.float64)",
        ),
    }
    OUTPUTS |= {
        "longdouble out": (
            {"out": LONG},
            TypeError,
            f"out must be float16, bfloat16, float32 or float64, got dtype {LONG.dtype}",
        ),
    }


Topk = namedtuple("Topk", ["values", "indices"])

INDICES, PROBS = np.array([[0, 1], [1, 2]]), np.array([[0.5, 0.5], [0.3, 0.7]])
A_PAIR = (
    "targets as a pair must be a tuple (indices, probs) of two NumPy arrays, integers and real numbers, "
    "got {}; pass (np.asarray(indices), np.asarray(probs))"
)
NO_PAIR = (
    "targets must be class labels of shape (2,) or distributions of shape (2, 3) for logits of shape (2, 3), "
    "got shape (2, 2); in a pair (indices, probs) both arrays have one axis more, at the end"
)
# What is nearly right, and what to do instead: the whole message.
NEARLY: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a label that often means ignored": (
        {"targets": [0, -100]},
        ValueError,
        "targets[1] = -100 is not a class: expected 0 <= label < 3; if such rows do not count, pass ignore_index=-100",
    ),
    "such a label in a row of weight 0": (
        {"targets": [0, -1], "sample_weight": [1, 0]},
        ValueError,
        "targets[1] = -1 is not a class: expected 0 <= label < 3; if such rows do not count, pass ignore_index=-1",
    ),
    "such an index in a pair": (
        {"targets": (INDICES - 1, PROBS)},
        ValueError,
        "targets[0][0, 0] = -1 is not a class: expected 0 <= label < 3",
    ),
    "images without axis=1": (
        {"logits": np.zeros((2, 21, 8, 8)), "targets": np.zeros((2, 8, 8), int)},
        ValueError,
        "targets must be class labels of shape (2, 21, 8) or distributions of shape (2, 21, 8, 8) "
        "for logits of shape (2, 21, 8, 8), got shape (2, 8, 8); they are class labels with axis=1",
    ),
    "labels that fit two axes": (
        {"logits": np.zeros((3, 3, 4)), "targets": np.zeros((3, 4), int)},
        ValueError,
        "targets must be class labels of shape (3, 3) or distributions of shape (3, 3, 4) "
        "for logits of shape (3, 3, 4), got shape (3, 4); they are class labels with axis=0 or axis=1",
    ),
    "labels first": (
        {"logits": np.array([2, 0]), "targets": np.zeros((2, 3))},
        ValueError,
        "targets must be class labels of shape () or distributions of shape (2,) for logits of shape (2,), "
        "got shape (2, 3); logits come first, then targets: these look swapped",
    ),
    "a pair of lists": (
        {"targets": (INDICES.tolist(), PROBS.tolist())},
        TypeError,
        A_PAIR.format("tuple of list of int64 and list of float64"),
    ),
    "a list of two arrays": (
        {"targets": [INDICES.astype(np.int32), PROBS]},
        TypeError,
        A_PAIR.format("list of ndarray of int32 and ndarray of float64"),
    ),
    "a pair of tensors": (
        {
            "targets": (
                stranger("torch", __array__=lambda *_, **__: INDICES.astype(np.int8)),
                stranger("torch", __array__=lambda *_, **__: PROBS),
            )
        },
        TypeError,
        A_PAIR.format("tuple of Stranger of int8 and Stranger of float64"),
    ),
    "values and indices": (
        {"targets": Topk(PROBS, INDICES.astype(np.int16))},
        TypeError,
        A_PAIR.format("Topk of ndarray of float64 and ndarray of int16").partition(";")[0] + "; swap the two",
    ),
    "probs and indices": (
        {"targets": (PROBS, INDICES.astype(np.uint8))},
        TypeError,
        A_PAIR.format("tuple of ndarray of float64 and ndarray of uint8").partition(";")[0] + "; swap the two",
    ),
    "indices that are floats": (
        {"targets": (PROBS, PROBS)},
        TypeError,
        A_PAIR.format("tuple of ndarray of float64 and ndarray of float64").partition(";")[0]
        + "; convert the indices by .astype(int)",
    ),
    "a pair without an axis for its entries": ({"targets": (INDICES[:, 0], PROBS[:, 0])}, ValueError, NO_PAIR),
    "such a pair of lists": ({"targets": [[0, 1], [0.5, 1.0]]}, ValueError, NO_PAIR),
    "float labels that are not whole": (
        {"targets": [0.5, 1]},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype float64; "
        "convert them to integers, or pass distributions of shape (2, 3)",
    ),
    "float labels with NaN": (
        {"targets": np.array([np.nan, 1], "float32")},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype float32; "
        "convert them to integers, or pass distributions of shape (2, 3)",
    ),
    "names of classes": (
        {"targets": ["a", "b"]},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype <U1; "
        "number the classes by np.unique(targets, return_inverse=True)[1], or pass distributions of shape (2, 3)",
    ),
    "names of classes as objects": (
        {"targets": np.array(["a", "b"], object)},
        TypeError,
        "targets of shape (2,) are class labels and must be integers, got dtype object; "
        "convert them to integers, or pass distributions of shape (2, 3)",
    ),
    "no targets": ({"targets": None}, TypeError, "targets must be an array of numbers, got NoneType"),
    "weight of rows": (
        {"weight": np.ones(2)},
        ValueError,
        "weight must have one number for each class, shape (3,), got shape (2,); sample_weight has one for each row",
    ),
    "sample_weight of classes": (
        {"sample_weight": np.ones(3)},
        ValueError,
        "sample_weight must have one number for each row, shape (2,), got shape (3,); weight has one for each class",
    ),
    "where of rows": (
        {"where": np.array([True, False])},
        ValueError,
        "where must be of shape (3,), or (2, 3) as the logits, got shape (2,); "
        "to leave out rows, give them a sample_weight of 0",
    ),
    "a misspelt option": (
        {"label_smooth": 0.1},
        TypeError,
        "got an unexpected keyword argument 'label_smooth'; did you mean 'label_smoothing'?",
    ),
    "a misspelt parameter": (
        {"n_thread": 1},
        TypeError,
        "got an unexpected keyword argument 'n_thread'; did you mean 'n_threads'?",
    ),
    "an unknown option": ({"dim": 1}, TypeError, "got an unexpected keyword argument 'dim'"),
}
NAMES = ("logits", "targets", "weight", "sample_weight", "where")
# What np.asarray would take without a word, or refuse without a name.
STRANGERS: dict[str, tuple[Any, str]] = {
    "masked array": (
        np.ma.masked_array(np.zeros((2, 3)), mask=np.eye(2, 3)),
        "{} must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "list of masked rows": (
        [np.zeros(3), np.ma.masked_array(np.zeros(3), [0, 1, 0]), np.zeros(3)],
        "{} must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "masked element": (
        [(0, 1, 2), [0, 1, np.ma.masked], [0, 1, 2]],
        "{} must not be a masked array: the mask would be ignored; fill it, or leave rows out",
    ),
    "Dask": (
        stranger("dask.array.core", __array__=lambda *_, **__: pytest.fail("loaded")),
        "{0} must be in memory, got a Dask Stranger, which would be loaded whole; "
        "softxent.dask has the functions for Dask arrays, or pass {0}.compute()",
    ),
    "SciPy": (
        stranger("scipy.sparse._csr", toarray=lambda _: None),
        "{0} must be dense, got a SciPy Stranger; pass {0}.toarray()",
    ),
    "torch": (
        stranger("torch", requires_grad=True, __array__=lambda *_, **__: np.zeros((2, 3))),
        "{0} must not require grad: softxent takes no part in autograd, and no gradient would reach it; "
        "pass {0}.detach()",
    ),
    "what cannot be converted": (
        stranger("elsewhere", __array__=refuse_conversion),
        "{} cannot be read as an array: it is on a device",
    ),
    "no array": ({1, 2}, "{} must be an array of numbers, got set"),
}


# What differs from good arguments for logits of shape (2, 3), the error, and what its message begins with and contains.
OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "weight of another shape": ({"weight": np.ones(2)}, ValueError, ("weight", "(3,)", "(2,)")),
    "weight of each logit": ({"weight": np.ones((2, 3))}, ValueError, ("weight", "(3,)", "(2, 3)")),
    "one weight": ({"weight": 2.0}, ValueError, ("weight", "(3,)", "()")),
    "complex weight": ({"weight": [1, 2j, 3]}, TypeError, ("weight", "real", "complex128")),
    "object weight": ({"weight": np.array([1, None, 3])}, TypeError, ("weight", "real", "object")),
    "weight in words": ({"weight": ["a", "b", "c"]}, TypeError, ("weight", "real", "<U1")),
    "masked weight": ({"weight": np.ma.masked_array([1, 2, 3], [0, 1, 0])}, TypeError, ("weight", "masked")),
    "ragged weight": ({"weight": [1, [2, 3], 4]}, ValueError, ("weight", "array")),
    "weight along the wrong axis": (
        {"weight": np.ones(3), "axis": 0, "targets": [0, 1, 0]},
        ValueError,
        ("weight", "(2,)", "(3,)"),
    ),
    "negative label_smoothing": ({"label_smoothing": -0.1}, ValueError, ("label_smoothing", "-0.1")),
    "label_smoothing above one": ({"label_smoothing": 1.5}, ValueError, ("label_smoothing", "1", "1.5")),
    "label_smoothing of NaN": ({"label_smoothing": np.nan}, ValueError, ("label_smoothing", "nan")),
    "label_smoothing in words": ({"label_smoothing": "0.1"}, TypeError, ("label_smoothing", "number", "str")),
    "no label_smoothing": ({"label_smoothing": None}, TypeError, ("label_smoothing", "number", "NoneType")),
    "a list of label_smoothings in an object": (
        {"label_smoothing": stranger("pandas", __float__=lambda _: float("several"))},
        TypeError,
        ("label_smoothing", "number", "Stranger"),
    ),
    "several label_smoothings": ({"label_smoothing": np.zeros(2)}, TypeError, ("label_smoothing", "number", "ndarray")),
    "complex label_smoothing": ({"label_smoothing": 0.1j}, TypeError, ("label_smoothing", "number", "complex")),
    "temperature of zero": ({"temperature": 0}, ValueError, ("temperature", "positive", "0")),
    "negative temperature": ({"temperature": -1.5}, ValueError, ("temperature", "-1.5")),
    "infinite temperature": ({"temperature": np.inf}, ValueError, ("temperature", "finite", "inf")),
    "temperature of NaN": ({"temperature": np.nan}, ValueError, ("temperature", "nan")),
    "temperature in words": ({"temperature": "hot"}, TypeError, ("temperature", "number", "str")),
    "no temperature": ({"temperature": None}, TypeError, ("temperature", "number", "NoneType")),
    "several temperatures": ({"temperature": [1.0, 2.0]}, TypeError, ("temperature", "number", "list")),
    "softcap of zero": ({"softcap": 0.0}, ValueError, ("softcap", "positive", "0.0")),
    "negative softcap": ({"softcap": -30}, ValueError, ("softcap", "-30")),
    "infinite softcap": ({"softcap": np.inf}, ValueError, ("softcap", "finite", "inf")),
    "softcap of NaN": ({"softcap": np.nan}, ValueError, ("softcap", "nan")),
    "softcap in words": ({"softcap": "30"}, TypeError, ("softcap", "number", "None", "str")),
    "several softcaps": ({"softcap": np.ones(3)}, TypeError, ("softcap", "number", "ndarray")),
    "negative z_loss": ({"z_loss": -1e-4}, ValueError, ("z_loss", "-0.0001")),
    "infinite z_loss": ({"z_loss": np.inf}, ValueError, ("z_loss", "finite", "inf")),
    "z_loss of NaN": ({"z_loss": np.nan}, ValueError, ("z_loss", "nan")),
    "z_loss in words": ({"z_loss": "1e-4"}, TypeError, ("z_loss", "number", "str")),
    "no z_loss": ({"z_loss": None}, TypeError, ("z_loss", "number", "NoneType")),
    "where of another shape": ({"where": np.ones(2, bool)}, ValueError, ("where", "(3,)", "(2, 3)", "(2,)")),
    "where that would broadcast": ({"where": np.ones((1, 3), bool)}, ValueError, ("where", "(2, 3)", "(1, 3)")),
    "where of the rows": ({"where": np.ones((2, 1), bool)}, ValueError, ("where", "(2, 3)", "(2, 1)")),
    "where for all": ({"where": True}, ValueError, ("where", "(3,)", "()")),
    "where of integers": ({"where": [1, 0, 1]}, TypeError, ("where", "bool", "int64")),
    "where of floats": ({"where": np.ones((2, 3))}, TypeError, ("where", "bool", "float64")),
    "where of objects": ({"where": np.array([True, None, False])}, TypeError, ("where", "bool", "object")),
    "masked where": ({"where": np.ma.masked_array([True] * 3, [0, 1, 0])}, TypeError, ("where", "masked")),
    "a pair without indices": (
        {"targets": (np.zeros((2, 1)), np.ones((2, 1)))},
        TypeError,
        ("targets", "indices", "astype(int)"),
    ),
    "a pair of complex probs": (
        {"targets": (np.zeros((2, 1), int), np.ones((2, 1), complex))},
        TypeError,
        ("targets", "real numbers", "complex128"),
    ),
    "a pair of two lengths": (
        {"targets": (np.zeros((2, 1), int), np.ones((2, 2)))},
        ValueError,
        ("targets", "(2, 1)", "(2, 2)"),
    ),
    "a pair of other rows": (
        {"targets": (np.zeros((3, 1), int), np.ones((3, 1)))},
        ValueError,
        ("targets", "(2,)", "(3, 1)"),
    ),
    "a pair for another axis": (
        {"targets": (np.zeros((2, 2), int), np.ones((2, 2))), "axis": 0},
        ValueError,
        ("targets", "(3,)", "(2, 2)"),
    ),
    "three arrays": ({"targets": (np.zeros((2, 1), int), np.ones((2, 1)), np.ones((2, 1)))}, ValueError, ("targets",)),
    "an index that is no class": (
        {"targets": (np.array([[0, 1], [2, 3]]), np.ones((2, 2)))},
        ValueError,
        ("targets", "[1, 1]", "3", "0 <= ", "< 3"),
    ),
    "a negative index": (
        {"targets": (np.array([[0, 1], [-1, 0]], np.int8), np.zeros((2, 2)))},
        ValueError,
        ("targets", "[1, 0]", "-1", "0 <= ", "< 3"),
    ),
    "an index beyond int64": (
        {"targets": (np.array([[2**64 - 1], [0]], np.uint64), np.zeros((2, 1)))},
        ValueError,
        ("targets", "[0, 0]", str(2**64 - 1), "< 3"),
    ),
    "ignore_index with a pair": (
        {"targets": (np.zeros((2, 1), int), np.ones((2, 1))), "ignore_index": 0},
        ValueError,
        ("ignore_index", "labels", "pair"),
    ),
    "masked indices": (
        {"targets": (np.ma.masked_array([[0], [1]], [[0], [1]]), np.ones((2, 1)))},
        TypeError,
        ("targets", "masked"),
    ),
    "masked probs": (
        {"targets": (np.zeros((2, 1), int), np.ma.masked_array(np.ones((2, 1)), [[0], [1]]))},
        TypeError,
        ("targets", "masked"),
    ),
}


def arguments(changes: dict[str, Any]) -> dict[str, Any]:
    return {"logits": np.arange(6.0).reshape(2, 3), "targets": np.array([2, 0]), **changes}


def array_bytes(values: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in values.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("case", INPUTS)
def test_loss_alone(case: str) -> None:
    changes, error, message = INPUTS[case]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        sx.cross_entropy(**arguments(changes))


@pytest.mark.parametrize("case", [*INPUTS, *OUTPUTS])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_written(case: str, reduction: str) -> None:
    changes, error, message = (INPUTS | OUTPUTS)[case]
    values = arguments({"reduction": reduction, **changes})
    values.setdefault("out", np.full((2, 3), 7.0))
    before = array_bytes(values)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        sx.value_and_grad(**values)
    assert array_bytes(values) == before


@pytest.mark.parametrize("case", NEARLY)
def test_what_to_do_instead(case: str) -> None:
    changes, error, message = NEARLY[case]
    values = arguments(changes)
    out = np.full(np.shape(values["logits"]), 7.0)
    for function, more in ((sx.cross_entropy, {}), (sx.value_and_grad, {"out": out}), (sx.evaluate, {})):
        if case == "no targets" and function is sx.evaluate:
            continue  # which needs none
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            function(**values, **more)
    np.testing.assert_array_equal(out, 7)


@pytest.mark.parametrize("case", STRANGERS)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_other_libraries(name: str, case: str) -> None:
    value, message = STRANGERS[case]
    out = np.full((2, 3), 7.0)
    for function, more in ((sx.cross_entropy, {}), (sx.value_and_grad, {"out": out}), (sx.evaluate, {})):
        with pytest.raises(TypeError, match=f"^{re.escape(message.format(name))}$"):
            function(**arguments({name: value}), **more)
    np.testing.assert_array_equal(out, 7)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", ">f8"])
def test_options(dtype: str, case: str) -> None:
    """Whether a kernel could take the other arguments as they are or not."""
    changes, error, words = OPTIONS[case]
    values = arguments({"logits": np.arange(6, dtype=dtype).reshape(2, 3), **changes})
    out = np.full((2, 3), 7.0)
    for function, more in ((sx.cross_entropy, {}), (sx.value_and_grad, {"out": out}), (sx.evaluate, {})):
        with pytest.raises(error) as refusal:
            function(**values, **more)
        message = str(refusal.value)
        assert message.startswith(words[0])
        assert all(word in message for word in words)
    np.testing.assert_array_equal(out, 7)


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [1e39, 1e-40])
@pytest.mark.parametrize("n_rows", [2, 20])
def test_numbers_beyond_the_dtype_computed_in(n_rows: int, value: float, name: str) -> None:
    labels = np.zeros(n_rows, int)
    assert np.isfinite(sx.cross_entropy(np.zeros((n_rows, 3)), labels, **{name: value}))
    with pytest.raises(ValueError, match=f"^{name} .*float64"):
        sx.cross_entropy(np.zeros((n_rows, 3)), labels, **{name: 1e-310})
    for dtype in ("float16", "float32"):
        with pytest.raises(ValueError, match=f"^{name} .*float32"):
            sx.cross_entropy(np.zeros((n_rows, 3), dtype), labels, **{name: value})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n_rows", [1, 10, 5000])
def test_a_bad_last_index_leaves_the_logits_in_place(n_rows: int, dtype: str) -> None:
    logits = np.ones((n_rows, 10), dtype)
    pair = np.zeros((n_rows, 2), int), np.ones((n_rows, 2), dtype)
    pair[0][-1, 1] = 10
    with pytest.raises(ValueError, match=re.escape(f"[{n_rows - 1}, 1] = 10 is not a class")):
        sx.value_and_grad(logits, pair, out=logits)
    np.testing.assert_array_equal(logits, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("n_rows", [1, 10, 5000])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_bad_last_label_leaves_the_logits_in_place(axis: int, n_rows: int, dtype: str) -> None:
    logits = np.ones((n_rows, 10) if axis else (10, n_rows), dtype)
    labels = np.zeros(n_rows, int)
    labels[-1] = 10
    with pytest.raises(ValueError, match=re.escape(f"targets[{n_rows - 1}] = 10 is not a class")):
        sx.value_and_grad(logits, labels, axis=axis, out=logits)
    np.testing.assert_array_equal(logits, 1)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "n_threads must be at least 1, got 0"),
        (-1, ValueError, "n_threads must be at least 1, got -1"),
        (2.0, TypeError, "n_threads must be an integer or None, got float"),
        ("2", TypeError, "n_threads must be an integer or None, got str"),
    ],
)
def test_a_bad_thread_setting_changes_nothing(value: Any, error: type[Exception], message: str) -> None:
    before = sx.get_num_threads()
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        sx.set_num_threads(value)
    assert sx.get_num_threads() == before


@pytest.mark.parametrize("name", ["temperature", "label_smoothing", "ignore_index", "axis", "n_threads"])
def test_integers_that_python_does_not_write(name: str) -> None:
    """It refuses to from 4300 digits on, with a ValueError that names nothing."""
    value = -(10**5000) if name == "n_threads" else 10**5000
    with pytest.raises(ValueError, match=f"^{name} must .* got an int of very many digits$"):
        sx.cross_entropy(np.zeros((2, 3)), [0, 1], **{name: value})


@pytest.mark.parametrize("n_classes", [2**56, 2**60, 2**62])
def test_more_classes_than_memory(n_classes: int) -> None:
    logits = np.broadcast_to(np.int8(0), (n_classes,))
    with pytest.raises((MemoryError, ValueError)):
        sx.cross_entropy(logits, 0)
