"""What mkdocs.yml cannot say: pages from outside docs/, a page of the API per room, links that hold on the site, too.

The same files are read on a code host and on the site. There a link leads through the tree; here pages of the top level
have names of their own, and any other file that a page links to is copied as text.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
RECORDS = ("decisions.md", "experiments.md", "changelog.md")  # found after the pages that say how
ROOMS = ("methods", "losses", "maps", "refine", "models", "metrics")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[\w-]+)?(?=\))")
# a decision that is cited, unless it stands in a link, in code or in a heading
CITED = re.compile(r"<(?P<tag>a|code|pre|h\d)\b.*?</(?P=tag)>|\bD-\d{2,3}\b", re.DOTALL)
# `mean, std: per channel` below Args, with the lines that continue it
SHARED = re.compile(r"^    (\w+(?:, \w+)+):(.*(?:\n {5,}.*)*)", re.MULTILINE)
DECIDED = re.compile(r"<strong>(?=(D-\d{2,3}) )")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in TOP_LEVEL.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "api/load.md", content=LOAD))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=page_of_room(room)))
    return files


LOAD = """# wsss.load

A trained network from Python, as in [predict](../predict.md#from-python).

::: launcher.predict.predictor.load
::: launcher.predict.predictor.Predictor
::: launcher.predict.masks.Prediction
"""


def page_of_room(room: str) -> str:
    """A page with every module of a room of wsss, which begins with the room's own words."""
    folder = ROOT / "wsss" / room
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return "\n".join([f"# wsss.{room}\n\n{said}\n", *(f"::: wsss.{room}.{module}" for module in modules)]) + "\n"


class SharedLines(griffe.Extension):
    """A line of a docstring that describes several arguments becomes one for each, since each has a type."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SHARED.sub(
                lambda line: "\n".join(f"    {name}:{line[2]}" for name in line[1].split(", ")), obj.docstring.value
            )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links through the tree become links through the site."""
    name = page.file.src_uri
    if name in RECORDS:
        page.meta["search"] = {"boost": 0.3}
    here = {made: source for source, made in TOP_LEVEL.items()}.get(name, f"docs/{name}")

    def on_site(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        target = TOP_LEVEL.get(place) or place.removeprefix("docs/")
        if place == target and (ROOT / place).is_file():
            target = f"files/{place}.txt"
            if not files.get_file_from_path(target):
                files.append(File.generated(config, target, content=(ROOT / place).read_text()))
        return posixpath.relpath(target, posixpath.dirname(name) or ".") + (found[2] or "")

    return LINK.sub(on_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Every decision that is cited leads to its paragraph."""
    if page.file.src_uri == "decisions.md":
        html = DECIDED.sub(lambda found: f'<strong id="{found[1].lower()}">', html)
    decisions = files.get_file_from_path("decisions.md")
    assert decisions
    place = decisions.url_relative_to(page.file)

    def linked(found: re.Match[str]) -> str:
        return found[0] if found["tag"] else f'<a href="{place}#{found[0].lower()}">{found[0]}</a>'

    return CITED.sub(linked, html)
