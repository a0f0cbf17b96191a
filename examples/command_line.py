"""The command-line options of the examples, refused before any work begins where they make no sense."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: a whole number between two limits, which belong to it."""

    def read(text: str) -> int:
        if text.removeprefix("-").isdecimal() and least <= int(text) <= most:
            return int(text)
        limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected a whole number {limits}, got {text!r}")

    return read


def positive(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number < math.inf:
        return number
    raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")


def picture(text: str) -> Path:
    """A type for argparse: a file that a picture can be written to, which is tried."""
    path = Path(text)
    if path.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise argparse.ArgumentTypeError(f"expected a file name that ends in .png or the like, got {text!r}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path


def parser(description: str, picture_name: str, learning_rate: float | None = 0.5) -> argparse.ArgumentParser:
    """The options that all examples have, and the learning rate of those that have one."""
    options = argparse.ArgumentParser(description=description)
    if learning_rate is not None:
        options.add_argument("--learning-rate", type=positive, default=learning_rate)
    options.add_argument("--seed", type=whole_number(0, 2**32 - 2), default=0)
    options.add_argument("--out", type=picture, default=picture_name, help="where to save the picture")
    return options


def loss_text(loss: float) -> str:
    """A loss for a column of ten characters or more, however large it is."""
    return f"{loss:.4f}" if loss < 1e5 else f"{loss:.3e}"
