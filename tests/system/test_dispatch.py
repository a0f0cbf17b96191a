"""Which kernel module is used: the best one, or the one that is asked for, or an error that says what there is."""

import ctypes
import importlib
import os
import re

import pytest
from support import run_python

from softxent import _cpu, _dispatch
from softxent.call._call import Kernels

# NumPy's names for what a level needs; older versions know fewer of them.
FEATURES = {
    "x86_64_v3": {"AVX2", "FMA3", "F16C", "BMI", "BMI2"},
    "x86_64_v4": {"AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL", "AVX512_SKX"},
    "neon": {"NEON", "ASIMD"},
}
LACKING = "needs instructions that this CPU does not have"
TABLE = b"softxent.kernels.table"
REPORT = """
import sys
from softxent import _dispatch
print(_dispatch.level, *sorted(name for name in sys.modules if name.startswith("softxent.kernels.levels.")))
"""


def import_with(level: str | None) -> tuple[str, str]:
    """What REPORT prints, and the last line of the errors, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != _dispatch.ENVIRONMENT_VARIABLE}
    if level is not None:
        environment[_dispatch.ENVIRONMENT_VARIABLE] = level
    result = run_python(REPORT, environment)
    return result.stdout.strip(), result.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize("level", _dispatch.usable_levels())
def test_a_level_is_forced_and_no_other_is_imported(level: str) -> None:
    assert import_with(level) == (f"{level} softxent.kernels.levels.{level}", "")


@pytest.mark.parametrize("unset", [None, ""], ids=["unset", "empty"])
def test_the_best_level_is_the_default(unset: str | None) -> None:
    best = _dispatch.usable_levels()[0]
    assert import_with(unset) == (f"{best} softxent.kernels.levels.{best}", "")


def test_an_import_with_an_unknown_level_fails() -> None:
    available = ", ".join(_dispatch.usable_levels())
    assert import_with("mmx") == (
        "",
        f"RuntimeError: SOFTXENT_SIMD=mmx is not a level that softxent knows; available here: {available}",
    )


@pytest.mark.parametrize(
    ("wanted", "built", "supported", "reason"),
    [
        ("mmx", "v3 baseline", "v4 v3 baseline", "is not a level that softxent knows; available here: v3, baseline"),
        ("v4", "v3 baseline", "v4 v3 baseline", "was not built into this installation; available here: v3, baseline"),
        ("v4", "v4 v3 baseline", "v3 baseline", f"{LACKING}; available here: v3, baseline"),
        ("v3", "v4 v3 baseline", "baseline", f"{LACKING}; available here: baseline"),
        ("V3", "v3 baseline", "v3 baseline", "is not a level that softxent knows; available here: v3, baseline"),
    ],
)
def test_a_level_that_cannot_be_had_is_refused(
    wanted: str, built: str, supported: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_dispatch.ENVIRONMENT_VARIABLE, wanted)
    monkeypatch.setattr(_dispatch, "LEVELS", ("v4", "v3", "baseline"))
    monkeypatch.setattr(_dispatch, "built_levels", lambda: tuple(built.split()))
    monkeypatch.setattr(_dispatch, "supported_levels", lambda: tuple(supported.split()))
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'SOFTXENT_SIMD={wanted} {reason}')}$"):
        _dispatch.choose()


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ("v4 v3", "softxent was built for v4, v3, and this CPU runs baseline"),
        ("", "softxent was built for no instruction set at all, and this CPU runs baseline"),
    ],
)
def test_a_build_for_other_cpus_says_so(built: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "built_levels", lambda: tuple(built.split()))
    monkeypatch.setattr(_dispatch, "supported_levels", lambda: ("baseline",))
    with pytest.raises(ImportError, match=f"^{message}$"):
        _dispatch.choose()


def test_levels_are_those_known_best_first() -> None:
    for levels in (_dispatch.built_levels(), _dispatch.usable_levels(), _cpu.supported_levels()):
        assert list(levels) == [level for level in _dispatch.LEVELS if level in levels]
    assert _cpu.supported_levels()[-1] == "baseline"


@pytest.mark.skipif("NPY_DISABLE_CPU_FEATURES" in os.environ, reason="NumPy was told to see less")
def test_numpy_sees_the_same_cpu() -> None:
    try:
        features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        pytest.skip("this NumPy keeps its CPU features elsewhere")
    known = {level: needs & features.keys() for level, needs in FEATURES.items()}
    usable = {level for level, needs in known.items() if needs and all(features[name] for name in needs)}
    assert set(_cpu.supported_levels()) - {"baseline"} == usable


@pytest.fixture
def table() -> ctypes.Array[ctypes.c_uint32]:
    """A copy of the table of a level. It begins with its version and its size in bytes."""
    module = importlib.import_module(f"softxent.kernels.levels.{_dispatch.level}")
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    address = ctypes.pythonapi.PyCapsule_GetPointer(ctypes.py_object(module.table), TABLE)
    size = (2 * ctypes.c_uint32).from_address(address)[1]
    return (size // 4 * ctypes.c_uint32)(*(size // 4 * ctypes.c_uint32).from_address(address))


def kernels_of(table: ctypes.Array[ctypes.c_uint32], name: bytes = TABLE) -> Kernels:
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    return Kernels(ctypes.pythonapi.PyCapsule_New(table, name, None))


def test_kernels_of_another_build_are_refused(table: ctypes.Array[ctypes.c_uint32]) -> None:
    """Of another version, or with fewer functions. A larger table only has more at its end."""
    version, size = table[:2]
    message = f"kernels of version {{}} in an installation that needs version {version}: install softxent again"
    for table[0], table[1] in ((version + 1, size), (version - 1, size), (version, size - 8)):
        with pytest.raises(ImportError, match=f"^{message.format(table[0])}$"):
            kernels_of(table)
    table[0], table[1] = version, size + 8
    assert isinstance(kernels_of(table), Kernels)
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        kernels_of(table, b"another")
