"""How exact are softxent and its peers? Writes the tables and the plot of docs/numerics.md; its text is edited there.

The rows and their true losses and gradients are those of the tests: tests/contract.py, tests/exact.py. An error is
counted in ulp: the distance between neighbouring numbers of the dtype at the true value. All rows of a case are
computed one by one, without a reduction. The exit status is 1 if softxent breaks its contract.
"""

import functools
import importlib.metadata
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import mpmath
import numpy as np

import softxent as sx
from softxent import _dispatch, _loss

sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("bench", "tests")]
import charts
from contract import (
    DTYPES,
    GRAD_ULP,
    HESS_ULP,
    LARGEST_MARGIN,
    LOG_SOFTMAX_ULP,
    LOSS_ULP,
    LSE_ULP,
    SOFTMAX_ULP,
    Case,
    Row,
    cases,
)
from exact import ENLARGED, Family, Truth, exact, solve, solve_family
from pages import IN_PAGE, best_in_bold, fill, table
from peers import PEERS, SOFTXENT
from problems import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path(__file__).parents[1] / "numerics.md"
PLOT = PAGE.with_name("numerics-margin.png")

QUANTITIES = ("loss", "gradient at the label", "gradient elsewhere")
CONTRACT = dict(zip(QUANTITIES, (LOSS_ULP, GRAD_ULP, GRAD_ULP), strict=True))


def power_of_ten(number: float, decimals: int) -> str:
    significand, exponent = f"{number:.{decimals}e}".split("e")
    return f"{significand}e{int(exponent)}"


@dataclass(frozen=True)
class Error:
    """The worst of some results: by how many ulp it is off, and whether a truth was lost altogether."""

    ulps: float = 0.0
    got: float = 0.0
    true: float = 0.0
    lost: bool = False  # anywhere, a 0 where the truth is not below the smallest subnormal

    @classmethod
    def between(cls, got: Array, truth: Truth) -> "Error":
        if got.size == 0:
            return cls()
        return cls.worst_of(got, truth, truth.error_in_ulp(got))

    @classmethod
    def worst_of(cls, got: Array, truth: Truth, off: Array) -> "Error":
        true = truth.nearest
        worst = int(np.argmax(off))
        lost = (got == 0) & (np.abs(true) >= np.finfo(got.dtype).smallest_subnormal)
        return cls(float(off[worst]), float(got[worst]), float(true[worst]), bool(lost.any()))

    def or_worse(self, other: "Error") -> "Error":
        worse = max(self, other, key=lambda error: error.ulps)
        return Error(worse.ulps, worse.got, worse.true, self.lost or other.lost)

    def __str__(self) -> str:
        if self.got == 0 and self.true != 0 and self.lost:
            return f"0 for {power_of_ten(self.true, 1)}"
        if math.isinf(self.ulps):
            return f"{self.got} for {power_of_ten(self.true, 1)}"
        text = f"{self.ulps:.1f}" if self.ulps < 100 else power_of_ten(self.ulps, 0)
        return text + " †" * self.lost


# Losses of all rows, and the gradient of their sum.
Compute = Callable[[Array, Array], tuple[Any, Any]]


def with_softxent(x: Array, labels: Array) -> tuple[Any, Any]:
    return sx.value_and_grad(x, labels, reduction="none")


def with_numpy(x: Array, labels: Array) -> tuple[Any, Any]:
    rows = np.arange(len(x))
    x = x - x.max(axis=1, keepdims=True)
    e = np.exp(x)
    total = e.sum(axis=1, keepdims=True)
    gradient = e / total
    gradient[rows, labels] -= 1
    return np.log(total[:, 0]) - x[rows, labels], gradient


def with_scipy(x: Array, labels: Array) -> tuple[Any, Any]:
    from scipy.special import log_softmax, softmax

    rows = np.arange(len(x))
    gradient = softmax(x, axis=1)
    gradient[rows, labels] -= 1
    return -log_softmax(x, axis=1)[rows, labels], gradient


