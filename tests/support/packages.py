"""Packages of others, importable as if they were installed: a folder with modules and its dist-info on sys.path."""

import configparser
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from support.places import ROOT

TEMPLATE = ROOT / "docs/template"


def install(patch, site: Path, name: str, offers: Mapping[str, str], modules: Mapping[str, str] | None = None) -> None:
    """Put a package into the folder `site` and this on sys.path.

    Args:
        patch: pytest's monkeypatch.
        offers: {group: lines of entry points}.
        modules: {module: its source}.
    """
    facts = site / f"{name.replace('-', '_')}-0.1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text("".join(f"[{group}]\n{lines}\n" for group, lines in offers.items()))
    for module, source in (modules or {}).items():
        (site / f"{module}.py").write_text(source)
        patch.delitem(sys.modules, module, raising=False)
    if str(site) not in sys.path:
        patch.syspath_prepend(str(site))


def install_template(patch, site: Path) -> None:
    """The package of docs/template with the entry points of its setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(TEMPLATE / "setup.cfg")
    shutil.copytree(TEMPLATE / "wsss_prototypes", site / "wsss_prototypes")
    install(patch, site, setup["metadata"]["name"], dict(setup["options.entry_points"]))
