"""How Sphinx builds the site from the pages in this folder: `python -m sphinx -W docs docs/_build`.

The pages are Markdown that also reads well in the repository. What is written here is what only the site has: pages
made of files at the root of the repository, pictures drawn at build time, formulas as MathML, the reference and the
gallery. Everything generated goes to `docs/generated`. Nothing is fetched from the network, here or by a reader.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx

import softxent as sx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path.insert(0, str(DOCS / "tools"))

import pictures  # noqa: E402
from gallery import write_gallery  # noqa: E402
from pages import write  # noqa: E402
from uses import uses  # noqa: E402

project = "softxent"
author = "The softxent developers"
version = release = sx.__version__
html_title = f"softxent {version}"

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "tools"]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output are not copied

# --- the reference

autosummary_generate = True
default_role = "py:obj"  # `cross_entropy` in a docstring is a link
autodoc_mock_imports = [name for name in ("dask", "torch") if find_spec(name) is None]
autodoc_typehints = "none"  # numpydoc shows what the docstring says
numpydoc_show_class_members = False  # autodoc shows them, in full

# --- the theme

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["softxent.css"]
html_js_files = ["ratios.js"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": html_title},
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_nav_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if address := os.environ.get("SOFTXENT_ADDRESS"):  # of the repository, as in setup.py
    html_theme_options["github_url"] = address
copyright = author
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
WITHOUT_SIDEBAR = ("index", "tutorial", "recipes", "derivations", "migrating", "performance")
html_sidebars: dict[str, list[str]] = {name: [] for name in WITHOUT_SIDEBAR}

# --- pages

# What the results have beside libraries that compute a loss: softxent itself and yardsticks.
NO_LIBRARIES = {"softxent", "softxent-kernel", "copy", "read", "exponentials"}
# The pages that are files at the root of the repository.
OF_THE_ROOT = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
# Pages end their examples with an empty line, for doctest.
END_OF_EXAMPLE = re.compile(r"\n\n```$", re.MULTILINE)
# The first statement of a block of code that needs an empty line at its end, in a Python prompt, and what follows it.
COMPOUND = re.compile(
    r"^( *)>>> (?:@|(?:class|def|for|if|try|while|with)\b).*\n(?:\1\.\.\. .*\n)+(?=\1[^\s`.])", re.MULTILINE
)
# Pages about a module with functions of the same names as softxent's: a name alone is one of the module.
MODULE_OF_PAGE = {"torch": "torch", "distributed": "dask"}
# A comment in a page, where the site shows a picture: <!-- picture: name: what it shows -->
CHART = "<!-- chart of ratios -->"
PICTURE = re.compile(r"<!-- picture: (?P<name>\w+): (?P<caption>.+?) -->", re.DOTALL)


def write_pages_of_the_root(app: Sphinx) -> None:
    for name in OF_THE_ROOT:
        text = (ROOT / f"{name}.md").read_text("utf-8")
        text = re.sub(r"\]\(docs/", "](../", text)
        for other in OF_THE_ROOT:
            text = text.replace(f"]({other}.md", f"]({other.lower()}.md")
        write(GENERATED / f"{name.lower()}.md", text)


def write_examples(app: Sphinx) -> None:
    write_gallery(GENERATED / "gallery")


def draw_pictures(app: Sphinx) -> None:
    for name, draw in pictures.PICTURES.items():
        for theme in pictures.THEMES:
            path = GENERATED / f"{name}-{theme}.svg"
            if not path.exists() or path.stat().st_mtime < Path(pictures.__file__).stat().st_mtime:
                pictures.save(draw, theme, path)


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put pictures in their places, and lead links out of this folder to the pages made from what is there."""

    def shown(found: re.Match[str]) -> str:
        caption = " ".join(found["caption"].split())
        alt = re.sub(r"[$*`]", "", caption)
        return "\n".join(
            f"```{{figure}} /generated/{found['name']}-{theme}.svg\n:alt: {alt}\n:class: dark-light\n"
            f":figclass: only-{theme}\n\n{caption}\n```\n"
            for theme in pictures.THEMES
        )

    text = pastable(END_OF_EXAMPLE.sub("\n```", PICTURE.sub(shown, source[0])))
    if CHART in text:
        text = text.replace(CHART, chart_of_ratios(text))
    for name in OF_THE_ROOT:
        text = text.replace(f"](../{name}.md", f"](generated/{name.lower()}.md")
    source[0] = text.replace("](../examples/)", "](generated/gallery/index.md)")