def with_scikit_learn(x: Array, labels: Array) -> tuple[Any, Any]:
    from sklearn._loss.loss import HalfMultinomialLoss  # private: it may move or change

    criterion = HalfMultinomialLoss(n_classes=x.shape[1])
    result: tuple[Any, Any] = criterion.loss_gradient(labels.astype(x.dtype), x)
    return result


def with_torch(x: Array, labels: Array) -> tuple[Any, Any]:
    import torch
    from torch.nn.functional import cross_entropy

    logits = torch.from_numpy(x).requires_grad_()
    losses = cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    return losses.detach().numpy(), torch.autograd.grad(losses.sum(), logits)[0].numpy()


@functools.cache
def compiled_by_jax() -> Compute:
    import jax
    import jax.numpy as jnp

    def total(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = -jnp.take_along_axis(jax.nn.log_softmax(x, axis=1), labels[:, None], axis=1)[:, 0]
        return jnp.sum(losses), losses

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))

    def call(x: Array, labels: Array) -> tuple[Any, Any]:
        (_, losses), gradient = compiled(x, labels)
        return losses, gradient

    return call


def with_jax(x: Array, labels: Array) -> tuple[Any, Any]:
    return compiled_by_jax()(x, labels)


COMPUTE: dict[str, Compute] = {
    SOFTXENT.name: with_softxent,
    "torch": with_torch,
    "jax": with_jax,
    "scipy": with_scipy,
    "scikit-learn": with_scikit_learn,
    "numpy": with_numpy,
}


Solved = tuple[Row, Truth, Truth]


def solve_all(case: Case) -> list[Solved]:
    return [(row, *solve(*row)) for row in case.rows]


def measure(compute: Compute, rows: Sequence[Solved], dtype: str) -> dict[str, Error] | None:
    """The worst over all rows of each quantity; None if what computes them refuses."""
    worst = dict.fromkeys(QUANTITIES, Error())
    for (x, label), true_loss, true_gradient in rows:
        try:
            losses, gradients = compute(x[None], np.array([label]))
        except ValueError:
            return None
        loss, gradient = np.asarray(losses, dtype), np.asarray(gradients, dtype)[0]
        others = np.arange(len(x)) != label
        found = (
            Error.between(loss, true_loss),
            Error.between(gradient[[label]], true_gradient[[label]]),
            Error.between(gradient[others], true_gradient[others]),
        )
        worst = {name: worst[name].or_worse(error) for name, error in zip(QUANTITIES, found, strict=True)}
    return worst


Table = dict[str, dict[str, dict[str, Error] | None]]  # by case, then by contender


def measure_levels(dtype: str, rows_of: dict[str, list[Solved]]) -> Table:
    """softxent, by case and level."""
    found: Table = {name: {} for name in rows_of}
    for level in _dispatch.usable_levels():
        with mock.patch.object(_loss, "_kernels", _dispatch.load(level)):
            for name, rows in rows_of.items():
                found[name][level] = measure(with_softxent, rows, dtype)
    return found


def misses(dtype: str, found: Table) -> list[str]:
    """What is not as promised: for each case and quantity the worst level."""
    missed = []
    for case, by_level in found.items():
        for quantity, bound in CONTRACT.items():
            level, error = max(
                ((level, errors[quantity]) for level, errors in by_level.items() if errors),
                key=lambda item: item[1].ulps,
            )
            if not error.ulps <= bound or error.lost:
                figures = f"{error.ulps:.2f} ulp, {error.got!r} for {error.true!r}"
                missed.append(f"{dtype}, {case}, {quantity}: {figures} ({level})")
    return missed


def table_of_levels(found: dict[str, Table]) -> str:
    """The worst of each level over all cases."""
    rows = []
    for level in _dispatch.usable_levels():
        cells = []
        for dtype in DTYPES:
            of_level = [errors for by_level in found[dtype].values() if (errors := by_level[level])]
            cells += [f"{max(errors[quantity].ulps for errors in of_level):.2f}" for quantity in QUANTITIES]
        rows.append([level, *cells])
    rows.append(["**promised**", *[f"{CONTRACT[quantity]:g}" for _ in DTYPES for quantity in QUANTITIES]])
    return table(["level", *[f"{dtype}: {quantity}" for dtype in DTYPES for quantity in QUANTITIES]], rows)


