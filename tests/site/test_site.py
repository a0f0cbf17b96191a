"""The built site as a reader meets it: in a browser, offline, on a desktop and on a phone, in a light and a dark theme.

`python -m sphinx -W docs docs/_build` builds it. Each page is opened from its file, as anyone can who has the folder.
"""

import ast
import os
import re
import shutil
from codeop import compile_command
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from support import ROOT

import softxent as sx

SITE = ROOT / "docs" / "_build"
PAGES = sorted(page for page in SITE.rglob("*.html") if "_static" not in page.parts)
BROWSER = os.environ.get("SOFTXENT_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
SWITCHES = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"]
MOMENT = 300_000  # milliseconds: a machine may be busy
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}

pytestmark = pytest.mark.site

# Of axe: style sheets are not loaded again, and only faults are described in full. Contrast takes most of the time and
# depends on the kind of page and the theme, not on what a page says.
QUICK = {"preload": False, "resultTypes": ["violations"]}
WITHOUT_CONTRAST = {**QUICK, "rules": {"color-contrast": {"enabled": False}}}
OF_EACH_KIND = {"index", "tutorial", "compiled", "how-it-works", "moons", "softxent.hvp", "changelog", "search"}

# What keeps a page from being seen as it should, in words.
FAULTS = """() => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`${root.scrollWidth} wide on ${root.clientWidth}`);
  for (const image of document.images)
    if (image.checkVisibility() && !image.naturalWidth) faults.push(`not drawn: ${image.src}`);
  for (const formula of document.querySelectorAll("math"))
    if (formula.checkVisibility() && !formula.getBoundingClientRect().width) faults.push("a formula is not drawn");
  if (document.querySelector("merror, .problematic")) faults.push("an error in the text");
  if (!document.querySelector("h1")) faults.push("no heading");
  return faults;
}"""


class Reader(HTMLParser):
    """The links of a page, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places.update(filter(None, (given.get("id"), given.get("name"))))
        self.links += filter(None, (given.get("href"), given.get("src")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=[f"--{switch}" for switch in SWITCHES])
        yield chromium
        chromium.close()


def new_page(browser: Any, **settings: Any) -> Any:
    page = browser.new_page(**settings)
    page.set_default_timeout(MOMENT)
    return page


def test_every_link_leads_somewhere() -> None:
    assert PAGES, "the site is not built"
    read = {page: Reader(page) for page in PAGES}
    broken = []
    for page, reader in read.items():
        for link in reader.links:
            if re.match(r"\w+:|//", link):
                continue
            path, place = urldefrag(unquote(link.split("?")[0] if "#" not in link else link))
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (place and target in read and place not in read[target].places):
                broken.append((str(page.relative_to(SITE)), link))
    assert not broken


@pytest.mark.parametrize(("screen", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_every_page_is_drawn_without_a_fault(browser: Any, screen: dict[str, int], theme: str) -> None:
    """Nothing hangs over the edge, nothing is asked of a network, and axe finds no barrier."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = new_page(browser, viewport=screen, color_scheme=theme)
    faults: list[str] = []
    page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and faults.append(f"asks for {request.url}"))
    found = []
    for path in PAGES:
        page.goto(path.as_uri())
        faults += page.evaluate(FAULTS)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        rules = QUICK if path.stem in OF_EACH_KIND else WITHOUT_CONTRAST
        for violation in axe.run(page, options=rules).response["violations"]:
            places = ", ".join(str(node["target"]) for node in violation["nodes"][:3])
            faults.append(f"{violation['id']}: {places}")
        found += [f"{path.relative_to(SITE)}: {fault}" for fault in faults]
        faults.clear()
    assert not found, "\n".join(found)


def test_the_search_finds_options_and_functions(browser: Any) -> None:
    page = new_page(browser)
    for words, expected in (
        ("ignore_index", {"options.html", "generated/api/softxent.cross_entropy.html"}),
        ("perplexity", {"generated/api/softxent.evaluate.html"}),
    ):
        page.goto(f"{(SITE / 'search.html').as_uri()}?q={words}")
        page.wait_for_selector("#search-results li a")
        page.wait_for_function("document.querySelector('#search-results p.search-summary')?.textContent.match(/\\d/)")
        links = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
        found = {urldefrag(link.split("?")[0])[0].removeprefix(f"{SITE.as_uri()}/") for link in links}
        assert expected <= found, words


def test_the_chart_of_ratios_follows_the_reader(browser: Any) -> None:
    page = new_page(browser)
    page.goto((SITE / "performance.html").as_uri())
    bars = page.locator(".ratios li")
    before = bars.all_inner_texts()
    assert len(before) >= 5
    assert all(bar.bounding_box()["width"] > 0 for bar in page.locator(".ratios .bar").all())
    page.get_by_label("for").select_option("200000 x 10")
    assert bars.all_inner_texts() != before


def test_the_theme_can_be_chosen(browser: Any) -> None:
    page = new_page(browser, viewport=DESKTOP, color_scheme="light")
    page.goto((SITE / "index.html").as_uri())
    page.click("button[aria-label='Color mode']")
    page.click("button[data-mode='dark']")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_every_block_can_be_pasted_into_a_prompt() -> None:
    """As its button copies it, without prompts and output: each line ends a statement where Python expects it."""
    n_blocks = 0
    for page in PAGES:
        for block in re.findall(r"<pre>(.*?)</pre>", page.read_text("utf-8"), re.DOTALL):
            if "&gt;&gt;&gt; " not in block:
                continue
            n_blocks += 1
            copied = re.sub(r'<span class="g[po]">.*?</span>|<.*?>', "", block, flags=re.DOTALL)
            statement: list[str] = []
            for line in [*unescape(copied).splitlines(), ""]:
                statement.append(line)
                if compile_command("\n".join(statement)):  # a SyntaxError where another statement begins too early
                    statement.clear()
    assert n_blocks > 100


def test_the_reference_says_where_a_name_is_used() -> None:
    links = Reader(SITE / "generated" / "api" / "softxent.value_and_grad.html").links
    for page in ("options.html", "recipes.html#focal-loss", "generated/gallery/digits.html"):
        assert f"../../{page}" in links


def test_every_public_name_is_in_the_reference() -> None:
    """On a page of its own, or, if it is a constant, by its name. Modules are read: not all libraries are here."""
    names = set()
    for source in Path(sx.__file__).parent.glob("*.py"):
        if found := re.search(r"^__all__ = (\[.*?\])", source.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            module = "softxent" if source.stem == "__init__" else f"softxent.{source.stem}"
            names |= {f"{module}.{name}" for name in ast.literal_eval(found[1])}
    described = {page.stem for page in (SITE / "generated" / "api").glob("*.html")}
    assert described <= names
    constants = names - described
    assert {name.rpartition(".")[2] for name in constants} == {"__version__", "SUMMARY"}
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert all(f"`{name}`" in reference for name in constants)
