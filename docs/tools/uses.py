"""Where each public name is used: pages of the guide, recipes, and examples of the gallery."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from doctest import DocTestParser
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gallery import EXAMPLES, GALLERY

DOCS = Path(__file__).parents[1]
HEADING = re.compile(r"^(?=## )", re.MULTILINE)


class Place(NamedTuple):
    group: str
    title: str
    address: str  # from the top of the site
    code: str


@cache
def uses() -> dict[str, dict[str, dict[str, str]]]:
    """By the full name, then by the group of places: titles by their addresses."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for place in [*in_pages(), *in_recipes(), *in_gallery()]:
        for name in names_of(ast.parse(place.code)):
            found[name][place.group][place.address] = place.title
    return found


def in_pages() -> Iterator[Place]:
    for page in sorted(DOCS.glob("*.md")):
        if page.stem not in ("index", "recipes"):
            text = page.read_text("utf-8")
            yield Place("Guide", title_of(text).partition(":")[0], f"{page.stem}.html", code_of(text))


def in_recipes() -> Iterator[Place]:
    head, *sections = HEADING.split((DOCS / "recipes.md").read_text("utf-8"))
    for section in sections:
        title = title_of(section)
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        yield Place("Recipes", title, f"recipes.html#{anchor}", code_of(head) + code_of(section))


def in_gallery() -> Iterator[Place]:
    for name, example in GALLERY.items():
        source = (EXAMPLES / f"{name}.py").read_text("utf-8")
        yield Place("Gallery", example.title, f"generated/gallery/{name}.html", source)


def title_of(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ")


def code_of(text: str) -> str:
    return "".join(example.source for example in DocTestParser().get_examples(text))


def names_of(program: ast.Module) -> set[str]:
    """What it takes from softxent, by its full name."""
    meaning: dict[str, str] = {}
    for node in ast.walk(program):
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else []:
            if isinstance(node, ast.ImportFrom):
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            else:
                top = alias.name.partition(".")[0]
                meaning[alias.asname or top] = alias.name if alias.asname else top
    dotted = (ast.unparse(node) for node in ast.walk(program) if isinstance(node, ast.Name | ast.Attribute))
    parts = (name.partition(".") for name in dotted)
    return {f"{meaning[first]}{dot}{rest}" for first, dot, rest in parts if first in meaning}