def table_of_peers(quantity: str, found: Table) -> str:
    names = list(next(iter(found.values())))
    rows = [
        [case, *best_in_bold([str(errors[quantity]) if errors else "refused" for errors in by_name.values()])]
        for case, by_name in found.items()
    ]
    return table(["logits", *names], rows)


# Softmax, log-softmax, log-sum-exp and, for label 0, the diagonal of the Hessian of rows of logits.
FAMILY_QUANTITIES = ("softmax", "log_softmax", "logsumexp", "diagonal of the Hessian")
ComputeFamily = Callable[[Array], Sequence[Any]]


def family_contract(dtype: str) -> dict[str, float]:
    bounds = (SOFTMAX_ULP, LOG_SOFTMAX_ULP[dtype], LSE_ULP, HESS_ULP)
    return dict(zip(FAMILY_QUANTITIES, bounds, strict=True))


def family_of_softxent(x: Array) -> Sequence[Any]:
    hess = sx.value_grad_and_hess(x, np.zeros(len(x), np.int64), reduction="sum")[2]
    return sx.softmax(x), sx.log_softmax(x), sx.logsumexp(x), hess


def family_of_numpy(x: Array) -> Sequence[Any]:
    m = x.max(axis=1, keepdims=True)
    e = np.exp(x - m)
    total = e.sum(axis=1, keepdims=True)
    p = e / total
    return p, x - m - np.log(total), (m + np.log(total))[:, 0], p * (1 - p)


def family_of_scipy(x: Array) -> Sequence[Any]:
    from scipy import special

    p = special.softmax(x, axis=1)
    return p, special.log_softmax(x, axis=1), special.logsumexp(x, axis=1), p * (1 - p)


def family_of_scikit_learn(x: Array) -> Sequence[Any]:
    from sklearn._loss.loss import HalfMultinomialLoss  # private: it may move or change

    criterion = HalfMultinomialLoss(n_classes=x.shape[1])
    return None, None, None, criterion.gradient_hessian(np.zeros(len(x), x.dtype), x)[1]


def family_of_torch(x: Array) -> Sequence[Any]:
    import torch

    logits = torch.from_numpy(x)
    p = torch.softmax(logits, 1)
    return [t.numpy() for t in (p, torch.log_softmax(logits, 1), torch.logsumexp(logits, 1), p * (1 - p))]


@functools.cache
def family_compiled_by_jax() -> ComputeFamily:
    import jax

    def family(x: Any) -> Sequence[Any]:
        p = jax.nn.softmax(x, axis=1)
        return p, jax.nn.log_softmax(x, axis=1), jax.nn.logsumexp(x, axis=1), p * (1 - p)

    compiled: ComputeFamily = jax.jit(family)
    return compiled


FAMILY: dict[str, ComputeFamily] = {
    SOFTXENT.name: family_of_softxent,
    "torch": family_of_torch,
    "jax": lambda x: family_compiled_by_jax()(x),
    "scipy": family_of_scipy,
    "scikit-learn": family_of_scikit_learn,
    "numpy": family_of_numpy,
}


def error_of_lse(got: Array, truth: Truth, x: Array) -> Error:
    """In ulp of the largest logit or of the truth, whichever is larger."""
    spacing = max(np.spacing(np.abs(x.max())), np.spacing(np.abs(truth.nearest[0]).astype(x.dtype)))
    return Error.worst_of(got, truth, truth.distance(got) / np.ldexp(float(spacing), ENLARGED))


def measure_family(compute: ComputeFamily, rows: Sequence[tuple[Array, Family]]) -> dict[str, Error | None]:
    """The worst over all rows of each quantity; None for what is not computed."""
    worst: dict[str, Error | None] = dict.fromkeys(FAMILY_QUANTITIES, Error())
    for x, true in rows:
        try:
            results = compute(x[None])
        except (TypeError, ValueError):  # scikit-learn wants two classes
            continue
        for name, result, truth in zip(
            FAMILY_QUANTITIES, results, (true.softmax, true.log_softmax, true.lse, true.hess), strict=True
        ):
            so_far = worst[name]
            if result is None or so_far is None:
                worst[name] = None
                continue
            got = np.asarray(result, x.dtype).reshape(-1)
            error = error_of_lse(got, truth, x) if name == "logsumexp" else Error.between(got, truth)
            worst[name] = so_far.or_worse(error)
    return worst


