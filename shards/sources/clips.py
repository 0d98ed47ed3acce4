"""Labelled video clips as a source of frames.

The two clip datasets of the smoke paper, IJmond and RISE, were labelled with the same tool and share its label states
(`label_state` of the volunteers, `label_state_admin` of the researchers); each row of their metadata is a video.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shards.image_bytes import encode_image, turn_upright
from shards.schema import SMOKE, ClassSet, DataError, Frame, Sample
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text
from shards.sources.names import check_one_row_each, keys_of, plain
from shards.sources.text import check_different, json_of, names_of, read_bytes, shown
from shards.sources.video import frame_count, orientation_of_clip, read_frames

Strength = Literal["gold", "strong", "weak", "maybe"]
LabelledBy = Literal["researchers_first", "volunteers", "researchers"]
Row = Mapping[str, Any]

STATES: Mapping[int, tuple[Strength, bool]] = {
    47: ("gold", True),
    32: ("gold", False),
    23: ("strong", True),
    16: ("strong", False),
    19: ("weak", True),
    20: ("weak", False),
    5: ("maybe", True),
    4: ("maybe", False),
}
DISCORD, NO_LABEL, BAD_VIDEO = 3, -1, -2


@dataclass(frozen=True, kw_only=True)
class Clip:
    name: str  # becomes a part of the keys
    path: Path
    smoke: bool
    group: str


@dataclass(frozen=True, kw_only=True)
class Clips:
    """`frames` evenly spaced frames of each clip, with the clip's label: frame k*n // frames of n, k = 0, 1, ...

    So 1 takes the first frame, 2 the first and the middle one, and the clip's own number takes all.

    Attributes:
        left_out: {reason: number of rows of the metadata that were not taken}.
        exif: `keep` the frames as stored, with the clip's rotation as their EXIF orientation, or `apply` it.
    """

    clips: tuple[Clip, ...]
    source: str
    frames: int = 1
    left_out: Mapping[str, int] = field(default_factory=dict)
    exif: Exif = "keep"
    class_set: ClassSet = SMOKE

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise DataError(f"{self.source}: {self.frames} frames per clip; wanted at least 1")

    def __len__(self) -> int:
        return len(self.clips) * self.frames

    def groups(self) -> list[str]:
        return [clip.group for clip in self.clips for _ in range(self.frames)]

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.source,
            "exif": self.exif,
            "frames": self.frames,
            "rows": digest_of_text(repr((clip.name, clip.smoke, clip.group)) for clip in self.clips),
            "videos": digest_of(Blob(str(clip.path)) for clip in self.clips),
        }

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        clip, k = self.clips[index // self.frames], index % self.frames
        count = frame_count(clip.path)
        if count < self.frames:
            raise DataError(f"{clip.path}: has {count} frames, {self.frames} were asked for; take fewer per clip")
        number = k * count // self.frames
        orientation = orientation_of_clip(clip.path)
        image = encode_image(read_frames(clip.path, [number])[0], orientation=orientation)
        return Sample(
            key=f"{clip.name}_f{number:05d}",
            image=turn_upright(image, str(clip.path)) if self.exif == "apply" else image,
            image_label=(1,) if clip.smoke else (),
            group=clip.group,
            source=self.source,
            frame=Frame(clip.name, number),
        )


def read_clips(
    metadata: Path,
    videos: Path,
    *,
    source: str,
    group_of: Callable[[Row, str], str],
    frames: int = 1,
    states: Collection[Strength] = ("gold", "strong"),
    labelled_by: LabelledBy = "researchers_first",
    smoke: bool | None = None,
    only: Path | None = None,
    skip_missing: bool = False,
    exif: Exif = "keep",
) -> Clips:
    """The clips of a metadata file whose label is strong enough and whose file NAME.mp4 is somewhere below `videos`.

    Args:
        group_of: (row, place for an error) -> group.
        states: accepted label strengths.
        labelled_by: whose label counts; `researchers_first`: that of the researchers if they gave one, else that of the
            volunteers.
        smoke: only clips with (True) or without smoke (False).
        only: text file of file names, one per line: the rows to choose from.
        skip_missing: leave out and count clips without a file, instead of refusing them.

    Raises:
        DataError: a row lacks a column or has an unknown state, two rows or files have the same name, a file is
            missing, or nothing is left.
    """
    rows = metadata_rows(metadata)
    if only is not None:
        rows = listed(rows, only)
    files = videos_below(videos)
    clips: list[Clip] = []
    left_out: Counter[str] = Counter()
    missing: list[str] = []
    for name, row in rows.items():
        where = f"{metadata}: video '{name}'"
        strength, positive = label_of(row, labelled_by, where)
        if strength not in states:
            left_out[strength] += 1
        elif smoke is not None and positive is not smoke:
            left_out["with smoke" if positive else "without smoke"] += 1
        elif plain(name) not in files:
            missing.append(name)
        else:
            clips.append(Clip(name=name, path=files[plain(name)], smoke=positive, group=group_of(row, where)))
    if missing and not skip_missing:
        raise DataError(
            f"{videos}: {len(missing)} of {len(clips) + len(missing)} videos are missing, first '{missing[0]}.mp4'; "
            "print their addresses with `wsss shards video-urls` and fetch them, or use --skip-missing"
        )
    if missing:
        left_out["file missing"] = len(missing)
    if not clips:
        raise DataError(f"{metadata}: none of {len(rows)} videos is left ({dict(left_out)}); see --state and --smoke")
    keys = keys_of([clip.name for clip in clips], str(metadata))
    clips = [replace(clip, name=key) for clip, key in zip(clips, keys, strict=True)]
    check_one_row_each(((clip.name, clip.path) for clip in clips), str(metadata), "video")
    return Clips(clips=tuple(clips), source=source, frames=frames, left_out=dict(left_out), exif=exif)


def metadata_rows(path: Path) -> dict[str, Row]:
    """{file name: row} of a json list of rows, or of a json object whose values are rows."""
    content = json_of(read_bytes(path), str(path))
    if not isinstance(content, (dict, list)):
        raise DataError(f"{path}: holds {shown(content)}; wanted a list of rows, or an object of them")
    rows: dict[str, Row] = {}
    for number, row in enumerate(content.values() if isinstance(content, dict) else content):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
            raise DataError(f"{path}: row {number} is {shown(row)}; wanted an object with 'file_name'")
        if row["file_name"] in rows:
            raise DataError(f"{path}: video '{row['file_name']}' is listed twice; remove one of its rows")
        rows[row["file_name"]] = row
    check_different(rows, str(path))
    return rows


def listed(rows: Mapping[str, Row], only: Path) -> dict[str, Row]:
    """The rows that a text file names, in its order; a name may end with .mp4, like the files."""
    same = {plain(name): name for name in rows}
    names = [
        same.get(plain(name), same.get(plain(re.sub(r"\.mp4$", "", name, flags=re.IGNORECASE)), name))
        for name in names_of(read_bytes(only), str(only))
    ]
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise DataError(
            f"{only}: {len(unknown)} names are not in the metadata, first '{unknown[0]}'; its first is "
            f"'{next(iter(rows), '')}'"
        )
    check_different(names, str(only))
    return {name: rows[name] for name in names}


def videos_below(folder: Path) -> dict[str, Path]:
    """{file name without .mp4: path} of the folder's whole tree."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() != ".mp4" or path.name.startswith("."):
            continue
        name = plain(path.stem)
        if name in files:
            raise DataError(f"{folder}: two videos have the name '{name}': {files[name]} and {path}")
        files[name] = path
    return files


