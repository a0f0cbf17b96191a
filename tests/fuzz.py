"""Random calls of the whole public face, good and bad, until one of them misbehaves.

    python tests/fuzz.py                          100 000 calls
    python tests/fuzz.py --count 10000000         ten million
    python tests/fuzz.py --seed 7 --start 4711 --count 1 --print    one of them again, and what it is

A good call returns what the reference says, and writes nothing but its gradient. A bad one raises TypeError, ValueError
(AxisError is one) or, if it is huge, MemoryError, and leaves every byte of the caller's as it was. Anything else, a
warning, an error for a floating-point flag or the death of the process included, is a failure, and is printed as a
program that repeats it.
"""

import argparse
import base64
import math
import multiprocessing
import random
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from reference import as_distributions, reference, transformed

import softxent as sx
from softxent import _dispatch, _loss

POOL = np.random.default_rng(0).normal(0, 3, 1 << 16)
INTEGERS = np.random.default_rng(1).integers(0, 1 << 40, 1 << 16)
FLOATS = ("f4", "f4", "f4", "f8", "f8", "f2", "bfloat16")
INTS = ("i1", "i2", "i4", "i8", "i8", "u1", "u2", "u4", "u8", "q", "Q")
REALS = [*FLOATS, "g", "?", "i4", "u1"]
# Around the numbers of lanes; from what vectors and columns leave over to where the tiles of the narrow kernel fill up.
WIDTHS = (*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65)
WIDE = (127, 128, 129, 168, 169, 191, 193, 252, 253, 481, 482, 497, 512, 700, 1000)
ROWS = (1, 1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 32, 33, 34)
# Beyond this, what a row's probabilities are multiplied by may be infinite where its gradient is not.
LARGEST_FACTOR = {"float32": 2.0**100, "float64": 2.0**980}


