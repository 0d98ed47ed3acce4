"""A page as a browser would take it: nothing is fetched, pictures and plots have words, phones and the dark are met."""

from html.parser import HTMLParser
from pathlib import Path

INSIDE = ("data:", "#")


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.last = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.last = tag

    def handle_data(self, data):
        if self.last != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(path: Path, *, beside: tuple[str, ...] = ()) -> Reader:
    """The page, after what holds of every page was looked at.

    Args:
        beside: beginnings of the places in its own folder that it may show.
    """
    text, page = path.read_text(), Reader()
    page.feed(text)
    names = [attributes.get("name") for attributes in page.all("meta")]
    assert "viewport" in names and "color-scheme" in names and "prefers-color-scheme: dark" in text
    for tag, attributes in page.tags:
        for place in (attributes.get(name) for name in ("src", "href", "xlink:href", "srcset", "poster", "action")):
            assert not place or place.startswith((*INSIDE, *beside)), f"<{tag}> reads {place}"
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and not page.all("script")
    assert all(len(attributes.get("alt") or "") > 8 for attributes in page.all("img"))
    plots = page.all("svg")
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    assert (text.count("<title>") == 1 + len(plots) and "<text" in text) or not plots
    assert "overflow-wrap: break-word" not in style and "th { overflow-wrap" not in style
    return page
