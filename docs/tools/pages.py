"""What the writers of pages share: named places in a text, tables in Markdown, files written only if they change."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# {{name}} in a template.
IN_TEMPLATE = re.compile(r"(?P<before>)\{\{(?P<name>\w+)\}\}(?P<after>)")
# In a page that is its own template, what stands between two comments.
IN_PAGE = re.compile(r"(?P<before><!-- begin: (?P<name>\w+) -->\n\n).*?(?P<after>\n\n<!-- end -->)", re.DOTALL)


# <!-- part: name --> ... <!-- end of part --> in a template.
PART = re.compile(r"<!-- part: (?P<name>\w+) -->\n(?P<text>.*?)<!-- end of part -->\n", re.DOTALL)


def choose_parts(text: str, wanted: Mapping[str, bool]) -> str:
    """Leave out the parts of a template that are not wanted."""
    return PART.sub(lambda found: found["text"] if wanted[found["name"]] else "", text)


def fill(text: str, place: re.Pattern[str], values: Mapping[str, str]) -> str:
    """Put each value at the places of its name."""
    names = {found["name"] for found in place.finditer(text)}
    if names != values.keys():
        raise ValueError(f"not both a place and a value: {', '.join(sorted(names ^ values.keys()))}")
    return place.sub(lambda found: found["before"] + values[found["name"]] + found["after"], text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def best_in_bold(cells: Sequence[str], truth: float = 0.0) -> list[str]:
    """Those of these cells whose number is nearest to the truth become bold, if any is a finite number."""

    def distance(cell: str) -> float:
        try:
            return abs(float(cell) - truth)
        except ValueError:
            return math.inf

    distances = [distance(cell) for cell in cells]
    nearest = min((each for each in distances if math.isfinite(each)), default=None)
    return [f"**{cell}**" if each == nearest else cell for cell, each in zip(cells, distances, strict=True)]


def write(path: Path, text: str) -> None:
    """Write a file unless it says that already, so that what is made from it need not be made again."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