class Strange(np.ndarray):
    """An array that misleads whoever asks it rather than its memory."""

    size = property(lambda self: 7)  # type: ignore[assignment]
    shape = property(lambda self: (1, 2, 3))  # type: ignore[assignment]

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("asked for elements")

    def __ne__(self, other: object) -> Any:
        raise RuntimeError("compared")

    def astype(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("converted")

    def min(self, *args: Any, **options: Any) -> Any:
        return 0

    max = min


class Thing:
    """An array-like, a number and an integer, as long as nobody looks; then whatever `answer` returns."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.answer()

    def __float__(self) -> Any:
        return self.answer()

    def __index__(self) -> Any:
        return self.answer()


def fail(error: type[Exception]) -> Any:
    raise error("on purpose")


class Case:
    """One call: its arguments, the memory that they lie in, and what is to come of it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.memories: list[np.ndarray] = []
        self.places: dict[int, tuple[int, int, str]] = {}  # by id: memory, offset, and what is done with the array then
        self.sources: dict[int, str] = {}  # by id, of what is not in a memory of ours
        self.kept: list[Any] = []  # an id is only good as long as its object lives
        self.arguments: dict[str, Any] = {}
        self.truth: dict[str, Any] = {}
        self.is_good = True
        self.is_tame = True  # the numbers are to be compared
        self.is_wild = False  # a double does not hold all that the reference computes on the way
        self.powers = {"sample_weight": 0, "weight": 0}  # of two: how many of them the truth leaves out of these
        self.function = rng.choice(("cross_entropy", "value_and_grad", "value_and_grad", "value_and_grad", "evaluate"))
        self.generate()

    # Arrays

    def known(self, value: Any, source: str) -> Any:
        self.kept.append(value)
        self.sources[id(value)] = source
        return value

    def at(self, memory: int, offset: int, shape: Any, dtype: Any, strides: Any, then: str = "") -> np.ndarray:
        array = np.ndarray(shape, dtype, self.memories[memory], offset, strides)
        if then == ".view(Strange)":
            array = array.view(Strange)
        self.kept.append(array)
        self.places[id(array)] = memory, offset, then
        return array

    def place(self, shape: Sequence[int], name: str, repeats: bool = True) -> np.ndarray:
        """Memory for an array of this shape and dtype in some layout; if it may, it repeats along some axes."""
        rng, dtype = self.rng, np.dtype(name)
        if rng.random() < 0.5:
            memory = np.full(128 + math.prod(shape) * dtype.itemsize, 0xA5, np.uint8)
            self.memories.append(memory)
            return self.at(len(self.memories) - 1, 64, shape, dtype, None)
        if dtype.kind in "iuf" and dtype.itemsize > 1 and rng.random() < 0.25:
            dtype = dtype.newbyteorder("S")
        order = list(range(len(shape)))
        if rng.random() < 0.6:
            rng.shuffle(order)
        plain = rng.random() < 0.3
        stride, offset, strides = dtype.itemsize, 64 + rng.choice((0, 0, 0, 1, 4, 8)), [0] * len(shape)
        for axis in reversed(order):
            step = 1 if plain else rng.choice((1, 1, 1, 2, -1, -3, 0) if repeats else (1, 1, 1, 2, -1, -3))
            strides[axis] = step * stride
            if step < 0:
                offset -= (shape[axis] - 1) * step * stride if shape[axis] else 0
            stride *= max(1, shape[axis] * abs(step))
        self.memories.append(np.full(offset + 64 + 2 * stride, 0xA5, np.uint8))
        return self.at(len(self.memories) - 1, offset, shape, dtype, strides)

    def numbers(self, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
        size = math.prod(shape)
        start = self.rng.randrange(max(1, POOL.size - size))
        return np.resize(POOL[start : start + size], size).reshape(shape) * scale

    def integers(self, shape: Sequence[int], stop: int) -> np.ndarray:
        size = math.prod(shape)
        start = self.rng.randrange(max(1, INTEGERS.size - size))
        return np.resize(INTEGERS[start : start + size], size).reshape(shape) % stop

    def filled(self, shape: Sequence[int], name: str, values: np.ndarray, repeats: bool = True) -> np.ndarray:
        array = self.place(shape, name, repeats)
        if array.dtype.kind == "u":
            values = np.abs(values)
        array[...] = values
        return array

    def dressed(self, array: np.ndarray) -> Any:
        """The array, or another object that stands for the same."""
        rng = self.rng
        if rng.random() < 0.8:
            if rng.random() < 0.1:
                array.setflags(write=False)
            return array
        choice = rng.randrange(4)
        if choice == 0:
            memory, offset, _ = self.places[id(array)]
            return self.at(memory, offset, array.shape, array.dtype, array.strides, ".view(Strange)")
        if choice == 1 and array.ndim == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.known(np.matrix(array, copy=False), f"np.matrix({self.source(array)}, copy=False)")
        if choice == 2:
            return self.known(Thing(lambda: array), f"Thing(lambda: {self.source(array)})")
        if array.size and array.dtype.kind in "iufb" and array.dtype.char != "g" and array.dtype.newbyteorder("=") in (
            np.int64, np.float64, np.bool_,
        ):  # fmt: skip
            return array.tolist()
        return array

    # Good calls

    def generate(self) -> None:
        rng, arguments, truth = self.rng, self.arguments, self.truth
        large = rng.random() < 0.0005
        if large:
            n_classes, leading = rng.choice(((2, (20000,)), (40001, (1,)), (20000, (3,)), (100, (700,))))
        elif rng.random() < 0.12:
            n_classes, leading = rng.choice(WIDE), rng.choice(((), (1,), (2,), (9,), (17,), (2, 2)))
        else:
            n_classes = rng.choice(WIDTHS)
            leading = tuple(rng.choice((1, 1, 2, 3, 4)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))))
            if len(leading) == 1:
                leading = (rng.choice(ROWS),)
        if rng.random() < 0.03 and leading:
            leading = (*leading[1:], 0)
        where_classes = rng.randint(0, len(leading)) if rng.random() < 0.4 else len(leading)
        shape = (*leading[:where_classes], n_classes, *leading[where_classes:])
        self.shape, self.leading, self.axis, self.n_classes = shape, leading, where_classes, n_classes

        dtype = rng.choice(FLOATS) if rng.random() < 0.93 else rng.choice((*INTS, "?"))
        values = self.numbers(shape, rng.choice((1, 1, 1, 1, 1e-3, 30, 1e3)))
        if rng.random() < 0.2:
            values = np.round(values)
        if dtype in INTS:
            values = np.clip(values, -127, 127)
        logits = self.filled(shape, dtype, values > 0 if dtype == "?" else values)
        if logits.size and dtype in FLOATS and rng.random() < 0.15:
            for _ in range(rng.choice((1, 1, 3))):
                self.put(logits, rng.choice((-np.inf, -np.inf, np.inf, np.nan)))
            if rng.random() < 0.2:
                logits[...] = rng.choice((-np.inf, np.nan, np.inf))
        elif logits.size and rng.random() < 0.03:
            if dtype in FLOATS:
                self.is_wild = True
                self.put_ends(logits)
            else:
                self.put(logits, np.iinfo(logits.dtype).max if dtype in INTS else 1)
        self.computed_in = np.dtype("f4") if dtype in FLOATS and logits.dtype.itemsize <= 4 else np.dtype("f8")
        truth["logits"], arguments["logits"] = logits, self.dressed(logits)
        if where_classes != len(leading) or rng.random() < 0.1:
            axis = where_classes - (len(shape) if rng.random() < 0.3 else 0)
            truth["axis"] = axis
            arguments["axis"] = rng.choice(
                (axis, axis, np.int8(axis), self.known(Thing(lambda: axis), f"Thing(lambda: {axis})"))
            )

        kind = "labels" if self.function == "evaluate" else rng.choice(("labels", "labels", "distributions", "pairs"))
        self.kind = kind
        self.generate_targets(kind)
        if rng.random() < 0.65:
            self.generate_options(kind)
        reduction = rng.choice(("mean", "sum", "none"))
        truth["reduction"] = reduction
        if reduction != "mean" or rng.random() < 0.5:
            arguments["reduction"] = reduction
        if reduction == "mean" and rng.random() < 0.1:
            truth["normalizer"] = normalizer = rng.choice((0, 1, 2.5, 7, 1e-3, 1e6, 1e-309, 5e-324, 1e-290, 1.7e308))
            arguments["normalizer"] = self.number(normalizer)
        if rng.random() < 0.1:
            arguments["n_threads"] = rng.choice((1, 2, np.int8(3), 10**20, 2**31))
        if self.function == "value_and_grad" and rng.random() < 0.7:
            self.generate_out(logits)
        for name in ("logits", "targets", "weight", "sample_weight", "where"):
            array = truth.get(name)
            if isinstance(array, np.ndarray) and array.dtype == np.bool_ and array.flags.writeable:
                truth[name] = array.copy()
                array.view(np.uint8)[...] = truth[name] * np.uint8(rng.choice((1, 1, 2, 128, 255)))
        if self.is_wild and self.computed_in == np.float64 and not is_long_double_wide():
            self.is_tame = False
        if rng.random() < 0.3:
            self.spoil()

    def put(self, array: np.ndarray, value: Any) -> None:
        """The value anywhere in the array."""
        array[tuple(self.rng.randrange(n) for n in array.shape)] = value

    @property
    def has_room_for_weights(self) -> bool:
        """Whether weights may be at the ends of their range: times losses that are, they are beyond all ranges."""
        return self.computed_in == np.float32 or not self.is_wild

    def put_ends(self, logits: np.ndarray) -> None:
        """Make all logits, or those of some rows, or some of any row, as large as their dtype allows."""
        rng = self.rng
        shares = np.array(rng.choice(((-1,), (-1,), (-1, -1, -0.875), (1, -1), (1, 0.5, -1, 0), (0.75, -0.75))))
        where = (
            np.expand_dims(self.numbers(self.leading), self.axis) if rng.random() < 0.4 else self.numbers(self.shape)
        )
        chosen = np.broadcast_to(where > rng.choice((-np.inf, 0, 3)), self.shape)
        values = _largest(logits) * shares[self.integers(self.shape, shares.size)]
        logits[chosen] = values[chosen]

    def scaled(self, name: str, weights: np.ndarray, dtype: np.dtype, reach: int = 1) -> np.ndarray:
        """Multiply floating-point weights by a power of two; returns what they are without it.

        The largest of them may then be anywhere in the range of its dtype and of this one, or, if their products have
        to be in it too, in the middle of it.
        """
        dtype = min(weights.dtype.newbyteorder("="), dtype, key=lambda each: each.itemsize)
        most = int(np.frexp(np.abs(weights).max(initial=0))[1])
        _, largest, least = ends(dtype)
        power = self.rng.randint(math.frexp(least)[1] // reach, math.frexp(largest)[1] // reach) - most
        weights[...] = np.ldexp(weights.astype(np.float64), power)
        self.powers[name] = power
        return np.ldexp(weights.astype(np.float64), -power)

    def generate_targets(self, kind: str) -> None:
        rng, truth, arguments = self.rng, self.truth, self.arguments
        if kind == "distributions":
            dtype = rng.choice(REALS)
            values = np.abs(self.numbers(self.shape, rng.choice((1, 1 / (3 * self.n_classes), 0.1))))
            if rng.random() < 0.2:
                values = np.where(self.numbers(self.shape) > 2, values, 0)
            targets = self.filled(self.shape, dtype, np.minimum(values, 100))
            if targets.size and dtype in FLOATS and rng.random() < 0.05:
                value = rng.choice((np.nan, np.inf, -np.inf, -1.0, _largest(targets)))
                self.is_wild = True
                self.is_tame = not abs(value) > 1e30  # their sums, and products with weights, may be infinite
                self.put(targets, value)
            truth["targets"], arguments["targets"] = targets, self.dressed(targets)
            return
        shape = self.leading if kind == "labels" else (*self.leading, rng.choice((0, 1, 2, 3, 5)))
        dtype = rng.choice([name for name in INTS if np.iinfo(name).max >= self.n_classes])
        targets = self.filled(shape, dtype, self.integers(shape, self.n_classes))
        if kind == "labels":
            if rng.random() < 0.2:
                info = np.iinfo(dtype)
                ignored = rng.choice((-100, -1, 0, self.n_classes - 1, self.n_classes, 255, 2**63 - 1, -(2**63)))
                if targets.size and info.min <= ignored <= info.max:
                    self.put(targets, ignored)
                    if rng.random() < 0.1:
                        targets[...] = ignored
                truth["ignore_index"] = ignored
                arguments["ignore_index"] = rng.choice(
                    (ignored, self.known(Thing(lambda: ignored), f"Thing(lambda: {ignored})"))
                )
            truth["targets"], arguments["targets"] = targets, self.dressed(targets)
        else:
            probs = self.filled(shape, rng.choice(REALS), np.minimum(np.abs(self.numbers(shape, 0.2)), 100))
            truth["targets"] = arguments["targets"] = (targets, probs)

    def number(self, value: float) -> Any:
        if self.rng.random() < 0.8:
            return value
        return self.rng.choice((
            self.known(np.float64(value), f"np.float64({value})"), self.known(np.array(value), f"np.array({value})"),
            self.known(Thing(lambda: float(value)), f"Thing(lambda: float({value}))"),
            self.known(Fraction(value), f"Fraction({value})"),
        ))  # fmt: skip

    def generate_options(self, kind: str) -> None:
        rng, truth, arguments = self.rng, self.truth, self.arguments
        share = rng.choice((0.15, 0.3, 0.9))
        if rng.random() < share:
            weight = self.filled((self.n_classes,), rng.choice(REALS), np.abs(self.numbers((self.n_classes,), 0.5)))
            if rng.random() < 0.1:
                self.put(weight, 0)
            elif weight.dtype.kind == "f" and weight.itemsize >= 8 and rng.random() < 0.03:
                self.is_wild = True
                self.is_tame = self.is_tame and self.computed_in == np.float64
                self.put(weight, 1e300)
            truth["weight"] = weight
            if weight.dtype.kind == "f" and not self.is_wild and rng.random() < 0.1:
                truth["weight"] = self.scaled("weight", weight, self.computed_in, 2)
            arguments["weight"] = self.dressed(weight)
        if rng.random() < share:
            values = self.numbers(self.leading, 0.5)
            weights = self.filled(self.leading, rng.choice(REALS), np.abs(values) if rng.random() < 0.9 else values)
            if weights.size and rng.random() < 0.3:
                self.put(weights, 0)
            truth["sample_weight"] = weights
            if weights.size and weights.dtype.kind == "f" and not self.powers["weight"] and rng.random() < 0.03:
                value = rng.choice((np.nan, np.inf, -1e30 if weights.itemsize > 2 else -1e3))
                self.is_tame = self.is_tame and value < 0
                self.put(weights, value)
            elif (
                weights.dtype.kind == "f"
                and not self.powers["weight"]
                and self.has_room_for_weights
                and rng.random() < 0.15
            ):
                truth["sample_weight"] = self.scaled("sample_weight", weights, np.dtype("f8"))
            arguments["sample_weight"] = self.dressed(weights)
        if rng.random() < share:
            full = rng.random() < 0.5
            shape = self.shape if full else (self.n_classes,)
            allowed = self.filled(shape, "?", self.numbers(shape) > rng.choice((-3, -3, 0, 3)))
            truth["where"], arguments["where"] = allowed, self.dressed(allowed)
        for name, values in (
            ("label_smoothing", (0.0, 0.1, 0.1, 0.5, 1.0)),
            ("temperature", (1.0, 0.5, 2.0, 1.7, 1e-2, 100.0)),
            ("softcap", (0.5, 5.0, 30.0, 1000.0)),
            ("z_loss", (0.0, 1e-4, 0.03, 1.0)),
        ):
            if rng.random() < share and not (name == "z_loss" and self.powers["weight"]):
                truth[name] = rng.choice(values)
                if (
                    name in ("temperature", "softcap")
                    and not any(self.powers.values())
                    and rng.random() < (0.3 if self.is_wild else 0.03)
                ):
                    self.is_wild = True
                    info = np.finfo(self.computed_in)
                    truth[name] = float(rng.choice((info.max, info.tiny, 1e6 * math.sqrt(info.tiny), 1e-3, 0.7)))
                    self.is_tame = self.is_tame and (name == "temperature" or 1e-4 < truth[name] < 1)
                arguments[name] = self.number(truth[name])

    def generate_out(self, logits: np.ndarray) -> None:
        """A new array, the logits, or one that shares memory with an argument."""
        rng, choice = self.rng, self.rng.random()
        lies_once = all(stride or n == 1 for n, stride in zip(logits.shape, logits.strides, strict=True))
        may_share = lies_once and self.truth["logits"].dtype.name in ("float16", "bfloat16", "float32", "float64")
        t = self.truth["targets"]
        memory, offset, _ = self.places[id(logits)]
        if choice < 0.25 and may_share and logits.size:
            out = self.at(memory, offset, logits.shape, logits.dtype, logits.strides)
            if self.arguments["logits"] is logits and logits.flags.writeable:
                out = logits
        elif choice < 0.4 and may_share and logits.size:
            shift = rng.choice((1, -1, 2, -8)) * rng.choice((1, logits.itemsize))
            if rng.random() < 0.3 and logits.ndim:
                # From the other end of the last axis, so that what is written first is read last.
                strides = (*logits.strides[:-1], -logits.strides[-1])
                out = self.at(
                    memory, offset + (logits.shape[-1] - 1) * logits.strides[-1], logits.shape, logits.dtype, strides
                )
            else:
                out = self.at(memory, offset + shift, logits.shape, logits.dtype, logits.strides)
        elif (
            choice < 0.5
            and not isinstance(t, tuple)
            and t.shape == self.shape
            and t.dtype.kind == "f"
            and t.itemsize <= 8
        ):
            if not all(stride or n == 1 for n, stride in zip(t.shape, t.strides, strict=True)):
                return
            memory, offset, _ = self.places[id(t)]
            out = self.at(memory, offset, t.shape, t.dtype, t.strides)
        else:
            out = self.place(self.shape, rng.choice(FLOATS), repeats=False)
            if rng.random() < 0.05:
                memory, offset, _ = self.places[id(out)]
                out = self.at(memory, offset, out.shape, out.dtype, out.strides, ".view(Strange)")
        self.arguments["out"] = out

    # Bad calls

    def spoil(self) -> None:
        """Change one argument so that the call has to be refused."""
        rng = self.rng
        for _ in range(20):
            what = rng.choice(SPOILERS)
            if what(self):
                self.is_good = False
                if rng.random() < 0.2:
                    rng.choice(SPOILERS)(self)
                return

    # What is printed

    def source(self, value: Any) -> str:
        if id(value) in self.sources:
            return self.sources[id(value)]
        if id(value) in self.places:
            memory, offset, then = self.places[id(value)]
            plain = value.view(np.ndarray)
            dtype = (
                "ml_dtypes.bfloat16"
                if plain.dtype.name == "bfloat16"
                else repr(plain.dtype.byteorder + plain.dtype.char)
            )
            text = f"np.ndarray({plain.shape}, {dtype}, memory[{memory}], {offset}, {plain.strides}){then}"
            return text if plain.flags.writeable else f"read_only({text})"
        if isinstance(value, tuple):
            return f"({', '.join(self.source(each) for each in value)},)"
        if isinstance(value, np.generic):
            return f"np.{type(value).__name__}({value})"
        return repr(value).replace("nan", "math.nan").replace("inf", "math.inf")

    def program(self, snapshot: Sequence[bytes], level: str) -> str:
        def packed(memory: bytes) -> str:
            if len(memory) < 1000:
                return f'bytearray.fromhex("{memory.hex()}")'
            return (
                f'bytearray(zlib.decompress(base64.b85decode("{base64.b85encode(zlib.compress(memory, 9)).decode()}")))'
            )

        lines = [
            "import base64, math, zlib",
            "from fractions import Fraction",
            "import ml_dtypes",
            "import numpy as np",
        ]
        lines += [
            "import softxent as sx",
            "from fuzz import Strange, Thing, fail, read_only",
            "from softxent import _dispatch, _loss",
        ]
        lines += [f"_loss._kernels = _dispatch.load({level!r})", 'np.seterr(all="raise")', "memory = ["]
        lines += [f"    {packed(memory)}," for memory in snapshot]
        lines += ["]"]
        values = {name: self.source(value) for name, value in self.arguments.items()}
        lines += [f"{name} = {text}" for name, text in values.items() if len(text) > 20]
        if values.get("out") == values["logits"]:
            lines += ["out = logits"]
        given = ", ".join(f"{name}={name if len(text) > 20 else text}" for name, text in values.items())
        return "\n".join([*lines, f"print(sx.{self.function}({given}))"])


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@cache
def ends(dtype: np.dtype) -> tuple[float, float, float]:
    """The spacing at 1, the largest number and the least of a floating dtype."""
    info = ml_dtypes.finfo(dtype.newbyteorder("=") if dtype.kind == "f" else dtype)
    return float(info.eps), float(info.max), float(info.smallest_subnormal)


def is_long_double_wide() -> bool:
    """Whether the reference can compute in a type of a wider range than double's; under valgrind it has none."""
    return "g" in REALS and np.finfo(np.longdouble).maxexp > 4000


def _largest(array: np.ndarray) -> float:
    return ends(array.dtype)[1]


# Ways to spoil a call: each returns whether it could.
Spoiler = Callable[[Case], bool]


def put(name: str, *sources: str) -> Spoiler:
    """Give one of these, by their Python, in place of an argument."""

    def spoil(case: Case) -> bool:
        source = case.rng.choice(sources)
        case.arguments[name] = case.known(eval(source, EVERYTHING), source)
        return True

    return spoil


EVERYTHING = {"np": np, "math": math, "Thing": Thing, "fail": fail, "Fraction": Fraction, "ml_dtypes": ml_dtypes}
BAD_ARRAYS = (
    "None", "'x'", "np.zeros((2, 3), complex)", "np.zeros((2, 3), object)", "np.zeros((2, 3), 'M8[s]')",
    "[[1, 2], [3]]",
    "np.zeros((2, 3), 'f4,f4')", "np.ma.masked_array(np.zeros((2, 3)), mask=np.eye(2, 3))", "np.zeros((2, 3), 'S4')",
    "np.zeros((0,) * 9)", "np.zeros((2, 3), ml_dtypes.float8_e4m3fn)", "{1, 2}", "object()",
    "Thing(lambda: 3)", "Thing(lambda: fail(ValueError))", "Thing(lambda: fail(TypeError))",
    "Thing(lambda: fail(MemoryError))",
)  # fmt: skip
BAD_NUMBERS = (
    "math.nan", "math.inf", "-1", "-1e-300", "'1'", "b'1'", "1j", "[0.5]", "np.array([0.5])", "np.float32('nan')",
    "np.complex128(1)", "10**400", "-10**400", "Fraction(10**400)", "np.str_('1')", "np.array('1')", "np.void(b'1')",
    "np.datetime64(1, 's')", "object()", "np.array(None)", "Thing(lambda: 'x')", "Thing(lambda: -3.0)",
    "Thing(lambda: math.nan)", "Thing(lambda: fail(ValueError))", "Thing(lambda: fail(TypeError))",
)  # fmt: skip
BAD_INTEGERS = (
    "1.0", "'1'", "1j", "np.float64(1)", "Thing(lambda: 'x')", "Thing(lambda: fail(ValueError))",
    "Thing(lambda: fail(TypeError))",
)  # fmt: skip


def bad_label(case: Case) -> bool:
    t = case.truth["targets"]
    t = t[0] if isinstance(t, tuple) else t
    info = np.iinfo(t.dtype) if t.dtype.kind in "iu" else None
    if info is None or case.kind == "distributions" or t.size == 0 or not t.flags.writeable:
        return False
    wrong = [
        n for n in (case.n_classes, -1, info.max, info.min, case.n_classes + 256, 2**32) if info.min <= n <= info.max
    ]
    wrong = [n for n in wrong if not 0 <= n < case.n_classes and n != case.truth.get("ignore_index")]
    if not wrong or case.arguments["targets"] is not case.truth["targets"]:
        return False
    case.put(t, case.rng.choice(wrong))
    return True


def bad_shape(name: str) -> Spoiler:
    def spoil(case: Case) -> bool:
        rng = case.rng
        shape = {"targets": case.leading, "sample_weight": case.leading, "weight": (case.n_classes,)}.get(
            name, case.shape
        )
        change = rng.randrange(4)
        if change == 0:
            other: tuple[int, ...] = (*shape, 1)
        elif change == 1 and shape:
            other = (*shape[:-1], shape[-1] + 1)
        elif change == 2 and shape:
            other = (0, *shape[1:]) if shape[0] else (1, *shape[1:])
        else:
            other = (1, *shape)
        if name == "out" and (case.function != "value_and_grad" or rng.random() < 0.3):
            return False
        if (other == case.shape and (name == "targets" or name == "where")) or (
            name == "where" and other == (case.n_classes,)
        ):
            return False
        dtype = {"targets": "i8", "where": "?"}.get(name, "f8")
        array = case.place(other, dtype, repeats=False)
        array[...] = 0
        case.arguments[name] = array
        return True

    return spoil


def bad_kind_of_targets(case: Case) -> bool:
    dtype = case.rng.choice(("f8", "f4", "?", "O", "c16", "m8[s]", "U1"))
    if not case.leading and case.n_classes == 1:
        return False
    source = f"np.zeros({case.leading}, {dtype!r})"
    case.arguments["targets"] = case.known(eval(source, EVERYTHING), source)
    return True


def bad_pair(case: Case) -> bool:
    k = case.leading
    source = case.rng.choice((
        f"(np.zeros({(*k, 2)}, int), np.zeros({(*k, 3)}))", f"(np.zeros({(*k, 2)}, int), np.zeros({(*k, 2)}, complex))",
        f"(np.zeros({(1, *k, 2)}, int), np.zeros({(1, *k, 2)}))", f"(np.zeros({(*k, 2)}), np.zeros({(*k, 2)}))",
        f"(np.zeros({(*k, 1)}, int),)", "()", "(None, None)", f"(np.zeros({(*k, 2)}, int), np.zeros({(*k, 2)}), 0)",
    ))  # fmt: skip
    targets = eval(source, EVERYTHING)
    try:  # that another tuple of arrays is an array is no mistake
        if np.asarray(targets).shape in (case.shape, case.leading):
            return False
    except ValueError:
        pass
    case.arguments["targets"] = case.known(targets, source)
    return True


def bad_out(case: Case) -> bool:
    if case.function != "value_and_grad":
        case.arguments["out"] = None
        return True
    rng, shape = case.rng, case.shape
    once = tuple(0 for _ in shape)
    repeated = f"np.lib.stride_tricks.as_strided(np.zeros(1), {shape}, {once})"
    sources = [f"np.zeros({shape}, {dtype!r})" for dtype in ("i8", "c16", "O", "g", "?", "S4", "f4,f4")]
    sources += [f"np.zeros({shape}).tolist()", f"np.ma.zeros({shape})", f"np.broadcast_to(0.0, {shape})", "0.0", "'x'"]
    sources += [f"np.frombuffer(bytes({8 * math.prod(shape)})).reshape({shape})"] if math.prod(shape) else []
    sources += [repeated] if math.prod(shape) > 1 else []
    source = rng.choice(sources)
    case.arguments["out"] = case.known(eval(source, EVERYTHING), source)
    return True


def bad_axis(case: Case) -> bool:
    n = len(case.shape)
    values = (n, -n - 1, 64, -65, 10**20, -(2**31), 2**31, 2**63, None, (0,), 1.0, "1")
    case.arguments["axis"] = case.rng.choice(values)
    return True


def huge_rows(case: Case) -> bool:
    if case.function != "value_and_grad":
        return False
    n = case.rng.choice((2**42, 2**50, 2**57))
    for name in ("sample_weight", "where", "axis", "out"):
        case.arguments.pop(name, None)
    dtype, n_classes = case.rng.choice(("float32", "float64", "int8", "float16")), case.rng.choice((1, 3))
    source = f"np.broadcast_to(np.{dtype}(0), ({n}, {n_classes}))"
    case.arguments["logits"] = case.known(eval(source, EVERYTHING), source)
    source = f"np.broadcast_to(np.float32(0), ({n}, 2))"
    case.arguments["targets"] = case.known(eval(source, EVERYTHING), source)
    return True


def huge_classes(case: Case) -> bool:
    n, rows = case.rng.choice((2**42, 2**50, 2**57)), case.rng.choice((1, 3))
    case.function = case.rng.choice(("cross_entropy", "value_and_grad", "evaluate"))
    case.arguments = {
        name: value for name, value in case.arguments.items() if name in ("label_smoothing", "z_loss", "reduction")
    }
    for name, source in (
        (
            "logits",
            f"np.broadcast_to(np.{case.rng.choice(('float32', 'float64', 'int8', 'float16'))}(0), ({rows}, {n}))",
        ),
        ("targets", f"np.zeros({rows}, int)"),
        ("where", f"np.broadcast_to(True, ({n},))" if case.rng.random() < 0.5 else "None"),
        ("weight", f"np.broadcast_to(1.0, ({n},))" if case.rng.random() < 0.5 else "None"),
    ):
        case.arguments[name] = case.known(eval(source, EVERYTHING), source)
    return True


def no_classes(case: Case) -> bool:
    shape = tuple(0 if axis == case.axis else n for axis, n in enumerate(case.shape))
    case.arguments["logits"] = case.place(shape, "f4", repeats=False)
    return True


def misplaced(case: Case) -> bool:
    """An option that has no meaning with the others."""
    if case.kind != "labels":
        case.arguments["ignore_index"] = case.rng.choice((0, -100))
    elif case.rng.random() < 0.5:
        case.arguments |= {"normalizer": 2.0, "reduction": "sum"}
    else:
        case.arguments["no_such_option"] = 1
    return True


def bad_reduction(case: Case) -> bool:
    case.arguments["reduction"] = case.rng.choice(
        ("average", "MEAN", "", None, 0, b"mean", ("mean",), ["mean"], "mean\0")
    )
    return True


SPOILERS: tuple[Spoiler, ...] = (
    bad_label, bad_label, bad_label, bad_shape("targets"), bad_shape("weight"), bad_shape("sample_weight"),
    bad_shape("where"), bad_shape("out"), bad_kind_of_targets, bad_pair, bad_out, bad_out, bad_axis, huge_rows,
    huge_classes, no_classes, misplaced, bad_reduction,
    put("logits", *BAD_ARRAYS, "1.5", "np.float32(2)"), put("targets", *BAD_ARRAYS), put("weight", *BAD_ARRAYS[1:]),
    put("sample_weight", *BAD_ARRAYS[1:]), put("where", *BAD_ARRAYS[1:]),
    put("temperature", *BAD_NUMBERS, "None", "0", "0.0", "-0.0"), put("softcap", *BAD_NUMBERS, "0", "0.0"),
    put("label_smoothing", *BAD_NUMBERS, "None", "1.0000001", "2"), put("z_loss", *BAD_NUMBERS, "None"),
    put("normalizer", *BAD_NUMBERS), put("ignore_index", *BAD_INTEGERS, "2**63", "-2**63 - 1", "np.uint64(2**63)"),
    put("n_threads", *BAD_INTEGERS, "0", "-1", "np.int8(-1)", "-10**30"),
)  # fmt: skip


# What is to come of a call


class Misbehaved(Exception):
    """A call that neither did what it should nor refused to."""


def expected(case: Case) -> dict[str, Any]:
    """By the reference: losses of rows, the gradient, what evaluate says, and how far results may be from them."""
    truth = dict(case.truth)
    reduction, normalizer = truth.pop("reduction"), truth.pop("normalizer", None)
    dtype = np.longdouble if case.is_wild and case.computed_in == np.float64 else np.float64
    axis, temperature, softcap = truth.get("axis", -1), truth.get("temperature", 1.0), truth.get("softcap")
    z_loss, smoothing = truth.get("z_loss", 0.0), truth.get("label_smoothing", 0.0)
    truth["logits"] = truth["logits"].astype(dtype)
    losses, grad = reference(reduction="none", dtype=dtype, **truth)
    x, grad = np.moveaxis(truth["logits"], axis, -1), np.moveaxis(grad, axis, -1)
    allowed = truth.get("where", np.True_)
    allowed = np.broadcast_to(np.moveaxis(allowed, axis, -1) if allowed.ndim == x.ndim else allowed, x.shape)
    z, _ = transformed(x, temperature, softcap, allowed)
    top = z.max(axis=-1)
    lost = ~np.isfinite(top)  # rows of which nothing can be said
    rows = np.ones(case.leading)
    if "sample_weight" in truth:
        rows = np.asarray(truth["sample_weight"], np.float64)
    if "ignore_index" in truth:
        rows = np.where(truth["targets"] == truth["ignore_index"], 0, rows)
    losses = np.where(rows == 0, 0, np.where(lost, np.nan, losses))
    grad = np.where((rows == 0)[..., np.newaxis], 0, np.where(lost[..., np.newaxis] & allowed, np.nan, grad))

    sure = numbers_of_rows(case, x, z, temperature != 1 or softcap is not None)
    gap, rounded, log_bound, lse_bound = (sure[name] for name in ("gap", "rounded", "log_bound", "lse_bound"))
    eps, p_bound, lse = 16 * ends(case.computed_in)[0], sure["p_bound"], top + sure["log"]
    _, t = as_distributions(truth["targets"], x.shape, axis)
    w = np.asarray(truth.get("weight", 1.0), dtype)
    u = (1 - smoothing) * w * np.abs(t)
    if smoothing:
        u = u + smoothing * w * allowed * np.abs(t).sum(axis=-1, keepdims=True) / allowed.sum(axis=-1, keepdims=True)
    mass = u.sum(axis=-1)
    far = np.where((u != 0) & (gap < np.inf), u * (eps * gap + rounded), 0).sum(axis=-1)
    loss_bound = far + mass * log_bound + z_loss * lse_bound * (2 * np.abs(lse) + lse_bound)
    grad_bound = (mass * p_bound + 2 * z_loss * (np.abs(lse) * p_bound + lse_bound)) / temperature
    has_grad = (u != 0) | ~(gap > 12000 + 2 * rounded)

    terms = np.where(rows == 0, 0, rows * ((t * w).sum(axis=-1) if "weight" in truth else 1))
    divisor, power = 1.0, case.powers["sample_weight"] + case.powers["weight"]
    if normalizer is not None:
        divisor, exponent = math.frexp(normalizer)
        power -= exponent
    elif reduction == "mean":
        divisor, power = terms.sum(), 0
    size = abs(divisor) or 1.0
    certain = float(np.abs(terms).sum() / size) if reduction == "mean" and normalizer is None else 1.0
    scale, weights = (1 + certain) / size, np.where(lost, 0, np.abs(rows))
    factor = np.ldexp(np.abs(rows) * (mass + 2 * z_loss * np.abs(lse)) * scale / temperature, power)
    may_overflow = (mass > 1.01) | bool(z_loss) | (softcap is not None)
    may_overflow = may_overflow & (factor > LARGEST_FACTOR[case.computed_in.name])
    tiny = (4 + mass) * sure["least"]  # what the factors of a gradient lose below the normal numbers
    loss_bound, grad_bound = (np.where(weights == 0, 0, weights * each) for each in (loss_bound, grad_bound))
    grad_bound = np.where(may_overflow, np.inf, grad_bound)
    return {
        "losses": np.ldexp(losses, power),
        "grad": np.moveaxis(np.ldexp(grad / divisor if divisor else np.zeros_like(grad), power), -1, axis),
        "loss": np.ldexp(losses.sum() / divisor if divisor else 0.0, power),
        "losses_bound": np.ldexp(loss_bound, power),
        "loss_bound": np.ldexp(loss_bound.sum() * scale, power),
        "grad_bound": np.moveaxis(
            np.where(has_grad, (np.ldexp(grad_bound * scale, power) + tiny)[..., np.newaxis], 0), -1, axis
        ),
        "rows": np.ldexp(rows, case.powers["sample_weight"]),
        # Losses that no double holds may have no sum, if they differ in sign; a weight brings back 500 powers of two.
        "certain": divisor == 0
        or (
            certain < 1e3
            and not {-np.inf, np.inf} <= set(losses.astype(float).flat)
            and not (np.isfinite(losses) & (np.abs(losses) > dtype(2) ** min(1500, np.finfo(dtype).maxexp - 1))).any()
        ),
        **sure,
    }


def numbers_of_rows(case: Case, x: np.ndarray, z: np.ndarray, is_transformed: bool) -> dict[str, Any]:
    """What does not depend on the target, of logits x, transformed to z, and how far all of it may be off."""
    # A quotient or a cap rounds each logit, and equal ones alike. What that makes of the probabilities is up to the
    # classes that have any; of the loss, up to those that the target wants.
    eps, _, least = ends(case.computed_in)
    eps, least = 16 * eps, 4 * least * max(1, case.truth.get("softcap", 1))
    top = z.max(axis=-1)
    gap, m = top[..., np.newaxis] - z, top[..., np.newaxis]
    argmax = z.argmax(axis=-1)[..., np.newaxis]
    rounded: Any = 0.0
    if is_transformed:
        differs = x != np.take_along_axis(x, argmax, -1)
        rounded = np.where(differs, eps * np.maximum(np.abs(z), np.abs(m)) + least, 0)
    unsure = np.where(gap < 1000 + 2 * rounded, rounded, 0).max(axis=-1)
    e = np.exp(-gap)
    rest = np.where(np.arange(case.n_classes) == argmax, 0, e).sum(axis=-1)
    p, log = e / (1 + rest)[..., np.newaxis], np.log1p(rest)
    cross = np.multiply(p, gap, where=p != 0, out=np.zeros_like(z)).sum(axis=-1)
    log_bound = eps * (log + cross) + 2 * unsure + least
    lse = top + log
    p_bound = np.minimum(np.expm1(2 * unsure), 1) + eps
    lse_bound = eps * (np.abs(lse) + np.abs(top)) + 2 * unsure + least
    return {
        "z": z,
        "top": top,
        "gap": gap,
        "rounded": rounded,
        "log": log,
        "entropy": log + cross,
        "log_bound": log_bound,
        "p_bound": p_bound,
        "lse_bound": lse_bound,
        "least": least,
    }


def close(actual: Any, truth: Any, bound: Any, dtype: np.dtype, relative: float = 0.0) -> bool:
    """Whether a result is within its bound of what the dtype holds of the truth."""
    _, largest, least = ends(dtype)
    actual, size = np.asarray(actual, np.float64), np.abs(truth)
    bound = bound + (relative * size + least)
    is_near = (np.abs(actual - truth) <= bound) | (actual == truth) | (np.isnan(actual) & np.isnan(truth))
    same_sign = (np.sign(actual) == np.sign(truth)) | (size < bound)
    may_be_infinite = (np.abs(actual) == np.inf) & same_sign & ~(size + bound <= largest)
    return bool(np.all((is_near & ~(size - bound > largest)) | may_be_infinite))


def compare(case: Case, want: dict[str, Any], result: Any) -> None:
    reduction = case.truth["reduction"]
    loss = result[0] if isinstance(result, tuple) else result
    tame = case.is_tame and want["certain"]
    if reduction == "none":
        if type(loss) is not np.ndarray or loss.dtype != case.computed_in or loss.shape != case.leading:
            raise Misbehaved(f"losses are {loss!r}")
        if tame and not close(loss, want["losses"], want["losses_bound"], case.computed_in):
            raise Misbehaved(f"losses {loss} instead of {want['losses']}, at most {want['losses_bound']} off")
    else:
        if type(loss) is not float:
            raise Misbehaved(f"the loss is {loss!r}")
        # A weighted loss may lose what is below the smallest number before the sum is divided.
        divisor = min(max(case.truth.get("normalizer", 1), 2.0**-1000), 1)
        bound = want["loss_bound"] + math.prod(case.leading) * ends(np.dtype("f8"))[2] / divisor
        if tame and not close(loss, want["loss"], bound, np.dtype("f8")):
            raise Misbehaved(f"loss {loss} instead of {want['loss']}, at most {bound} off")
    if case.function == "value_and_grad":
        grad, out = result[1], case.arguments.get("out")
        if grad is not out if out is not None else type(grad) is not np.ndarray:
            raise Misbehaved("the gradient is not out, or no array")
        grad = grad.view(np.ndarray)
        x = case.truth["logits"].dtype
        natural = np.dtype("f8") if x.kind in "iub" else x.newbyteorder("=")
        if grad.shape != case.shape or (out is None and grad.dtype != natural):
            raise Misbehaved(f"the gradient has shape {grad.shape} and dtype {grad.dtype}")
        if "softcap" in case.truth:  # a logit far beyond the cap has no gradient, whatever its row is
            want["grad"] = np.where(np.isnan(want["grad"]) & (grad == 0), 0, want["grad"])
        held = min(grad.dtype, case.computed_in, key=lambda each: each.itemsize)
        if tame and not close(grad, want["grad"], want["grad_bound"], held, ends(held)[0]):
            raise Misbehaved(f"gradient {grad} instead of {want['grad']}, at most {want['grad_bound']} off")
    if case.function == "evaluate":
        compare_rows(case, want, result)


def compare_rows(case: Case, want: dict[str, Any], result: Any) -> None:
    """What evaluate says of each row."""
    truth, leading = case.truth, case.leading
    for name, dtype in (
        ("log_prob", case.computed_in), ("lse", case.computed_in), ("entropy", case.computed_in), ("argmax", np.int64),
        ("correct", np.bool_), ("row_weight", np.float64),
    ):  # fmt: skip
        array = getattr(result, name)
        if type(array) is not np.ndarray or array.shape != leading or array.dtype != dtype:
            raise Misbehaved(f"{name} is {array!r}")
    if not np.array_equal(result.row_weight, want["rows"], equal_nan=True):
        raise Misbehaved(f"row_weight {result.row_weight} instead of {want['rows']}")
    counts, labels = want["rows"] != 0, truth["targets"]
    if not np.array_equal(result.correct, (result.argmax == labels) & counts):
        raise Misbehaved(f"correct {result.correct} of argmax {result.argmax}")
    z, top, gap, rounded, eps = want["z"], want["top"], want["gap"], want["rounded"], 16 * ends(case.computed_in)[0]
    argmax = np.where(counts & ~np.isnan(top), z.argmax(axis=-1), -1)  # the first of several
    if np.ndim(rounded):
        at = np.where(counts, result.argmax, 0).clip(0).astype(np.int64)[..., np.newaxis]
        is_top = np.take_along_axis(gap - 2 * rounded, at, -1)[..., 0] <= 0
        argmax = np.where((argmax >= 0) & (result.argmax >= 0) & is_top, result.argmax, argmax)
    if not case.is_tame:
        return
    if not np.array_equal(result.argmax, argmax):
        raise Misbehaved(f"argmax {result.argmax} instead of {argmax}")
    # Of infinite logits the log-sum-exp is infinite, and the rest not a number.
    lost = ~np.isfinite(top)
    lse = np.where(lost, top, top + want["log"])
    at = np.where(counts, labels, 0).astype(np.int64)[..., np.newaxis]
    label_gap, label_rounded = (
        np.take_along_axis(np.broadcast_to(each, z.shape), at, -1)[..., 0] for each in (gap, rounded)
    )
    entropy = np.where(lost, np.nan, want["entropy"])
    for name, values, bound in (
        ("lse", lse, want["lse_bound"]),
        (
            "log_prob",
            np.where(lost, np.nan, -(want["log"] + label_gap)),
            want["log_bound"] + eps * label_gap + label_rounded,
        ),
        ("entropy", entropy, eps * entropy + want["p_bound"] * (2 + math.log(case.n_classes))),
    ):
        values, bound = np.where(counts, values, 0), np.where(counts & np.isfinite(bound), bound, 0)
        if not close(getattr(result, name), values, bound, case.computed_in):
            raise Misbehaved(f"{name} {getattr(result, name)} instead of {values}, at most {bound} off")


def compare_labels(case: Case, result: Any) -> None:
    """What evaluate says of a row beside its label, and says again with other labels."""
    labels, ignored = case.truth["targets"], case.truth.get("ignore_index")
    others = (labels.astype(np.int64) + case.rng.randrange(1, 1 + case.n_classes)) % case.n_classes
    if ignored is not None:
        others = np.where((labels == ignored) | (others == ignored), labels.astype(np.int64), others)
    other = sx.evaluate(**(case.arguments | {"targets": others}))
    for name in ("lse", "entropy", "argmax"):
        one, two = (
            np.where(np.isnan(each), np.nan, each).tobytes() for each in (getattr(result, name), getattr(other, name))
        )
        if one != two:
            raise Misbehaved(f"{name} {getattr(result, name)}, and {getattr(other, name)} with the labels {others}")


def compare_family(case: Case) -> None:
    """The functions of logits alone, and of the second derivative, agree with each other and with the loss."""
    given = {name: value for name, value in case.arguments.items() if name not in ("out", "reduction")}
    of_logits = {"axis", "n_threads", "temperature", "softcap", "where"} & set(given)
    x, options = given["logits"], {name: given[name] for name in of_logits}
    p, log_p = (function(x, **options).astype("f8") for function in (sx.softmax, sx.log_softmax))
    lse, axis = sx.logsumexp(x, **options), options.get("axis", -1)
    eps = 32 * ends(min(case.computed_in, sx.softmax(x, **options).dtype, key=lambda each: each.itemsize))[0]
    if np.any((p < 0) | (p > 1)) or not np.allclose(p, np.exp(log_p), rtol=0, atol=100 * eps, equal_nan=True):
        raise Misbehaved(f"softmax {p}, and log_softmax {log_p}")
    if lse.shape != case.leading or not np.all(
        np.isnan(p.sum(axis)) | (np.abs(p.sum(axis) - 1) <= eps * case.n_classes) | (p.sum(axis) == 0)
    ):
        raise Misbehaved(f"softmax {p}, and logsumexp {lse}")
    ones = np.ones(p.shape)
    for name, product in (("softmax_vjp", sx.softmax_vjp(x, ones, **options)), ("log_softmax_vjp", None)):
        product = sx.log_softmax_vjp(x, ones, **options) if product is None else product
        if product.shape != p.shape or (name == "softmax_vjp" and np.any(np.nan_to_num(product.astype("f8")))):
            raise Misbehaved(f"{name} {product} of a constant")
    if "softcap" in given:
        return
    loss, grad, hess = sx.value_grad_and_hess(**given)
    same_loss, same_grad = sx.value_and_grad(**given)
    if not all(np.array_equal(*pair, equal_nan=True) for pair in ((loss, same_loss), (grad, same_grad))):
        raise Misbehaved(f"loss {loss} and gradient {grad} with a Hessian, and {same_loss} and {same_grad}")
    product = sx.hvp(vectors=ones, **given)
    if not given.get("z_loss") and np.any(np.nan_to_num(product.astype("f8"))):
        raise Misbehaved(f"a product with a constant that is {product}")
    if hess.shape != grad.shape or hess.dtype != grad.dtype:
        raise Misbehaved(f"the Hessian has shape {hess.shape} and dtype {hess.dtype}")


def compare_linear(case: Case, want: dict[str, Any]) -> None:
    """A linear head whose weights are the identity has its inputs for logits, however they are cut into chunks."""
    x, rows = case.truth["logits"], case.truth.get("sample_weight", 1)
    if case.axis != len(case.leading) or case.n_classes > 100 or case.is_wild or not np.isfinite(x).all():
        return
    if np.any(~(np.asarray(rows) >= 0)):  # what the mean divides by may be a small difference
        return
    given = {name: value for name, value in case.arguments.items() if name not in ("out", "axis")}
    same_loss, same_grad = sx.value_and_grad(**given)
    identity = np.eye(case.n_classes, dtype=same_grad.dtype)
    memory = case.rng.choice((1, 3000, 1e9))
    loss, grads = sx.linear_value_and_grad(given.pop("logits"), identity, **given, memory=memory)
    if case.truth["reduction"] == "none" and not np.array_equal(loss, same_loss, equal_nan=True):
        raise Misbehaved(f"losses {loss} of a linear head, and {same_loss} of its logits")
    eps, _, least = ends(min(same_grad.dtype, case.computed_in, key=lambda each: each.itemsize))
    grad, same_grad = grads.inputs.astype("f8"), same_grad.astype("f8")
    counts = np.isfinite(same_grad).all(axis=-1, keepdims=True)
    # The rounding of the largest entries may be in any. An entry may be a small difference of larger shares, such as
    # those of a uniform target among equal logits; grad_bound is of the size of the shares.
    size = np.where(counts, np.abs(same_grad), 0).max(initial=0)
    bound = 2 * want["grad_bound"] + 64 * eps * size + 16 * least
    if np.any(np.abs(np.where(counts, grad - same_grad, 0)) > bound):
        raise Misbehaved(f"gradient {grad} of a linear head, and {same_grad} of its logits")


def run(case: Case, snapshot: list[bytes]) -> None:
    """Make the call and look at all that came of it."""
    with np.errstate(all="ignore"):
        want = expected(case) if case.is_good else {}
    out = case.arguments.get("out") if case.is_good else None
    try:
        with np.errstate(all="raise"):
            result = getattr(sx, case.function)(**case.arguments)
            if case.is_good and case.function == "evaluate":
                repr(result)
                compare_labels(case, result)
    except (TypeError, ValueError, MemoryError) as error:
        if case.is_good or (
            type(error) not in (TypeError, ValueError, np.exceptions.AxisError) and not isinstance(error, MemoryError)
        ):
            raise
        out = None
    else:
        if case.function == "evaluate" and case.arguments.get("targets") is None:
            return  # which needs none
        if not case.is_good:
            raise Misbehaved(f"this was to be refused, and returned {result!r}")
        with np.errstate(all="ignore"):
            compare(case, want, result)
            if "out" not in case.arguments:
                compare_family(case)
                compare_linear(case, want)
    for number, (memory, before) in enumerate(zip(case.memories, snapshot, strict=True)):
        after = before
        if out is not None and case.places[id(out)][0] == number:
            expected_memory = np.frombuffer(bytearray(before), np.uint8)
            plain = out.view(np.ndarray)
            np.ndarray(plain.shape, plain.dtype, expected_memory, case.places[id(out)][1], plain.strides)[...] = plain
            after = expected_memory.tobytes()
        if memory.tobytes() != after:
            raise Misbehaved(f"memory {number} has other bytes than before")


def again(arguments: argparse.Namespace, i: int) -> str:
    level = "" if arguments.level is None else f" --level {arguments.level}"
    reals = " --no-long-double" if arguments.no_long_double else ""
    return f"again by --seed {arguments.seed} --start {i} --count 1 --print{level}{reals}"


def levels_of(arguments: argparse.Namespace) -> Sequence[str]:
    return _dispatch.usable_levels() if arguments.level is None else (arguments.level,)


def fuzz(arguments: argparse.Namespace, progress: Any = None) -> int:
    """Returns how many calls were made; ends at the first failure."""
    if arguments.no_long_double:
        REALS.remove("g")
    warnings.simplefilter("error")
    rng = random.Random()
    began = time.perf_counter()
    levels, start = levels_of(arguments), arguments.start
    modules = {level: _dispatch.load(level) for level in levels}
    for i in range(start, start + arguments.count):
        if time.perf_counter() - began > arguments.seconds:
            return i - start
        if progress is not None:
            progress.value = i
        rng.seed((arguments.seed << 40) + i)
        level = levels[i % len(levels)]
        _loss._kernels = modules[level]
        with np.errstate(all="ignore"):
            case = Case(rng)
        snapshot = [memory.tobytes() for memory in case.memories]
        if arguments.print:
            print(case.program(snapshot, level), flush=True)
        try:
            run(case, snapshot)
        except Exception:
            print(case.program(snapshot, level))
            traceback.print_exc(file=sys.stdout)
            print(f"failed; {again(arguments, i)}", flush=True)
            sys.exit(1)
    return int(arguments.count)


def main() -> None:
    parser = argparse.ArgumentParser(description="Random calls, until one of them misbehaves.")
    parser.add_argument("--seed", type=int, default=None, help="a number for the random numbers; a new one by default")
    parser.add_argument("--start", type=int, default=0, help="the number of the first call")
    parser.add_argument("--count", type=int, default=100_000, help="how many calls (default 100000)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--level", choices=_dispatch.usable_levels(), help="one level, instead of all in turn")
    parser.add_argument("--print", action="store_true", help="print each call before it is made")
    parser.add_argument("--here", action="store_true", help="in this process: for a debugger or valgrind")
    parser.add_argument("--no-long-double", action="store_true", help="for valgrind: their padding is undefined")
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1 << 20)
    print(f"seed {arguments.seed}, levels {', '.join(levels_of(arguments))}", flush=True)
    began = time.perf_counter()
    if arguments.here:
        done = fuzz(arguments)
    else:
        # In a process of its own, so that its death can be told, and which call it died of.
        context = multiprocessing.get_context("spawn")
        progress, total = context.RawValue("q", arguments.start), context.RawValue("q", 0)
        process = context.Process(target=_fuzz_and_count, args=(arguments, progress, total))
        process.start()
        process.join()
        if process.exitcode:
            if process.exitcode != 1:  # negative: of a signal
                print(f"died with exit status {process.exitcode}; {again(arguments, progress.value)}")
            sys.exit(1)
        done = total.value
    took = time.perf_counter() - began
    print(f"{done} calls, all as they should be: {done / took:.0f} a second")


def _fuzz_and_count(arguments: argparse.Namespace, progress: Any, total: Any) -> None:
    total.value = fuzz(arguments, progress)


if __name__ == "__main__":
    main()
