"""The interface for compiled code: the bits of the Python calls, errors by code, and declarations that stay."""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FLOATS, ROOT, assert_same_results, problem

import softxent as sx
from softxent import _c_api, _dispatch

HEADER = Path(sx.get_include(), "softxent.h")
CODES = {
    name: int(number)
    for name, number in re.findall(
        r"^\s*(?:#define )?(?:enum \{ )?(SOFTXENT_\w+) (?:= )?(\d+)", HEADER.read_text(), re.M
    )
}
RESULTS = ("loss", "gradient", "hessian", "softmax", "log_softmax", "logsumexp")
LOSS, GRADIENT, HESSIAN, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = range(6)
MEAN, SUM, NORMALIZED = range(3)
(OK, BAD_CALL, NULL_POINTER, NOT_NEEDED, BAD_SHAPE, BAD_LABEL, BAD_OPTION, OVERLAP, BAD_SCRATCH) = range(9)


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row_stride", ctypes.c_ssize_t), ("class_stride", ctypes.c_ssize_t))


class Call(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("dtype", "result", "reduction", "n_threads")),
        *((name, ctypes.c_ssize_t) for name in ("n_rows", "n_classes")),
        ("logits", Array),
        ("labels", ctypes.c_void_p),
        *((name, Array) for name in ("distributions", "grad", "hess")),
        ("losses", ctypes.c_void_p),
        ("has_ignored", ctypes.c_int),
        ("ignored", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("normalizer", "temperature", "softcap", "label_smoothing", "z_loss")),
    )
    kept: Any


class Api(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("level", ctypes.c_char_p),
        (
            "run",
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Call), *[ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]),
        ),
        ("scratch_size", ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.POINTER(Call))),
        ("error_text", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
    )


def table(capsule: object) -> Api:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    return Api.from_address(pointer(capsule, b"softxent._C_API"))


@pytest.fixture
def api(level: str) -> Iterator[Api]:
    """The functions at each level."""
    yield table(_dispatch.load(level).offer(level))
    _dispatch.active.offer(_dispatch.level)


def as_array(array: np.ndarray) -> Array:
    return Array(array.ctypes.data, *array.strides)


def call_for(x: np.ndarray, **fields: Any) -> Call:
    """A call for logits (rows, classes); arrays among the fields become pointers, or pointers with strides."""
    call = Call(
        size=ctypes.sizeof(Call), dtype=FLOATS.index(x.dtype.name), n_rows=x.shape[0], n_classes=x.shape[1],
        logits=as_array(x), n_threads=1, normalizer=1, temperature=1,
    )  # fmt: skip
    call.kept = x, fields  # a pointer keeps no array
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            value = value.ctypes.data if name in ("labels", "losses") else as_array(value)
        setattr(call, name, value)
    return call


def run(api: Api, call: Call) -> tuple[int, float]:
    size = api.scratch_size(call)
    scratch = ctypes.create_string_buffer(max(size, 0) + 1)
    loss = ctypes.c_double(-7)
    status = api.run(call, ctypes.addressof(scratch), max(size, 0), ctypes.addressof(loss))
    assert size >= 0 or status == -size
    assert scratch.raw[max(size, 0)] == 0  # the byte after it
    return status, loss.value


