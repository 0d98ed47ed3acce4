"""IJmond: cameras around a steelworks. Labelled clips for training, frames with polygons for testing.

Clips: the metadata of MultiX-Amsterdam/ijmond-camera-monitor (CC BY 4.0; labels: D-32). Frames: a COCO json, whose
categories of smoke with low or high opacity become the one class smoke (D-33); other categories are left out.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.schema import SMOKE, ClassSet, DataError, Sample
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text
from shards.sources.clips import Clips, Row, field_of, join_url, metadata_rows, read_clips
from shards.sources.coco_files import files_of, list_images, read_json
from shards.sources.coco_regions import polygons_of
from shards.sources.names import keys_of, last_of, plain
from shards.sources.text import shown

CAMERAS = ("hoogovens", "kooksfabriek_1", "kooksfabriek_2")  # by camera_id
GROUP_PATTERN = r"(.+?)(?:[-_]\d+)?_frame_?\d+"  # VIDEO_VIEW_frameN and VIDEO_frame_N -> VIDEO
GroupBy = Literal["scene", "clip", "camera"]
SMOKE_NAMES = ("smoke", "high-opacity-smoke", "low-opacity-smoke")  # in any case, also with blanks or _ instead of -
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
        group_by: `scene` is the panorama video (`url_part`) from which a clip was cut; its views share sky and time.
    """

    def group_of(row: Row, where: str) -> str:
        if group_by == "camera":
            return camera_of(row, where)
        return str(field_of(row, "url_part" if group_by == "scene" else "file_name", where))

    return read_clips(metadata, videos, source="ijmond", group_of=group_of, frames=frames, **options)


def video_urls(metadata: Path, url_root: str | None = None) -> list[str]:
    """Addresses of all videos: root / camera / url_part / file name.

    Raises:
        DataError: a row lacks one of these, or neither the row nor the caller gives a root.
    """
    urls = []
    for name, row in metadata_rows(metadata).items():
        where = f"{metadata}: video '{name}'"
        parts = [camera_of(row, where), str(field_of(row, "url_part", where)), f"{name}.mp4"]
        urls.append(join_url(row, url_root, parts, where))
    return urls


def camera_of(row: Row, where: str) -> str:
    number = field_of(row, "camera_id", where)
    if not isinstance(number, int) or number not in range(len(CAMERAS)):
        raise DataError(f"{where}: camera_id is {number!r}; wanted 0 to {len(CAMERAS) - 1} ({', '.join(CAMERAS)})")
    return CAMERAS[number]


