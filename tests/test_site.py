"""The site of docs/ and the docstrings: no warning, every link leads somewhere, no page needs the network."""

import inspect
import logging
from pathlib import Path
from urllib.parse import unquote

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from support.pages import Reader
from support.places import ROOT

from wsss.methods import METHODS
from wsss.models import MODELS
from wsss.refine import REFINERS

CONFIG = str(ROOT / "mkdocs.yml")
PLANTED = {
    "[gone](gone.md)": "'gone.md', but the target is not found",
    "[anchor](index.md#gone)": "'index.md#gone', but there is no such anchor",
    "[tree](../wsss/gone.py)": "'../wsss/gone.py', but the target is not found",
    "::: wsss.losses.gone": "wsss.losses.gone could not be found",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Reader]:
    """{place in the site: page}; files that are no pages are empty."""
    folder, pages = tmp_path_factory.mktemp("site"), {}
    build(load_config(CONFIG, site_dir=str(folder), strict=True))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        pages[str(path.relative_to(folder))] = page = Reader()
        if path.suffix == ".html":
            page.feed(path.read_text())
    return pages


def ids(page: Reader) -> set[str | None]:
    return {attributes.get("id") for _, attributes in page.tags}


def test_every_page_is_there_and_every_link_of_it_leads_to_a_place(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "changelog", "contributing"}
    assert {f"{page}.html" for page in pages} <= set(site)
    lost = set()
    for place, page in site.items():
        for link in (str(attributes.get("href") or "#") for attributes in page.all("a")):
            path, _, anchor = unquote(link).partition("#")
            if place == "404.html" or path.startswith(("http:", "https:", "mailto:")):
                continue
            target = str((Path("/") / place).parent.joinpath(path).resolve().relative_to("/")) if path else place
            if target not in site or (anchor and anchor not in ids(site[target])):
                lost.add(f"{place}: {link}")
    assert sorted(lost) == []


def test_a_cited_decision_leads_to_its_paragraph(site):
    links = {attributes.get("href") for attributes in site["api/losses.html"].all("a")}
    assert "../decisions.html#d-05" in links and "d-05" in ids(site["decisions.html"])


def test_no_page_asks_the_network_for_anything(site):
    loads = [
        f"{place}: {address}"
        for place, page in site.items()
        for tag in ("script", "link", "img", "iframe", "source", "object")
        for attributes in page.all(tag)
        for address in (attributes.get("src"), attributes.get("href"))
        if address and "//" in address
    ]
    assert loads == []


def test_the_api_shows_every_method_network_and_refiner(site):
    shown = set().union(*(ids(page) for place, page in site.items() if place.startswith("api/")))
    named = [*METHODS.values(), *MODELS.values(), *REFINERS.values()]
    wanted = {f"{one.__module__}.{one.__qualname__}" for one in map(inspect.unwrap, named)}
    assert {*wanted, "launcher.predict.predictor.load", "wsss.losses.align.alignment_distance"} - shown == set()


@pytest.mark.parametrize("fault", [*PLANTED, "a page outside the navigation"])
def test_a_planted_fault_ends_the_build(tmp_path, caplog, fault):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Start\n\n{fault}\n")
    (tmp_path / "docs/decisions.md").write_text("# Decisions\n")
    nav = ["index.md", "decisions.md"] if fault in PLANTED else ["index.md"]
    places = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")}
    with caplog.at_level(logging.WARNING), pytest.raises(Abort):
        build(load_config(CONFIG, strict=True, nav=nav, hooks=[], exclude_docs="", **places))
    assert PLANTED.get(fault, "") in caplog.text