def spread_out(array: np.ndarray) -> np.ndarray:
    """A copy whose rows are apart and go backwards, and whose classes are apart."""
    wide = np.zeros((2 * array.shape[0], 3 * array.shape[1]), array.dtype)[::-2, ::3]
    wide[...] = array
    return wide


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at an odd address."""
    copied = np.ndarray(array.shape, array.dtype, bytearray(array.nbytes + 1), 1)
    copied[...] = array
    return copied


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 10), (40, 3), (5, 700), (2, 70001)])
@pytest.mark.parametrize("place", [np.array, spread_out, np.asfortranarray, unaligned])
def test_every_result_has_the_bits_of_the_python_call(
    api: Api, level: str, dtype: str, shape: tuple[int, int], place: Callable[[np.ndarray], np.ndarray]
) -> None:
    x, labels = problem(shape, dtype=dtype)
    soft = problem(shape, "soft", dtype)[1]
    logits, losses = place(x), np.empty(shape[0], dtype)
    grad, hess = place(np.zeros_like(x)), place(np.zeros_like(x))
    for targets, n_threads in itertools.product(({"labels": labels}, {"distributions": place(soft)}), (1, 2)):
        t = next(iter(targets.values()))
        fields = {**targets, "losses": losses, "n_threads": n_threads}
        status, loss = run(api, call_for(logits, **fields))
        assert_same_results(
            (status, loss, losses), (OK, sx.cross_entropy(x, t), sx.cross_entropy(x, t, reduction="none"))
        )
        expected = sx.value_and_grad(x, t, reduction="sum")
        status, loss = run(api, call_for(logits, result=GRADIENT, reduction=SUM, grad=grad, **fields))
        assert_same_results((status, loss, grad), (OK, *expected))
        status, loss = run(api, call_for(logits, result=HESSIAN, grad=grad, hess=hess, **fields))
        assert_same_results((status, loss, grad, hess), (OK, *sx.value_grad_and_hess(x, t)))
    assert run(api, call_for(logits, result=SOFTMAX, grad=grad)) == (OK, 0)
    assert run(api, call_for(logits, result=LOG_SOFTMAX, grad=hess)) == (OK, 0)
    assert run(api, call_for(logits, result=LOGSUMEXP, losses=losses)) == (OK, 0)
    assert_same_results((grad, hess, losses), (sx.softmax(x), sx.log_softmax(x), sx.logsumexp(x)))


@pytest.mark.parametrize("shape", [(30, 5), (3, 900), (70, 300)])
def test_options_are_those_of_the_python_call(api: Api, level: str, shape: tuple[int, int]) -> None:
    x, labels = problem(shape)
    labels[1] = -100
    for option, field in (
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"softcap": 4.0}, {"softcap": 4.0}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ({"z_loss": 0.02}, {"z_loss": 0.02}),
        ({"normalizer": 37.5}, {"reduction": NORMALIZED, "normalizer": 37.5}),
        ({"normalizer": 0.0}, {"reduction": NORMALIZED, "normalizer": 0.0}),
    ):
        grad = np.empty_like(x)
        expected = sx.value_and_grad(x, labels, ignore_index=-100, **option)  # type: ignore[call-overload]
        status, loss = run(
            api, call_for(x, result=GRADIENT, labels=labels, grad=grad, has_ignored=1, ignored=-100, **field)
        )
        assert_same_results((status, loss, grad), (OK, *expected))
    losses = np.empty(shape[0], x.dtype)
    for option in ({"temperature": 0.7}, {"softcap": 4.0}):
        status, loss = run(api, call_for(x, labels=labels, losses=losses, has_ignored=1, ignored=-100, **option))
        assert_same_results(
            (status, loss, losses),
            (OK, *(sx.cross_entropy(x, labels, ignore_index=-100, reduction=r, **option) for r in ("mean", "none"))),
        )
        assert run(api, call_for(x, result=SOFTMAX, grad=grad, **option)) == (OK, 0)
        assert_same_results((grad,), (sx.softmax(x, **option),))


def test_gradient_and_hessian_may_take_the_place_of_the_logits(api: Api, level: str) -> None:
    for shape in ((40, 3), (5, 700)):
        x, labels = problem(shape)
        loss, grad, hess = sx.value_grad_and_hess(x, labels)
        in_place, other = x.copy(), np.empty_like(x)
        assert run(api, call_for(in_place, result=GRADIENT, labels=labels, grad=in_place)) == (OK, loss)
        assert_same_results([in_place], [grad])
        in_place = x.copy()
        assert run(api, call_for(in_place, result=HESSIAN, labels=labels, grad=other, hess=in_place)) == (OK, loss)
        assert_same_results([other, in_place], [grad, hess])


def test_no_rows(api: Api, level: str) -> None:
    call = call_for(np.empty((0, 3)))
    call.logits = Array()
    assert run(api, call) == (OK, 0)


X, LABELS, GRAD = np.zeros((4, 6)), np.zeros(4, np.int64), np.empty((4, 6))
SPARE = np.zeros((4, 6))
PLAIN = {"result": GRADIENT, "labels": LABELS, "grad": GRAD}
BAD = {
    "size": (BAD_CALL, {"size": 8}),
    "dtype": (BAD_CALL, {"dtype": 2}),
    "result": (BAD_CALL, {"result": 6}),
    "negative result": (BAD_CALL, {"result": -1}),
    "reduction": (BAD_CALL, {"reduction": 3}),
    "n_threads": (BAD_CALL, {"n_threads": 0}),
    "rows": (BAD_SHAPE, {"n_rows": -1}),
    "classes": (BAD_SHAPE, {"n_classes": 0}),
    "logits": (NULL_POINTER, {"logits": Array()}),
    "targets": (NULL_POINTER, {"labels": None}),
    "grad": (NULL_POINTER, {"grad": Array()}),
    "hess": (NULL_POINTER, {"result": HESSIAN}),
    "losses": (NULL_POINTER, {"result": LOGSUMEXP, "labels": None, "grad": Array()}),
    "two targets": (NOT_NEEDED, {"distributions": np.zeros((4, 6))}),
    "targets of a softmax": (NOT_NEEDED, {"result": SOFTMAX}),
    "losses of a softmax": (NOT_NEEDED, {"result": SOFTMAX, "labels": None, "losses": np.zeros(4)}),
    "grad of a loss": (NOT_NEEDED, {"result": LOSS}),
    "hess of a gradient": (NOT_NEEDED, {"hess": np.zeros((4, 6))}),
    "label": (BAD_LABEL, {"labels": np.array([0, 5, 6, 0])}),
    "negative label": (BAD_LABEL, {"labels": np.array([0, 5, -1, 0])}),
    "ignored label": (BAD_LABEL, {"labels": np.array([0, 5, -1, 0]), "has_ignored": 1, "ignored": -2}),
    "temperature": (BAD_OPTION, {"temperature": 0}),
    "NaN temperature": (BAD_OPTION, {"temperature": float("nan")}),
    "small temperature": (BAD_OPTION, {"temperature": 1e-320}),
    "softcap": (BAD_OPTION, {"softcap": -1}),
    "infinite softcap": (BAD_OPTION, {"softcap": float("inf")}),
    "softcap of a Hessian": (BAD_OPTION, {"result": HESSIAN, "hess": np.zeros((4, 6)), "softcap": 1}),
    "label_smoothing": (BAD_OPTION, {"label_smoothing": 1.5}),
    "z_loss": (BAD_OPTION, {"z_loss": -1}),
    "normalizer": (BAD_OPTION, {"normalizer": float("nan")}),
    "grad beside itself": (OVERLAP, {"grad": Array(GRAD.ctypes.data, 0, 8)}),
    "grad of short rows": (OVERLAP, {"grad": Array(GRAD.ctypes.data, 40, 8)}),
    "grad of short classes": (OVERLAP, {"grad": Array(GRAD.ctypes.data, 48, 4)}),
    "grad over logits": (OVERLAP, {"grad": Array(X.ctypes.data + 8, 48, 8)}),
    "grad over logits in another order": (OVERLAP, {"grad": Array(X.ctypes.data, 8, 32)}),
    "grad over labels": (OVERLAP, {"labels": GRAD.view(np.int64)[0]}),
    "losses over logits": (OVERLAP, {"losses": X}),
    "losses over labels": (OVERLAP, {"losses": LABELS.view(np.float64)}),
    "losses over grad": (OVERLAP, {"losses": GRAD}),
    "losses over hess": (OVERLAP, {"result": HESSIAN, "hess": SPARE, "losses": SPARE}),
    "hess over grad": (OVERLAP, {"result": HESSIAN, "hess": GRAD}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_in_order_gives_a_code_and_nothing_is_written(api: Api, level: str, name: str) -> None:
    code, fields = BAD[name]
    GRAD.fill(7)
    GRAD[0, :4] = 0  # labels, where they are there
    before, loss, losses = GRAD.copy(), ctypes.c_double(-7), np.full(4, 7.0)
    call = call_for(
        X, **({"losses": losses} if "losses" not in name and "softmax" not in name else {}), **{**PLAIN, **fields}
    )
    assert api.run(call, None, 0, ctypes.addressof(loss)) == code
    assert api.scratch_size(call) == -code or code == BAD_LABEL
    assert loss.value == -7
    assert_same_results([GRAD, losses, X], [before, np.full(4, 7.0), np.zeros((4, 6))])


def test_scratch_that_is_missing_or_too_small_is_refused(api: Api, level: str) -> None:
    x, soft = problem((2, 3000), "soft")
    losses = np.full(2, 7.0)
    call = call_for(x, distributions=spread_out(soft), losses=losses)
    size = api.scratch_size(call)
    scratch = ctypes.create_string_buffer(size)
    assert size >= 3000 * 8
    assert api.run(call, None, size, None) == BAD_SCRATCH
    assert api.run(call, ctypes.addressof(scratch), size - 1, None) == BAD_SCRATCH
    assert losses.tolist() == [7, 7]
    assert api.run(call, ctypes.addressof(scratch), size, None) == OK
    assert_same_results([losses], [sx.cross_entropy(x, soft, reduction="none")])


def test_no_call_at_all_is_an_error() -> None:
    api = table(_c_api.capsule)
    assert api.run(None, None, 0, None) == NULL_POINTER
    assert api.scratch_size(None) == -NULL_POINTER


def test_every_code_has_a_text() -> None:
    api = table(_c_api.capsule)
    texts = [api.error_text(code) for code in range(BAD_SCRATCH + 1)]
    unknown = b"not an error code of this softxent"
    assert len({*texts, unknown}) == len(texts) + 1
    assert {api.error_text(code) for code in (-1, BAD_SCRATCH + 1)} == {unknown}


def test_the_level_in_use_is_that_of_the_process() -> None:
    assert table(sx._C_API).level == _dispatch.level.encode()


# What other modules were compiled with. A change of a line here breaks them: fields, functions and codes may only be
# added, at the end.
CONSTANTS = """
SOFTXENT_VERSION 1
SOFTXENT_OK 0
SOFTXENT_BAD_CALL 1
SOFTXENT_NULL_POINTER 2
SOFTXENT_NOT_NEEDED 3
SOFTXENT_BAD_SHAPE 4
SOFTXENT_BAD_LABEL 5
SOFTXENT_BAD_OPTION 6
SOFTXENT_OVERLAP 7
SOFTXENT_BAD_SCRATCH 8
SOFTXENT_FLOAT32 0
SOFTXENT_FLOAT64 1
SOFTXENT_LOSS 0
SOFTXENT_GRADIENT 1
SOFTXENT_HESSIAN 2
SOFTXENT_SOFTMAX 3
SOFTXENT_LOG_SOFTMAX 4
SOFTXENT_LOGSUMEXP 5
SOFTXENT_MEAN 0
SOFTXENT_SUM 1
SOFTXENT_NORMALIZED 2
"""
DECLARATIONS = """
struct softxent_array: void *data; ptrdiff_t row_stride, class_stride
struct softxent_call: size_t size; int dtype; int result; int reduction; int n_threads; ptrdiff_t n_rows, n_classes; \
softxent_array logits; const int64_t *labels; softxent_array distributions; softxent_array grad; softxent_array hess; \
void *losses; int has_ignored; int64_t ignored; double normalizer; double temperature; double softcap; \
double label_smoothing; double z_loss
struct softxent_api: uint32_t version; uint32_t size; const char *level; \
int (*run)(const softxent_call *call, void *scratch, size_t scratch_bytes, double *loss); \
ptrdiff_t (*scratch_size)(const softxent_call *call); const char *(*error_text)(int code)
int softxent_import(void)
int softxent_run(const softxent_call *call, void *scratch, size_t scratch_bytes, double *loss)
ptrdiff_t softxent_scratch_size(const softxent_call *call)
const char *softxent_error_text(int code)
const char *softxent_level(void)
softxent_array softxent_contiguous(void *data, ptrdiff_t n_classes, int dtype)
softxent_call softxent_call_for(int dtype, const void *logits, ptrdiff_t n_rows, ptrdiff_t n_classes)
"""


def declarations() -> tuple[list[str], list[str]]:
    """Constants, and structs and functions, of the header."""
    text = re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", HEADER.read_text("utf-8"), flags=re.DOTALL))
    constants = re.findall(r"(SOFTXENT_[A-Z_0-9]+) (?:= )?(\d+)", text)
    structs = re.findall(r"typedef struct (\w+) \{ (.*?); \} \w+;", text)
    functions = re.findall(r"static inline (.*?\)) \{", text)
    return [" ".join(each) for each in constants], [*(f"struct {name}: {body}" for name, body in structs), *functions]


def test_nothing_that_is_declared_changes() -> None:
    constants, others = declarations()
    assert constants == CONSTANTS.split("\n")[1:-1]
    assert others == DECLARATIONS.split("\n")[1:-1]


def test_cython_sees_what_the_header_declares() -> None:
    """__init__.pxd has each constant, field and function, with its type."""
    pxd = (ROOT / "src/softxent/__init__.pxd").read_text("utf-8")
    constants, others = declarations()
    assert set(re.findall(r"SOFTXENT_[A-Z_0-9]+", pxd)) == {each.split()[0] for each in constants}
    in_cython = [
        re.sub(r" \*", "* ", re.sub(r"\bptrdiff_t\b", "Py_ssize_t", each)).replace("(void)", "()") for each in others
    ]
    for declared in in_cython:
        if declared.startswith("struct "):
            name, fields = declared.removeprefix("struct ").split(": ", 1)
            body = re.search(rf"ctypedef struct {name}:\n((?:        .*\n)+)", pxd)
            assert body is not None
            found = [line.strip().removesuffix(" noexcept") for line in body[1].splitlines()]
            expected = []
            for field in fields.split("; "):
                first, *more = [field] if "(" in field else field.split(", ")
                expected += [first, *(f"{first.split()[0]} {each}" for each in more)]
            assert found == [re.sub(r"\* \(\* ", "* (*", re.sub(r"\(\* ", "(*", each)) for each in expected]
        else:
            assert re.search(re.escape(declared) + r" (noexcept|except -1)\n", pxd), declared


CALLER = """
#include <Python.h>
#include "softxent.h"

