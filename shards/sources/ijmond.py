"""IJmond: cameras around a steel works. Labelled clips for training, frames with polygons for testing.

Clips: the metadata of MultiX-Amsterdam/ijmond-camera-monitor (CC BY 4.0; labels: D-32). Frames: a COCO json,
whose categories of smoke, of low or high opacity, become the one class smoke (D-33).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.schema import SMOKE, ClassSet, DataError, Sample, decode_image, encode_image
from shards.sources.clips import Clips, Row, field_of, join_url, metadata_rows, read_clips

CAMERAS = ("hoogovens", "kooksfabriek_1", "kooksfabriek_2")  # by camera_id
GROUP_PATTERN = r"(.+?)(?:[-_]\d+)?_frame_?\d+"  # VIDEO_VIEW_frameN and VIDEO_frame_N -> VIDEO
GroupBy = Literal["scene", "clip", "camera"]
Polygon = tuple[float, ...]  # x0, y0, x1, y1, ... in pixels; (0, 0) is the corner of the frame


def read_ijmond(
    metadata: Path,
    videos: Path,
    *,
    frames: int = 1,
    group_by: GroupBy = "scene",
    **options: Any,
) -> Clips:
    """Frames of the IJmond clips; see clips.read_clips for the further options and what is raised.

    Args:
        group_by: `scene` is the panorama video (`url_part`) that a clip is cut from: its views share the sky and time.
    """

    def group_of(row: Row, where: str) -> str:
        if group_by == "camera":
            return camera_of(row, where)
        return str(field_of(row, "url_part" if group_by == "scene" else "file_name", where))

    return read_clips(metadata, videos, source="ijmond", group_of=group_of, frames=frames, **options)


def video_urls(metadata: Path, url_root: str | None = None) -> list[str]:
    """Addresses of all videos: root / camera / url_part / file name.

    Raises:
        DataError: a row lacks one of these, or neither it nor the caller gives a root.
    """
    urls = []
    for name, row in metadata_rows(metadata).items():
        where = f"{metadata}: video '{name}'"
        parts = [camera_of(row, where), str(field_of(row, "url_part", where)), f"{name}.mp4"]
        urls.append(join_url(row, url_root, parts, where))
    return urls


def camera_of(row: Row, where: str) -> str:
    number = field_of(row, "camera_id", where)
    if number not in range(len(CAMERAS)):
        raise DataError(f"{where}: camera_id is {number!r}; wanted 0 to {len(CAMERAS) - 1} ({', '.join(CAMERAS)})")
    return CAMERAS[number]


@dataclass(frozen=True, kw_only=True)
class Frame:
    key: str
    path: Path
    size: tuple[int, int]  # height, width
    group: str
    polygons: tuple[Polygon, ...]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames with polygons of smoke as a source of samples; a frame without a polygon is free of smoke.

    Attributes:
        with_masks: give the rasterised masks, for pixel shards and for cropping.
    """

    frames: tuple[Frame, ...]
    source: str = "ijmond"
    with_masks: bool = True
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return len(self.frames)

    def groups(self) -> list[str]:
        return [frame.group for frame in self.frames]

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        data = frame.path.read_bytes()
        image_HW3 = decode_image(data, str(frame.path))
        if image_HW3.shape[:2] != frame.size:
            raise DataError(f"{frame.path}: is {image_HW3.shape[:2]}, its annotation says {frame.size} (height, width)")
        if not data.startswith(b"\xff\xd8"):  # not a JPEG: the one format that shards hold
            data = encode_image(image_HW3)
        mask_HW = rasterise(frame.polygons, *frame.size)
        return Sample(
            key=frame.key,
            image=data,
            image_label=(1,) if mask_HW.any() else (),
            group=frame.group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
        )


