"""RISE: 36-frame clips of industrial sites in Pennsylvania with labels of smoke (Hsu et al., AAAI 2021; CC0).

The smoke paper adds the first and the middle frame of clips whose `label_state` is 32 or 16, gold and strong negatives
(D-32). All of these images are without smoke, so they cannot be a split on their own.
"""

import re
from pathlib import Path
from typing import Any, Literal

from shards.schema import DataError
from shards.sources.clips import Clips, Row, field_of, join_url, metadata_rows, read_clips

NAME = re.compile(r"(\d+)-\d+-(\d{4}-\d\d-\d\d)-")  # camera-view-day-...
GroupBy = Literal["scene", "clip", "camera"]


def read_rise(
    metadata: Path,
    videos: Path,
    *,
    frames: int = 2,
    group_by: GroupBy = "scene",
    **options: Any,
) -> Clips:
    """Frames of the RISE clips; see clips.read_clips for the further options and what is raised.

    Args:
        group_by: `scene` is a camera on one day, so clips of neighbouring minutes and views stay together.
    """

    def group_of(row: Row, where: str) -> str:
        if group_by == "clip":
            return str(row["file_name"])
        if group_by == "camera":
            return f"camera{field_of(row, 'camera_id', where)}"
        match = NAME.match(row["file_name"])
        if match is None:
            raise DataError(
                f"{where}: the name does not say the day; wanted CAMERA-VIEW-YYYY-MM-DD-...; or use --group-by clip"
            )
        return f"camera{match[1]}_{match[2]}"

    return read_clips(metadata, videos, source="rise", group_of=group_of, frames=frames, **options)


def video_urls(metadata: Path, url_root: str | None = None) -> list[str]:
    """Addresses of all videos: root / part / file name. In old snapshots the part already ends with the file name.

    Raises:
        DataError: a row has no `url_part`, or neither the row nor the caller gives a root.
    """
    urls = []
    for name, row in metadata_rows(metadata).items():
        where = f"{metadata}: video '{name}'"
        part = str(field_of(row, "url_part", where))
        urls.append(join_url(row, url_root, [part] if part.endswith(".mp4") else [part, f"{name}.mp4"], where))
    return urls