FamilyTable = dict[str, dict[str, Error | None]]  # by contender


def measure_family_of(names: Sequence[str], dtype: str) -> tuple[FamilyTable, list[str]]:
    """The worst of each contender over all rows, of softxent over all levels too; and what is not as promised."""
    distinct = {row.logits.tobytes(): row.logits for case in cases(dtype) for row in case.rows}
    rows = [(logits, solve_family(logits)) for logits in distinct.values()]
    found = {name: measure_family(FAMILY[name], rows) for name in names}
    own, missed = found[SOFTXENT.name], []
    for level in _dispatch.usable_levels():
        with mock.patch.object(_loss, "_kernels", _dispatch.load(level)):
            of_level = measure_family(family_of_softxent, rows)
        for name, bound in family_contract(dtype).items():
            error = of_level[name] or Error()
            own[name] = (own[name] or Error()).or_worse(error)
            if not error.ulps <= bound or error.lost:
                missed.append(f"{dtype}, {name}: {error.ulps:.2f} ulp, {error.got!r} for {error.true!r} ({level})")
    return found, missed


def table_of_family(names: Sequence[str], found: dict[str, FamilyTable]) -> str:
    rows = []
    for dtype in DTYPES:
        for quantity, bound in family_contract(dtype).items():
            errors = [found[dtype][name][quantity] for name in names]
            cells = best_in_bold(["-" if error is None else str(error) for error in errors])
            rows.append([dtype, quantity, f"{bound:g}", *cells])
    return table(["dtype", "result", "promised", *names], rows)


def vjp_by_formula(name: str) -> Callable[[Array, Array], Any]:
    def vjp(x: Array, u: Array) -> Any:
        p = FAMILY[name](x)[0]
        return p * (u - (p * u).sum(axis=1, keepdims=True))

    return vjp


def vjp_of_torch(x: Array, u: Array) -> Any:
    import torch

    logits = torch.from_numpy(x).requires_grad_()
    return torch.autograd.grad(torch.softmax(logits, 1), logits, torch.from_numpy(u))[0].numpy()


def vjp_of_jax(x: Array, u: Array) -> Any:
    import jax

    return jax.vjp(functools.partial(jax.nn.softmax, axis=1), x)[1](u)[0]


VJP: dict[str, Callable[[Array, Array], Any]] = {
    SOFTXENT.name: sx.softmax_vjp,
    "torch": vjp_of_torch,
    "jax": vjp_of_jax,
    "scipy": vjp_by_formula("scipy"),
    "numpy": vjp_by_formula("numpy"),
}


class Example(NamedTuple):
    """A result at one class of a row of float32 logits; that of `softmax_vjp` if there is a cotangent."""

    quantity: str
    logits: Sequence[float]
    c: int = 0
    cotangent: Sequence[float] = ()

    def truth(self) -> float:
        row = exact(np.array(self.logits, np.float32), 0)
        p = row.p[self.c]
        if self.cotangent:
            u = [mpmath.mpf(float(np.float32(value))) for value in self.cotangent]
            return float(p * mpmath.fsum(a * (u[self.c] - b) for a, b in zip(row.p, u, strict=True)))
        return float((p, mpmath.log(p), row.lse, p * (1 - p))[FAMILY_QUANTITIES.index(self.quantity)])

    def result(self, name: str) -> float:
        x = np.array([self.logits], np.float32)
        if self.cotangent:
            found = VJP[name](x, np.array([self.cotangent], np.float32)) if name in VJP else None
        else:
            found = FAMILY[name](x)[FAMILY_QUANTITIES.index(self.quantity)]
        return math.nan if found is None else float(np.asarray(found).reshape(-1)[self.c])


