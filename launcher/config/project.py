"""Shipped configs and a note on data, copied into a folder of the user's own and named for it."""

import re
from pathlib import Path

from launcher.errors import ConfigError
from launcher.files import SHIPPED, write_whole

STARTS = {"demo": "demo", "frames": "smoke_mini", "classes": "own", "voc": "voc", "coco": "coco"}
"""Name of a start -> its folder of shipped configs."""

OF_ITS_OWN_DATA = "# Result"  # begins the lines in a config's head about results on other data


def write_project(folder: Path, start: str) -> list[Path]:
    """Write the configs and data.md of one of STARTS; returns their paths.

    They are the shipped ones except for names and places: a config's run is `runs/NAME` in this folder, its data is in
    `data`.

    Raises:
        ConfigError: there is no such start, or a file with one of these names exists.
    """
    if start not in STARTS:
        raise ConfigError(f"--from {start}: there is no such start; choose one of {', '.join(STARTS)}")
    source = SHIPPED / STARTS[start]
    texts = {path.name: adapt(path.read_text(), source.name) for path in sorted(source.iterdir())}
    if taken := [name for name in texts if (folder / name).exists()]:
        raise ConfigError(f"{folder}: already holds {', '.join(taken)}; choose another folder, or move them away")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def adapt(text: str, source: str) -> str:
    """A shipped config or note, with names and places for a folder of its own."""
    text = re.sub(rf"\bconfigs/{source}/|(?<=\bname[:=]){source}/|(?<=\bname: ){source}/", "", text)
    text = re.sub(rf"\b(data|runs)/{source}\b", r"\1", text)
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(OF_ITS_OWN_DATA))