/* As a module of another project does it. */
int caller(const float *logits, const int64_t *labels, float *grad, ptrdiff_t n_rows, ptrdiff_t n_classes, double *loss)
{
    softxent_call call = softxent_call_for(SOFTXENT_FLOAT32, logits, n_rows, n_classes);
    if (softxent_import() < 0) {
        return -1;
    }
    call.result = SOFTXENT_GRADIENT;
    call.labels = labels;
    call.grad = softxent_contiguous(grad, n_classes, call.dtype);
    if (softxent_scratch_size(&call) != 0 || softxent_level() == NULL || softxent_error_text(0) == NULL) {
        return -2;
    }
    return softxent_run(&call, NULL, 0, loss);
}
"""


def compiled(folder: Path, compiler: str, standard: str, source: str = CALLER) -> ctypes.PyDLL:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    language = "c" if standard.startswith("c1") else "c++"
    path = folder / ("caller.c" if language == "c" else "caller.cpp")
    text = source if language == "c" else source.replace("int caller", 'extern "C" int caller')
    path.write_text(text)
    library = folder / "caller.so"
    # Under .ci/sanitize, this caller is built with the sanitizers too.
    sanitized = ["-fsanitize=address,undefined"] if "libasan" in os.environ.get("LD_PRELOAD", "") else []
    if sanitized and "clang" in compiler:
        pytest.skip("the sanitizers of this process are GCC's")
    subprocess.run(
        [
            *(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"),
            *sanitized,
            *("-isystem", sysconfig.get_paths()["include"], "-I", sx.get_include(), str(path), "-o", str(library)),
        ],
        check=True,
    )
    return ctypes.PyDLL(str(library))


@pytest.mark.skipif(sysconfig.get_platform().startswith("win"), reason="needs GCC or Clang")
@pytest.mark.parametrize(
    ("compiler", "standard"), [("gcc", "c11"), ("clang", "c11"), ("g++", "c++17"), ("clang++", "c++17")]
)
def test_the_header_compiles_without_a_warning_and_works(
    api: Api, level: str, tmp_path: Path, compiler: str, standard: str
) -> None:
    library = compiled(tmp_path, compiler, standard)
    x, labels = problem((20, 10), dtype="float32")
    grad, loss = np.empty_like(x), ctypes.c_double()
    pointers = [ctypes.c_void_p(each.ctypes.data) for each in (x, labels, grad)]
    status = library.caller(*pointers, ctypes.c_ssize_t(20), ctypes.c_ssize_t(10), ctypes.byref(loss))
    assert_same_results((status, loss.value, grad), (0, *sx.value_and_grad(x, labels)))


@pytest.mark.skipif(sysconfig.get_platform().startswith("win"), reason="needs GCC")
@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("version", 2, "compile the module again"),
        ("version", 0, "install a later softxent"),
        ("size", 8, "later softxent"),
    ],
)
def test_another_softxent_at_run_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: int, advice: str
) -> None:
    """The module was compiled with this header, and meets a table of another version, or a shorter one."""
    library = compiled(tmp_path, "gcc", "c11")
    doctored = Api.from_buffer_copy(table(_c_api.capsule))
    setattr(doctored, field, value)
    new = ctypes.pythonapi.PyCapsule_New
    new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
    monkeypatch.setattr(sx, "_C_API", new(ctypes.addressof(doctored), b"softxent._C_API", None))
    with pytest.raises(ImportError, match=advice):
        library.caller(None, None, None, 0, 0, None)
    # A later softxent only has more.
    doctored.version, doctored.size = 1, ctypes.sizeof(Api) + 8
    assert library.caller(None, None, None, ctypes.c_ssize_t(0), ctypes.c_ssize_t(1), None) == OK
