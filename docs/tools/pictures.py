"""The pictures that explain: drawn when the site is built, from what softxent returns, in a light and a dark theme."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import softxent as sx

# Okabe and Ito's colours, told apart with any colour vision; on dark paper the same hues, lighter.
THEMES = {
    "light": {"ink": "#1b1f24", "faint": "#8a9099", "paper": "#ffffff", "blue": "#0072b2", "orange": "#d55e00"},
    "dark": {"ink": "#e6e8eb", "faint": "#858d97", "paper": "#14181e", "blue": "#56b4e9", "orange": "#f5a25d"},
}
Colors = dict[str, str]
HALF_OF_ROOT_3 = np.sqrt(3) / 2
CORNERS = np.array([[0, 0], [1, 0], [0.5, HALF_OF_ROOT_3]])


def save(draw: Callable[[Colors], Figure], theme: str, path: Path) -> None:
    colors = THEMES[theme]
    style: dict[Any, Any] = {
        **dict.fromkeys(
            ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], colors["ink"]
        ),
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "legend.frameon": False,
        "mathtext.fontset": "stix",
        "svg.hashsalt": path.stem,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(style):
        draw(colors).savefig(path, metadata={"Date": None})


def points_of_the_simplex(n: int) -> np.ndarray:
    """Distributions over three classes, on a triangular grid that leaves out the border."""
    return np.array([(i, j, n - i - j) for i in range(1, n) for j in range(1, n - i)]) / n


def draw_simplex(colors: Colors) -> Figure:
    """Steps against the gradient at many predictions: for a label, and for a soft target."""
    figure = Figure(figsize=(9, 4.1), layout="constrained")
    soft = np.array([0.2, 0.5, 0.3])
    for axes, target, title in zip(
        figure.subplots(1, 2), [np.array([0.0, 0.0, 1.0]), soft], ["a label: class 2", "a soft target"], strict=True
    ):
        p = points_of_the_simplex(11)
        _, grad = sx.value_and_grad(np.log(p), np.broadcast_to(target, p.shape), reduction="sum")
        fine = points_of_the_simplex(120)
        losses = sx.cross_entropy(np.log(fine), np.broadcast_to(target, fine.shape), reduction="none")
        axes.tricontour(*(fine @ CORNERS).T, losses, levels=12, colors=colors["faint"], linewidths=0.7, alpha=0.8)
        axes.fill(*CORNERS.T, facecolor="none", edgecolor=colors["ink"], linewidth=1.2)
        axes.quiver(*(p @ CORNERS).T, *(-grad @ CORNERS).T, color=colors["blue"], scale=9, width=0.006)
        axes.plot(*(target @ CORNERS), "o", color=colors["orange"], markersize=10)
        for corner, name, side in zip(
            CORNERS, ("class 0", "class 1", "class 2"), ("top", "top", "bottom"), strict=True
        ):
            away = 0.06 if side == "bottom" else -0.05
            axes.text(corner[0], corner[1] + away, name, ha="center", va=side)
        axes.set(title=title, aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.16, 1.02))
        axes.axis("off")
    return figure


def draw_digits(colors: Colors) -> Figure:
    """Relative errors in float32 against the margin of a right answer: the usual formulas, and softxent's."""
    margins = np.linspace(1, 40, 400)
    logits = np.stack([np.zeros(400), -margins], axis=1).astype(np.float32)
    rest = np.exp(logits[:, 1].astype(np.float64))  # R, so that the loss is log(1 + R) and the gradient -R / (1 + R)
    losses, grads = np.log1p(rest), -rest / (1 + rest)
    exp = np.exp(logits)
    total = exp.sum(axis=1)
    usual_losses, usual_grads = np.log(total), exp[:, 0] / total - np.float32(1)
    own_losses, own_grads = sx.value_and_grad(logits, np.zeros(400, np.int64), reduction="none")

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, true, usual, own, title in (
        (panels[0], losses, usual_losses, own_losses, r"loss: $\log(1 + R)$"),
        (panels[1], grads, usual_grads, own_grads[:, 0], r"gradient at the label: $p_y - 1$"),
    ):
        floor = 2.0**-26  # a smaller error, or none, is drawn here
        for values, color, name in ((usual, "orange", "the usual formula"), (own, "blue", "softxent")):
            errors = np.maximum(np.abs(values / true - 1), floor)
            axes.plot(margins, errors, color=colors[color], linewidth=1.6, label=name)
        axes.axhline(1, color=colors["faint"], linewidth=0.8, linestyle="--")
        axes.text(39, 1.6, "every digit is lost", ha="right", color=colors["faint"])
        axes.set(title=title, xlabel="margin of the right class", yscale="log", ylim=(1e-8, 8))
    panels[0].set_ylabel("relative error in float32")
    panels[0].legend(loc="center right")
    return figure


def draw_sweeps(colors: Colors) -> Figure:
    """A row of twelve logits in the three sweeps of a visit."""
    x = np.array([0.4, 1.3, -0.6, 2.1, 0.9, -1.2, 2.8, 0.1, 1.7, -0.3, 0.6, 1.1])
    label, m = 3, x.max()
    _, grad = sx.value_and_grad(x, label)
    classes = np.arange(x.size)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 3))

    for axes, heights in zip(panels, (x, np.exp(x - m), grad), strict=True):
        axes.bar(classes, heights, color=[colors["orange" if c == label else "blue"] for c in classes], width=0.75)
        axes.axhline(0, color=colors["ink"], linewidth=0.8)
        axes.spines["bottom"].set_visible(False)
        axes.set(xticks=[label], xticklabels=["label y"])
        axes.tick_params(bottom=False)
        axes.margins(y=0.16)
    panels[0].axhline(m, color=colors["faint"], linewidth=1, linestyle="--")
    panels[0].text(-0.5, m, "m", va="bottom", color=colors["faint"])
    panels[0].set_title("1. the largest logit, m\nreads memory")
    panels[1].set_title("2. exponentials and their sum\nreads the cache")
    panels[2].set_title("3. the gradient, p - t\nreads the cache, writes memory")
    return figure


PICTURES: dict[str, Callable[[Colors], Figure]] = {
    "simplex": draw_simplex,
    "digits": draw_digits,
    "sweeps": draw_sweeps,
}