EXAMPLES = (
    Example("softmax", (0, -100), c=1),
    Example("log_softmax", (0, -18, -20)),
    Example("logsumexp", (0, -18, -20)),
    Example("diagonal of the Hessian", (0, -18, -20)),
    Example("softmax_vjp, constant cotangent", (0, -1, -3), cotangent=(0.1, 0.1, 0.1)),
    Example("softmax_vjp, cotangent [1, 2, 0]", (0, -18, -20), cotangent=(1, 2, 0)),
)


def table_of_examples(names: Sequence[str]) -> str:
    rows = []
    for example in EXAMPLES:
        with mpmath.workdps(50):
            truth = example.truth()
        numbers = [example.result(name) for name in names]
        cells = best_in_bold(["-" if math.isnan(number) else f"{number:.5g}" for number in numbers], truth)
        place = "" if example.quantity == "logsumexp" else f", class {example.c}"
        rows.append([f"{example.quantity} of {list(example.logits)}{place}", f"{truth:.5g}", *cells])
    return table(["result", "truth", *names], rows)


class HalfCase(NamedTuple):
    dtype: str
    n_rows: int
    n_classes: int


HALF_CASES = (
    HalfCase("float16", 1, 131_072),
    HalfCase("float16", 60_000, 3),
    HalfCase("float16", 70_000, 3),
    HalfCase("bfloat16", 300, 3),
    HalfCase("bfloat16", 100_000, 3),
)


def half_softxent(case: HalfCase) -> tuple[float, float]:
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if case.dtype == "bfloat16" else np.float16)
    logits = np.zeros((case.n_rows, case.n_classes), dtype)
    loss, gradient = sx.value_and_grad(logits, np.zeros(case.n_rows, np.int64))
    return loss, float(gradient[0, -1])


def half_torch(case: HalfCase) -> tuple[float, float]:
    import torch
    from torch.nn.functional import cross_entropy

    logits = torch.zeros(case.n_rows, case.n_classes, dtype=getattr(torch, case.dtype), requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(case.n_rows, dtype=torch.int64))
    return float(loss.detach()), float(torch.autograd.grad(loss, logits)[0][0, -1])


def half_jax(case: HalfCase) -> tuple[float, float]:
    import jax
    import jax.numpy as jnp

    def loss(x: jax.Array) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(x, axis=1)[:, 0])

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((case.n_rows, case.n_classes), case.dtype))
    return float(value), float(gradient[0, -1])


HALF = {SOFTXENT.name: half_softxent, "torch": half_torch, "jax": half_jax}


def table_of_halves(names: Sequence[str]) -> str:
    rows = []
    for case in HALF_CASES:
        results = [(math.log(case.n_classes), 1 / case.n_classes / case.n_rows)]
        cells = []
        for name in names:
            try:
                cells.append(HALF[name](case))
            except TypeError:  # a version without these dtypes
                cells.append((math.nan, math.nan))
        for i, quantity in enumerate(("mean loss", "gradient off the label")):
            truth, *numbers = [f"{result[i]:.4g}" for result in results + cells]
            shape = f"{case.n_rows} x {case.n_classes}"
            rows.append([case.dtype, shape, quantity, truth, *best_in_bold(numbers, float(truth))])
    return table(["dtype", "rows x classes", "quantity", "truth", *names], rows)


STYLES: dict[str, dict[str, Any]] = charts.STYLES | {
    SOFTXENT.name: {"color": "black", "linewidth": 2.4, "zorder": 5},
    "numpy": {**charts.STYLES["numpy"], "linestyle": (0, (5, 3))},
}
BINS, ROWS_OF_BIN = 60, 8