def pastable(examples: str) -> str:
    """End each compound statement with an empty line, so that a Python prompt takes what the button copies."""
    return COMPOUND.sub(lambda found: f"{found[0]}{found[1]}...\n", examples)


def chart_of_ratios(page: str) -> str:
    """Where ratios.js draws, and what: how many times as fast softxent is, by task, shape and name."""
    (name,) = set(re.findall(r"bench/results/([\w.-]+\.json)\)", page))
    measured: dict[str, dict[str, dict[str, float]]] = {"loss and gradient": {}, "loss only": {}}
    for timing in json.loads((ROOT / "bench" / "results" / name).read_text("utf-8"))["timings"]:
        if timing["dtype"] == "float32" and timing["threads"] == 1:
            task = "loss and gradient" if timing["task"] == "grad" else "loss only"
            shape = timing["shape"].replace("x", " x ").replace("@", ", axis ")
            others = timing["figures"].keys() - NO_LIBRARIES
            measured[task][shape] = {name: timing["figures"][name]["to_softxent"] for name in sorted(others)}
    common = [shape for shape in measured["loss and gradient"] if shape in measured["loss only"]]
    chosen = {task: {shape: ratios[shape] for shape in common} for task, ratios in measured.items()}
    return (
        "softxent is this many times as fast, in float32 on one thread:\n\n```{raw} html\n"
        f'<div class="ratios"><script type="application/json">{json.dumps(chosen)}</script></div>\n```'
    )


def skip_field(app: Sphinx, kind: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """The fields of a named tuple are described by its docstring already."""
    return True if type(member).__name__ == "_tuplegetter" else None


def complete_docstring(app: Sphinx, kind: str, name: str, what: object, options: object, lines: list[str]) -> None:
    """After what it says come the pages, recipes and examples that use what it describes."""
    lines[:] = pastable("\n".join(lines)).split("\n")
    places = uses().get(name)
    if kind in ("class", "function") and places:
        lines += ["", ".. rubric:: Used in", ""]
        for group, links in places.items():
            written = ", ".join(f"`{title} <../../{address}>`__" for address, title in links.items())
            lines.append(f"- {group}: {written}")


def page_of(name: str) -> str:
    return f"generated/api/{name}"


def link_names(app: Sphinx, page: nodes.document, docname: str) -> None:
    """Lead the name of a public function or class, in the text of a page, to its place in the reference."""
    for literal in list(page.findall(nodes.literal)):
        text = literal.astext()
        of_module = f"softxent.{MODULE_OF_PAGE.get(docname)}.{text}"
        of_softxent = re.sub(r"^(?:sx\.|softxent\.|)", "softxent.", text)
        name = next((name for name in (of_module, of_softxent) if page_of(name) in app.env.found_docs), None)
        if name and isinstance(literal.parent, nodes.paragraph | nodes.entry | nodes.strong):
            place = app.builder.get_relative_uri(docname, page_of(name))
            link = nodes.reference(refuri=f"{place}#{name}", internal=True)
            literal.replace_self(link)
            link += literal


# --- formulas


def formula(displayed: bool) -> tuple[Callable[[Any, Any], None], None]:
    """A visitor that writes LaTeX as MathML, which browsers draw by themselves."""
    latex = LatexToMathML()

    def visit(writer: Any, node: nodes.math | nodes.math_block) -> None:
        mathml = latex.convert_with_local_state(node.astext(), displaystyle=displayed)
        if displayed:
            mathml = f'<div class="formula" tabindex="0" role="group" aria-label="formula">{mathml}</div>'
        writer.body.append(mathml)
        raise nodes.SkipNode

    return visit, None


def simplify(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Leave out the roles of references, which screen readers no longer know."""
    context["body"] = re.sub(r' role="(?:doc-biblioentry|list)"', "", context.get("body", ""))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", formula(displayed=False), formula(displayed=True))
    app.connect("builder-inited", write_pages_of_the_root, priority=1)
    app.connect("builder-inited", write_examples, priority=1)
    app.connect("builder-inited", draw_pictures, priority=1)
    app.connect("source-read", read_source)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-docstring", complete_docstring, priority=900)  # after numpydoc
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", simplify)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
