"""The charts of docs/performance.md: one style for each name, so that charts with different peers can be compared."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cases import (
    CLASS_SWEEP,
    ROW_SWEEP,
    ROW_SWEEP_CLASSES,
    SWEEP_LOGITS,
    THREAD_SHAPES,
    Case,
    Shape,
    count_threads,
    grid,
)
from measure import Timing
from peers import COPY, PEERS, SOFTXENT, SOFTXENT_KERNEL, SOFTXENT_ONE_THREAD
from resultset import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

TASK_TITLES = {
    "grad": "loss and gradient",
    "forward": "loss only",
    "softmax": "softmax",
    "log_softmax": "log-softmax",
    "logsumexp": "log-sum-exp",
    "hess": "loss, gradient and diagonal",
    "hvp": "Hessian-vector product",
    "hvp_of_probs": "the same from kept probabilities",
}
DPI = 100
FONTS: dict[Any, Any] = {"font.size": 12, "axes.titlesize": 13, "figure.titlesize": 14, "lines.markersize": 6}

# Okabe and Ito's colours, told apart with any colour vision; the markers and dashes do it without colour.
STYLES: dict[str, dict[str, Any]] = {
    SOFTXENT.name: {"color": "black", "marker": "o", "linewidth": 2.8, "zorder": 5},
    SOFTXENT_ONE_THREAD.name: {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": ":"},
    SOFTXENT_KERNEL.name: {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": ":"},
    COPY.name: {"color": "0.55", "linewidth": 2.2, "linestyle": "--", "label": "np.copyto(out, logits)"},
    "numpy": {"color": "#E69F00", "marker": "v"},
    "scipy": {"color": "#009E73", "marker": "D", "linestyle": "-."},
    "scikit-learn": {"color": "#CC79A7", "marker": "P", "linestyle": ":"},
    "torch": {"color": "#D55E00", "marker": "s"},
    "jax": {"color": "#0072B2", "marker": "^", "linestyle": "--"},
    "onnxruntime": {"color": "#56B4E9", "marker": "X"},
    "onnxruntime-softmax-only": {"color": "#56B4E9", "marker": "X", "linestyle": "-."},
}
DRAWN = [SOFTXENT.name, SOFTXENT_ONE_THREAD.name, SOFTXENT_KERNEL.name, COPY.name, *[peer.name for peer in PEERS]]


def draw_class_sweep(found: Results, path: Path) -> None:
    """Time per logit against the number of classes."""
    timings = found.of(*grid(["grad"], CLASS_SWEEP))
    figure, panels = start(1, 1)
    draw_times(panels[0], timings, lambda shape: shape.n_classes)
    panels[0].set(title=title(timings[0].case), xlabel="number of classes C")
    figure.suptitle(f"N x C = {SWEEP_LOGITS} logits, {versions(found)}")
    finish(figure, panels, path)


def draw_row_sweep(found: Results, path: Path) -> None:
    """Time per logit against the number of rows."""
    timings = found.of(*grid(["grad"], ROW_SWEEP))
    figure, panels = start(1, 1)
    draw_times(panels[0], timings, lambda shape: shape.n_rows)
    panels[0].set(title=f"{title(timings[0].case)}, C = {ROW_SWEEP_CLASSES}", xlabel="number of rows N")
    figure.suptitle(versions(found))
    finish(figure, panels, path)


def draw_times(axes: "Axes", timings: Sequence[Timing], x_of: Callable[[Shape], int]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for name in DRAWN:
        times = {x_of(t.case.shape): t.ns_per_logit(name) for t in timings if name in t.figures}
        if times:
            axes.plot(list(times), list(times.values()), **{"label": name, **STYLES[name]})
    ticks = unique(x_of(timing.case.shape) for timing in timings)
    axes.set(xscale="log", yscale="log", ylabel="ns per logit")
    axes.set_xticks(ticks, [f"{tick:_}".replace("_", " ") for tick in ticks], rotation=45)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


def draw_threads(found: Results, path: Path) -> None:
    """How many times as fast as softxent on one thread, against the number of threads: a panel for each shape."""
    all_threads = sorted({timing.case.threads for timing in found.timings})
    of_chart = found.of(*grid(["grad"], THREAD_SHAPES, threads=all_threads))
    shapes = unique(t.case.shape for t in of_chart if SOFTXENT.name in t.figures)
    n_columns = min(4, len(shapes))
    figure, panels = start(-(-len(shapes) // n_columns), n_columns, panel=(2.9, 3.0))
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    for axes, shape in zip(panels, shapes, strict=False):
        timings = [timing for timing in of_chart if timing.case.shape == shape]
        for name in [SOFTXENT.name, *[peer.name for peer in PEERS]]:
            speeds = {t.case.threads: speed for t in timings if (speed := speed_to_one_thread(t, name))}
            if speeds:
                axes.plot(list(speeds), list(speeds.values()), **{"label": name, **STYLES[name]})
        axes.set(title=shape.title.replace(", ", ",\n"), xlabel="threads")
        axes.set_xticks(unique(timing.case.threads for timing in timings))
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # which all share, so not before the last line is in
    figure.supylabel("speed (softxent on 1 thread = 1)", fontsize=FONTS["font.size"])
    figure.suptitle(f"{TASK_TITLES['grad']}, {versions(found)}")
    finish(figure, panels, path)


def speed_to_one_thread(timing: Timing, name: str) -> float | None:
    """Relative to softxent on one thread in the same run; None if either has no figure."""
    base = SOFTXENT.name if timing.case.threads == 1 else SOFTXENT_ONE_THREAD.name
    own, one = timing.to_softxent(name), timing.to_softxent(base)
    return one / own if own and one else None


def draw_memory(found: Results, path: Path) -> None:
    """Bars: memory beyond inputs and results in units of the logits, a panel for each task."""
    tasks = unique(memory.case.task for memory in found.memory)
    n_shapes = len(unique(memory.case.shape for memory in found.memory))
    figure, panels = start(1, len(tasks), panel=(4.8, 1.7 * n_shapes))
    for axes, task in zip(panels, tasks, strict=True):
        of_task = [memory for memory in found.memory if memory.case.task == task]
        names = [name for name in DRAWN if any(name in memory.used for memory in of_task)]
        height = 0.85 / len(names)
        for place, name in enumerate(names):
            at = [row + place * height for row, memory in enumerate(of_task) if name in memory.used]
            sizes = [memory.used[name] / memory.logits_bytes for memory in of_task if name in memory.used]
            bars = axes.barh(at, sizes, height, color=STYLES[name]["color"], label=name)
            axes.bar_label(bars, [f"{size:.2f}" for size in sizes], padding=3, fontsize=10)
        axes.set_yticks(
            [row + 0.4 for row in range(len(of_task))],
            [memory.case.shape.title.replace(", ", ",\n") for memory in of_task],
        )
        axes.margins(x=0.15)
        axes.set(title=TASK_TITLES[task], xlabel="memory, in sizes of the logits")
    panels[0].invert_yaxis()  # all share it
    figure.suptitle(f"Beyond inputs and results, {versions(found)}")
    finish(figure, panels, path)


def start(n_rows: int, n_columns: int, panel: tuple[float, float] = (6.5, 4.8)) -> "tuple[Figure, list[Axes]]":
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(FONTS)
    import matplotlib.pyplot as plt

    size = (0.4 + panel[0] * n_columns, 2 + panel[1] * n_rows)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    return figure, list(grid.flat)


def finish(figure: "Figure", panels: "Sequence[Axes]", path: Path) -> None:
    import matplotlib.pyplot as plt

    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",  # not beside the panels, so that letters are large enough on a phone
        ncols=int(figure.get_figwidth() / 2.2),
        columnspacing=1.0,
        handletextpad=0.4,
        frameon=False,
    )
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def title(case: Case) -> str:
    return f"{TASK_TITLES[case.task]}, {case.dtype}, {count_threads(case.threads)}"


def versions(found: Results) -> str:
    return f"softxent {found.facts['versions']['softxent']}, {found.facts['simd_level']}, {found.facts['cpu']}"


def unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


# By the end of the chart's file name: performance-<name>.png.
CHARTS: dict[str, Callable[[Results, Path], None]] = {
    "classes": draw_class_sweep,
    "rows": draw_row_sweep,
    "threads": draw_threads,
    "memory": draw_memory,
}
