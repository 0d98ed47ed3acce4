"""page.html, which the templates of all pages extend. A page needs no other file and no network."""

from datetime import datetime, timezone
from typing import Any


def open_template(room: str, name: str) -> Any:
    """A template of a room, such as launcher.studies. A missing name in it is an error, and values are escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    places = [PackageLoader(room, "."), PackageLoader("launcher.evaluation", ".")]
    environment = Environment(
        loader=ChoiceLoader(places),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["written"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(name)
