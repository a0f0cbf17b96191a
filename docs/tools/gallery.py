"""Writes the gallery: each example is run as a reader would run it, and gets a page with its picture, output and text.

An example that needs a package that is not installed says so and ends; its page then says so, too.
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from pages import write

import softxent as sx

EXAMPLES = Path(__file__).parents[2] / "examples"
INDENTED = re.compile(r"^(?:    .*\n)+", re.MULTILINE)
MISSING = re.compile(r"^(?P<package>[\w.]+) is missing\. To install", re.MULTILINE)


class Example(NamedTuple):
    title: str
    options: tuple[str, ...] = ()  # for a build that does not take minutes
    picture: bool = True


# By the name of the file, in the order of the gallery.
GALLERY = {
    "digits": Example("Handwritten digits: softmax regression"),
    "moons": Example("Two moons: a network with a hidden layer"),
    "softmax_regression": Example(
        "Softmax regression by SciPy's optimisers, beside scikit-learn", ("--documents", "500", "--tolerance", "1e-4")
    ),
    "language_model_head": Example("The head of a language model, beside PyTorch", ("--steps", "3")),
    "boosting": Example("XGBoost and LightGBM with soft labels", ("--rounds", "40", "--rows", "20000")),
    "torch_training": Example("Two networks in PyTorch, trained with both losses", ("--steps", "40")),
    "dask_fit": Example(
        "A fit that outgrows a machine, on Dask", ("--rows", "100000", "--evaluations", "5"), picture=False
    ),
    "vocabulary_parallel": Example("A vocabulary held by several processes", ("--steps", "50"), picture=False),
}
INDEX = """\
# Gallery

Complete programs, run when this site was built. In a checkout, `pip install ".[examples]"` installs what most of them
need, and `--help` shows their options.
"""


def write_gallery(folder: Path) -> None:
    written = {path.stem for path in EXAMPLES.glob("*.py")} - {"command_line"}
    if written != GALLERY.keys():
        raise ValueError(f"not both an example and in the gallery: {', '.join(sorted(written ^ GALLERY.keys()))}")
    entries = []
    for name, example in GALLERY.items():
        picture = f"![]({name}.png) " if run(name, example, folder) else ""
        write(folder / f"{name}.md", page(name, example, folder))
        entries.append(f"- [{picture}{example.title}]({name}.md)")
    contents = "\n".join(["```{toctree}", ":hidden:", "", *GALLERY, "```"])
    write(folder / "index.md", "\n".join([INDEX, *entries, "", contents, ""]))


def run(name: str, example: Example, folder: Path) -> bool:
    """Run an example unless it has been since it was changed; whether there is a picture of it."""
    source, output, picture = EXAMPLES / f"{name}.py", folder / f"{name}.txt", folder / f"{name}.png"
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(source), *example.options]
        done = subprocess.run(
            [*command, "--out", picture.name] if example.picture else command,
            cwd=folder,
            env={**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": str(Path(sx.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and not MISSING.search(done.stderr):
            raise RuntimeError(f"examples/{name}.py failed:\n{done.stderr}")
        output.write_text(done.stdout if done.returncode == 0 else done.stderr, "utf-8")
    return picture.exists()


def fenced(formulas: re.Match[str]) -> str:
    return f"```text\n{textwrap.dedent(formulas[0])}```\n"


def page(name: str, example: Example, folder: Path) -> str:
    source, output = (EXAMPLES / f"{name}.py").read_text("utf-8"), (folder / f"{name}.txt").read_text("utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    parts = [f"# {example.title}", INDENTED.sub(fenced, f"{text}\n").strip()]
    if absent := MISSING.search(output):
        parts.append(f"The example was not run when this page was written, because {absent['package']} was missing.")
    else:
        if example.picture:
            parts.append(f"![The picture that the example draws]({name}.png)")
        command = " ".join(["python", f"examples/{name}.py", *example.options])
        parts.append(f"```console\n$ {command}\n{output.strip()}\n```")
    code = source[source.index('"""', 3) + 3 :].strip()
    return "\n\n".join([*parts, f"## examples/{name}.py", f"```python\n{code}\n```", ""])