def read_frames_with_polygons(
    annotations: Path,
    images: Path,
    *,
    categories: Collection[str] | None = None,
    group_pattern: str = GROUP_PATTERN,
) -> Frames:
    """Read a COCO json; file names are relative to `images`.

    Args:
        categories: names that mean smoke; default: those whose name holds "smoke".
        group_pattern: its first group, matched at the start of a file's name, names the frame's video or scene.

    Raises:
        DataError: a file is missing; an annotation is of an unknown image, of a category that is unknown or not smoke,
            or no polygon; a name does not match.
    """
    content = read_json(annotations)
    wanted = smoke_ids(content["categories"], categories, annotations)
    polygons: dict[int, list[Polygon]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        where = f"{annotations}: annotation {annotation.get('id')}"
        if annotation.get("image_id") not in polygons:
            raise DataError(f"{where}: is of image {annotation.get('image_id')}, which 'images' does not list")
        if annotation.get("category_id") not in wanted:
            raise DataError(
                f"{where}: its category is {annotation.get('category_id')}; smoke: {wanted}; see --category"
            )
        polygons[annotation["image_id"]] += polygons_of(annotation.get("segmentation"), where)
    if len(polygons) < len(content["images"]):
        raise DataError(f"{annotations}: two images have one id")
    frames = []
    for image in content["images"]:
        path = images / image["file_name"]
        if not path.is_file():
            raise DataError(f"{path}: image of {annotations} is missing; see --images")
        match = re.match(group_pattern, path.name)
        if match is None:
            raise DataError(f"{path}: does not match '{group_pattern}', so its video is unknown; see --group-pattern")
        frames.append(
            Frame(
                key=re.sub(r"[^A-Za-z0-9_\-]", "_", Path(image["file_name"]).with_suffix("").as_posix()),
                path=path,
                size=(image["height"], image["width"]),
                group=match[1],
                polygons=tuple(polygons[image["id"]]),
            )
        )
    return Frames(frames=tuple(frames))


def read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO json, whose images have id, file_name, height and width."""
    if not path.is_file():
        raise DataError(f"{path}: annotation file is missing")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not json ({error})") from error
    needs = {"images": ("id", "file_name", "height", "width"), "categories": ("id",), "annotations": ()}
    for name, needed in needs.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path}: no list '{name}'; wanted a COCO json with images, annotations and categories")
        for number, row in enumerate(content[name]):
            lacking = [key for key in needed if key not in row]
            if lacking:
                raise DataError(f"{path}: {name}[{number}] lacks {', '.join(lacking)}; it has {sorted(row)}")
    return content


def smoke_ids(listed: Sequence[Mapping[str, Any]], names: Collection[str] | None, where: Path) -> dict[int, str]:
    """{id: name} of the categories that mean smoke."""
    known = {row["id"]: str(row.get("name")) for row in listed}
    unknown = sorted(set(names or ()) - set(known.values()))
    if unknown:
        raise DataError(f"{where}: has no category {unknown}; it has {sorted(known.values())}")
    return {key: name for key, name in known.items() if (name in names if names else "smoke" in name.lower())}


def polygons_of(segmentation: Any, where: str) -> list[Polygon]:
    """The polygons of one annotation."""
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where}: segmentation is {str(segmentation)[:60]}; wanted a list of polygons, not RLE")
    polygons = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
            raise DataError(f"{where}: polygon {str(flat)[:60]}; wanted x0, y0, x1, y1, ... of at least three points")
        polygons.append(tuple(float(number) for number in flat))
    return polygons


def rasterise(polygons: Sequence[Polygon], height: int, width: int) -> np.ndarray:
    """Union of polygons -> (H, W) uint8, 1 where a pixel's centre lies inside (even-odd rule), else 0.

    A pixel is inside if an odd number of edges crosses its row's centre line to the left of its centre.
    """
    mask_HW = np.zeros((height, width), dtype=np.uint8)
    centre_H = np.arange(height) + 0.5
    for polygon in polygons:
        x_N, y_N = np.asarray(polygon).reshape(-1, 2).T
        next_x_N, next_y_N = np.roll(x_N, -1), np.roll(y_N, -1)
        crossed_HN = (y_N <= centre_H[:, None]) != (next_y_N <= centre_H[:, None])
        row, edge = np.nonzero(crossed_HN)
        share = (centre_H[row] - y_N[edge]) / (next_y_N[edge] - y_N[edge])
        crossing = x_N[edge] + share * (next_x_N[edge] - x_N[edge])
        first_right = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
        if not len(row):
            continue
        top, bottom = row.min(), row.max() + 1
        toggles_hW = np.zeros((bottom - top, width + 1), dtype=np.int32)
        np.add.at(toggles_hW, (row - top, first_right), 1)
        mask_HW[top:bottom] |= (toggles_hW.cumsum(axis=1)[:, :width] % 2).astype(np.uint8)
    return mask_HW