def label_of(row: Row, labelled_by: LabelledBy, where: str) -> tuple[str, bool]:
    """(strength or why there is none, smoke)."""
    codes = {
        "volunteers": field_of(row, "label_state", where),
        "researchers": field_of(row, "label_state_admin", where),
    }
    for who, code in codes.items():
        if not isinstance(code, int) or isinstance(code, bool):
            raise DataError(f"{where}: label state {shown(code)} of the {who}; wanted a whole number")
        if code not in STATES and code not in (DISCORD, NO_LABEL, BAD_VIDEO):
            raise DataError(f"{where}: label state {code!r} of the {who}; wanted one of {sorted(STATES)}, 3, -1, -2")
    if BAD_VIDEO in codes.values():
        return "bad video", False
    order = ("researchers", "volunteers") if labelled_by == "researchers_first" else (labelled_by,)
    for who in order:
        if codes[who] in STATES:
            return STATES[codes[who]]
    return ("discord" if DISCORD in (codes[who] for who in order) else "no label"), False


def field_of(row: Row, name: str, where: str) -> Any:
    if row.get(name) is None:
        raise DataError(f"{where}: no '{name}'; it has {sorted(row)}")
    return row[name]


def join_url(row: Row, url_root: str | None, parts: Sequence[str], where: str) -> str:
    """An address below `url_root`, or, if that is None, below the row's own `url_root`."""
    root = url_root or row.get("url_root")
    if not root:
        raise DataError(f"{where}: no 'url_root'; say where the videos are with --url-root")
    return "/".join(part.strip("/") if number else part.rstrip("/") for number, part in enumerate((root, *parts)))