def draw(names: Sequence[str]) -> None:
    """Relative error against the margin: a panel for the loss and the label's gradient (across) and dtype (down)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(11, 8), sharex="row", sharey="row", layout="constrained")
    for panels, dtype in zip(grid, DTYPES, strict=True):
        edges = np.geomspace(1, LARGEST_MARGIN[dtype], BINS * ROWS_OF_BIN + 1)[:-1]
        logits = np.stack([edges, 0 * edges, 0 * edges - 1], axis=1).astype(dtype)
        labels = np.zeros(len(logits), np.int64)
        # Of all truths, loss and gradient at the label.
        solved = [solve(x, 0) for x in logits]
        truths = [Truth.joined(pair[i][:1] for pair in solved) for i in (0, 1)]
        for name in names:
            losses, gradients = COMPUTE[name](logits, labels)
            results = (np.asarray(losses, np.float64), np.asarray(gradients, np.float64)[:, 0])
            for axes, got, truth in zip(panels, results, truths, strict=True):
                draw_error(axes, name, edges, truth.distance(got) / np.abs(truth.high), dtype)
        for axes, quantity, truth in zip(panels, QUANTITIES[:2], truths, strict=True):
            smallest = edges[np.abs(truth.nearest) < np.finfo(dtype).tiny]
            axes.axvspan(smallest[0], smallest[-1], color="0.9", label="the truth is subnormal")
            axes.set(xscale="log", yscale="log", title=f"{quantity}, {dtype}", xlabel="margin of the true class")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("relative error")
    lines = {line.get_label(): line for line in grid[0, 0].get_legend_handles_labels()[0]}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=len(lines), frameon=False)
    figure.suptitle("Logits [margin, 0, -1], label 0: error 1 means that the result is 0")
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_error(axes: "Axes", name: str, margins: Array, error: Array, dtype: str) -> None:
    worst = error.reshape(BINS, ROWS_OF_BIN).max(axis=1)
    lowest = float(np.finfo(dtype).eps) / 100  # no error at all has no place on the axis
    place = list(COMPUTE).index(name)
    axes.plot(
        margins[ROWS_OF_BIN - 1 :: ROWS_OF_BIN],
        np.maximum(worst, lowest),
        **{"label": name, "markevery": (place, len(COMPUTE)), "markersize": 5, "linewidth": 1.2, **STYLES[name]},
    )


def versions(names: Sequence[str]) -> str:
    distributions = ["softxent", *[name for name in names if name != SOFTXENT.name], "ml_dtypes", "mpmath"]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)


def values(
    names: Sequence[str],
    levels: dict[str, Table],
    peers: dict[str, Table],
    family: dict[str, FamilyTable],
    missed: Sequence[str],
) -> dict[str, str]:
    """What stands at the named places of the page."""
    usable = ", ".join(f"`{level}`" for level in _dispatch.usable_levels())
    verdict = "All results are within the contract, and no result is lost to 0."
    if missed:
        verdict = "\n".join(["**Outside the contract:**\n", *[f"- {miss}" for miss in missed]])
    tables = {
        f"{dtype}_{quantity.replace(' ', '_')}": table_of_peers(quantity, peers[dtype])
        for dtype in DTYPES
        for quantity in QUANTITIES
    }
    return {
        "versions": f"Measured with {versions(names)}.\nsoftxent's levels on this CPU: {usable}.",
        "levels": f"{table_of_levels(levels)}\n\n{verdict}",
        **tables,
        "family": table_of_family(names, family),
        "examples": table_of_examples(names),
        "halves": table_of_halves([name for name in names if name in HALF]),
    }


def main() -> int:
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")
    installed = {peer.name for peer in PEERS if peer.installed}
    names = [name for name in COMPUTE if name == SOFTXENT.name or name in installed]

    levels: dict[str, Table] = {}
    peers: dict[str, Table] = {}
    family: dict[str, FamilyTable] = {}
    missed = []
    for dtype in DTYPES:
        rows_of = {case.name: solve_all(case) for case in cases(dtype)}
        levels[dtype] = measure_levels(dtype, rows_of)
        missed += misses(dtype, levels[dtype])
        peers[dtype] = {
            case: {name: measure(COMPUTE[name], rows, dtype) for name in names} for case, rows in rows_of.items()
        }
        family[dtype], missed_by_family = measure_family_of(names, dtype)
        missed += missed_by_family
    print(table_of_levels(levels))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(fill(page, IN_PAGE, values(names, levels, peers, family, missed)), encoding="utf-8")
    draw(names)
    print("\n".join(["missed:", *missed]) if missed else "The contract holds.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