@dataclass(frozen=True, kw_only=True)
class Frame:
    key: str
    image: Blob
    size: tuple[int, int]  # height, width
    group: str
    polygons: tuple[tuple[str, Polygon], ...]  # with the id of their annotation


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames with polygons of smoke as a source of samples; a frame without a polygon shows no smoke.

    Attributes:
        with_masks: give the rasterised masks, for pixel shards and for cropping.
        left_out: {name of another category: number of its annotations}.
        exif: what to do with images that are not upright, see Blob.read_jpeg.
    """

    frames: tuple[Frame, ...]
    source: str = "ijmond"
    with_masks: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    exif: Exif = "keep"
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return len(self.frames)

    def groups(self) -> list[str]:
        return [frame.group for frame in self.frames]

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.source,
            "exif": self.exif,
            "rows": digest_of_text(repr((one.key, one.size, one.group, one.polygons)) for one in self.frames),
            "images": digest_of(frame.image for frame in self.frames),
        }

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image = frame.image.read_jpeg(frame.size, self.exif)
        mask_HW = np.zeros(frame.size, dtype=np.uint8)
        for number, polygon in frame.polygons:
            inside_HW = rasterise([polygon], *frame.size)
            if not inside_HW.any():
                raise DataError(
                    f"{frame.image}: a polygon of annotation {number} covers no pixel of {frame.size} (height, width): "
                    "it lies outside, is too small, or its coordinates are fractions of the image; correct or remove "
                    "it"
                )
            mask_HW |= inside_HW
        return Sample(
            key=frame.key,
            image=image,
            image_label=(1,) if mask_HW.any() else (),
            group=frame.group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
            mask_place=f"the polygons of {frame.image}",
        )


def read_frames_with_polygons(
    annotations: Path,
    images: Path,
    *,
    categories: Collection[str] | None = None,
    group_pattern: str = GROUP_PATTERN,
    exif: Exif = "keep",
) -> Frames:
    """Read a COCO json; file names are relative to `images`.

    Args:
        categories: names that mean smoke; default: SMOKE_NAMES.
        group_pattern: its first group, matched at the start of a file's name, names the frame's video or scene.

    Raises:
        DataError: a file is missing; an annotation belongs to an unknown image or category, or is not a polygon; no
            category means smoke; a name does not match.
    """
    where = str(annotations)
    if not annotations.is_file():
        raise DataError(f"{annotations}: annotation file is missing")
    content = read_json(Blob(where))
    names = {row["id"]: str(row["name"]) for row in content["categories"]}
    wanted = smoke_ids(names, categories, where)
    of_image = {image["id"]: image for image in content["images"]}
    polygons: dict[Any, list[tuple[str, Polygon]]] = {key: [] for key in of_image}
    left_out: Counter[str] = Counter()
    for one in content["annotations"]:
        place = f"{where}: annotation {one['id']}"
        image = of_image.get(one["image_id"])
        if image is None:
            raise DataError(f"{place}: is of image {one['image_id']}, which 'images' does not list")
        if one["category_id"] not in names:
            raise DataError(f"{place}: its category is {one['category_id']}; listed: {names}")
        if one["category_id"] not in wanted:
            left_out[names[one["category_id"]]] += 1
            continue
        if not isinstance(one["segmentation"], list):
            raise DataError(
                f"{place}: segmentation is {shown(one['segmentation'])}; wanted a list of polygons, not RLE"
            )
        of_it = polygons_of(one["segmentation"], image["height"], image["width"], f"{place} of image {image['id']}")
        polygons[image["id"]] += [(str(one["id"]), tuple(map(float, flat))) for flat in of_it]
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; see --images")
    files = files_of(content["images"], list_images(images), where)
    keys = keys_of([image["file_name"] for image in content["images"]], where)
    frames = []
    for image, file, key in zip(content["images"], files, keys, strict=True):
        name = last_of(plain(image["file_name"]))
        match = re.match(group_pattern, name)
        if match is None:
            raise DataError(f"{name}: does not match '{group_pattern}', so its video is unknown; see --group-pattern")
        frames.append(
            Frame(
                key=key,
                image=file,
                size=(image["height"], image["width"]),
                group=match[1],
                polygons=tuple(polygons[image["id"]]),
            )
        )
    return Frames(frames=tuple(frames), left_out=dict(left_out), exif=exif)


def smoke_ids(names: Mapping[Any, str], chosen: Collection[str] | None, where: str) -> set[Any]:
    """The ids of the categories that mean smoke: the chosen ones, or those in SMOKE_NAMES.

    Raises:
        DataError: a chosen category does not exist, or none has such a name.
    """
    unknown = sorted(set(chosen or ()) - set(names.values()))
    if unknown:
        raise DataError(f"{where}: has no category {unknown}; it has {sorted(names.values())}")
    found = {
        key
        for key, name in names.items()
        if (name in chosen if chosen else re.sub(r"[ _]", "-", name.strip().lower()) in SMOKE_NAMES)
    }
    if not found:
        raise DataError(
            f"{where}: no category is called {' or '.join(SMOKE_NAMES)}; it has {sorted(names.values())}: say which "
            "means smoke with --category"
        )
    return found


def rasterise(polygons: Sequence[Polygon], height: int, width: int) -> np.ndarray:
    """Union of polygons -> (H, W) uint8, 1 where a pixel's centre is inside (even-odd rule), else 0.

    A pixel is inside if an odd number of edges crosses the centre line of its row to the left of its centre.
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
