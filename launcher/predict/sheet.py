"""contact_sheet.html: the frames of a folder of predictions at a glance."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from launcher.evaluation.page import open_template
from launcher.evaluation.pictures import as_css
from launcher.files import write_whole
from launcher.predict.draw import GAP, colour_of, words_of
from launcher.predict.outputs import FAILED, SHEET, Failure, Folder, Rows

TILES = 200  # maximum for images, evenly chosen
TILE_PX = 360


def write_sheet(
    out: Folder,
    images: Rows,
    clips: Mapping[str, Rows],
    failures: Sequence[Failure],
    summary: Mapping[str, Any],
) -> None:
    """Write the page: tiles of the images; the mp4, plot and stills of each clip."""
    total = sum(1 for _ in images)
    shown = {*np.linspace(0, total - 1, min(TILES, total)).round().astype(int).tolist()}
    page = open_template("launcher.predict", "sheet_template.html").stream(
        summary=summary,
        legend=[(name, as_css(colour_of(class_id))) for class_id, name in enumerate(summary["classes"], start=1)],
        total=total,
        tiles=(tile_of(out, row) for number, row in enumerate(images) if number in shown),
        shown=len(shown),
        clips=(describe_clip(out, key, rows) for key, rows in clips.items()),
        failures=failures[:TILES],
        failed=len(failures),
        failed_file=FAILED,
    )
    write_whole(out.path / SHEET, "".join(page))


def describe_clip(out: Folder, key: str, rows: Rows) -> dict[str, Any]:
    plot = out.path / "clips" / f"{key}.area.svg"
    stills = [row for row in rows if out.place("overlays", row["name"]).is_file()]
    return {
        "name": next(iter(rows))["file"],
        "frames": rows.count,
        "movie": f"clips/{key}.mp4",
        "plot": plot.read_text() if plot.is_file() else "",
        "poster": thumbnail(out, stills[len(stills) // 2]["name"]) if stills else "",
        "tiles": [tile_of(out, row) for row in stills],
    }


def tile_of(out: Folder, row: Mapping[str, Any]) -> dict[str, Any]:
    overlay = out.place("overlays", row["name"])
    return {
        "name": row["file"] if "frame" not in row else f"frame {row['frame']}",
        "words": GAP.join(text for text, _ in words_of(row["classes"], row.get("time_s"))),
        "seen": any(of_class["area_px"] for of_class in row["classes"]),
        "overlay": overlay.relative_to(out.path).as_posix(),
        "mask": row["mask"],
        "picture": thumbnail(out, row["name"]),
    }


def thumbnail(out: Folder, name: str) -> str:
    """An overlay as a small picture embedded in the page; "" if it was removed."""
    buffer = io.BytesIO()
    try:
        with Image.open(out.place("overlays", name)) as picture:
            picture.draft("RGB", (2 * TILE_PX, 2 * TILE_PX))
            picture.thumbnail((TILE_PX, TILE_PX))
            picture.save(buffer, "JPEG", quality=82)
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
