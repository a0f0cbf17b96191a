"""What is measured: shapes, cases, and the cases of a full run, by the sections of docs/performance.md.

A shape is written as rows x classes, `1024x1000`, or, where the classes do not lie along the last axis, as all axes and
which of them has the classes, counted from 0: `8x21x256x256@1`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal, NamedTuple, get_args

# The mean loss with its gradient, and without. Then the softmax family, loss and gradient with the diagonal of the
# Hessian, and the product of the Hessian with a vector, from logits and from probabilities that were kept.
Task = Literal["grad", "forward", "softmax", "log_softmax", "logsumexp", "hess", "hvp", "hvp_of_probs"]

TASKS: tuple[Task, ...] = get_args(Task)
LOSS_TASKS, FAMILY_TASKS = TASKS[:2], TASKS[2:]
BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
DTYPES = tuple(BYTES)


class Shape(NamedTuple):
    axes: tuple[int, ...]
    class_axis: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        found = re.fullmatch(r"([1-9]\d*(?:x[1-9]\d*)+)(?:@(\d+))?", text)
        axes = tuple(map(int, found[1].split("x"))) if found else ()
        if not found or (found[2] is None and len(axes) != 2):
            raise ValueError(
                f"{text!r} is neither rows x classes, such as 1024x1000, nor axes@class axis, as 8x21x64@1"
            )
        shape = cls(axes, len(axes) - 1 if found[2] is None else int(found[2]))
        if shape.class_axis >= len(axes) or (len(axes) > 2 and shape.class_axis == len(axes) - 1):
            raise ValueError(f"{text!r}: a class axis that is the last one is written as rows x classes")
        return shape

    @property
    def is_matrix(self) -> bool:
        """Rows x classes."""
        return len(self.axes) == 2 and self.class_axis == 1

    @property
    def size(self) -> int:
        return math.prod(self.axes)

    @property
    def n_classes(self) -> int:
        return self.axes[self.class_axis]

    @property
    def n_rows(self) -> int:
        return self.size // self.n_classes

    @property
    def of_labels(self) -> tuple[int, ...]:
        return self.axes[: self.class_axis] + self.axes[self.class_axis + 1 :]

    @property
    def title(self) -> str:
        return " x ".join(map(str, self.axes)) + ("" if self.is_matrix else f", axis {self.class_axis}")

    def __str__(self) -> str:
        return "x".join(map(str, self.axes)) + ("" if self.is_matrix else f"@{self.class_axis}")


@dataclass(frozen=True)
class Case:
    task: Task
    shape: Shape
    dtype: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.task}  {self.shape.title}  {self.dtype}  {count_threads(self.threads)}"

    def flat(self) -> dict[str, object]:
        return {"task": self.task, "shape": str(self.shape), "dtype": self.dtype, "threads": self.threads}

    @classmethod
    def unflat(cls, fields: Mapping[str, Any]) -> "Case":
        return cls(fields["task"], Shape.parse(fields["shape"]), fields["dtype"], fields["threads"])


def count_threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, text.split()))


SHAPES = shapes(
    "1024x1000 128x1000 256x50257 64x128256 8x1000000 200000x10 200000x3 200000x32 200000x64 200000x100"
    " 8x21x256x256@1 8x1000x4096@1 1x1000000 2x128256 32x10 1x10 1x1000"
)
QUICK_SHAPES = shapes("1024x1000 128x1000 32x10")
FAMILY_SHAPES = shapes("1024x1000 256x50257 200000x10 20000x64")
DTYPE_SHAPES = shapes("1024x1000 256x50257 200000x10 2x21x256x256@1")
THREAD_SHAPES = shapes("1024x1000 256x50257 64x128256 8x1000000 200000x10 200000x100 8x21x256x256@1 1x1000000")
MEMORY_SHAPES = shapes("1024x1000 256x50257 8x1000000 200000x10 8x21x256x256@1")
SWEEP_LOGITS = 2**20
CLASS_SWEEP = [Shape((SWEEP_LOGITS >> power, 1 << power), 1) for power in range(1, 18, 2)]
ROW_SWEEP_CLASSES = 10
ROW_SWEEP = [Shape((10**power, ROW_SWEEP_CLASSES), 1) for power in range(7)]


def grid(
    tasks: Iterable[Task], of_shapes: Iterable[Shape], dtypes: Iterable[str] = DTYPES[:1], threads: Iterable[int] = (1,)
) -> list[Case]:
    """All combinations; those with the same number of threads stand together."""
    return [Case(task, shape, dtype, count) for count, task, dtype, shape in product(threads, tasks, dtypes, of_shapes)]


def full_run(n_cpus: int) -> list[Case]:
    """Everything that the page shows, memory apart."""
    one_thread = chain(
        grid(LOSS_TASKS, SHAPES),
        grid(LOSS_TASKS, DTYPE_SHAPES, DTYPES[1:]),
        grid(["grad"], [*CLASS_SWEEP, *ROW_SWEEP]),
        grid(FAMILY_TASKS, FAMILY_SHAPES),
    )
    return [*dict.fromkeys(one_thread), *grid(["grad"], THREAD_SHAPES, threads=thread_counts(n_cpus))]


def thread_counts(n_cpus: int) -> Sequence[int]:
    """2, 4, 8 and so on, and as many as there are CPUs."""
    return sorted({1 << power for power in range(1, n_cpus.bit_length())} | {n_cpus} - {1})


def full_memory_run() -> list[Case]:
    return grid(LOSS_TASKS, MEMORY_SHAPES)
