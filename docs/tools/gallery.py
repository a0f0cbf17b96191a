"""How the gallery runs an example: as a reader would, with a file for its picture, which then stands on its page."""

import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst

NAMES = dict[str, Any]


def arguments(settings: NAMES, names: NAMES) -> list[str]:
    """The command line of an example, which runs in its own folder."""
    return ["--out", picture_of(names).name]


def take_picture(block: object, names: NAMES, settings: NAMES) -> str:
    """Show the picture that an example has saved, if it has."""
    saved = picture_of(names)
    if not saved.exists():
        return ""
    place = next(names["image_path_iterator"])
    shutil.move(saved, place)
    return str(figure_rst([place], settings["src_dir"]))


def picture_of(names: NAMES) -> Path:
    return Path(names["src_file"]).with_suffix(".png")
