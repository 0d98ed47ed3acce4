"""MS COCO 2014 (train 82,081, val 40,137 images with annotations) and any data set in its format, such as 2017's split.

A class id is 1 + the rank of the category's id: 1..80 for COCO. The mask of an image is painted from its annotations:
first regions of crowds, as 255 (ignore), then the objects, each over the ones before, in one of two orders:

    order   as the file lists them
    area    the largest first, so that small objects stay visible (the default, as in the usual conversion)

An image label is the set of the classes of its objects, even if the mask does not show them: in data with only image
labels, an object's region is the whole image, and each would hide the one before. A class that only a crowd shows is in
no label. A class that shows in no pixel gets a remark: its annotations cover none, or others cover them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.schema import (
    IGNORE_INDEX,
    ClassSet,
    DataError,
    Sample,
    classes_in,
)
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text, opened
from shards.sources.coco_files import files_of, read_json, write_lines
from shards.sources.coco_regions import region
from shards.sources.names import keys_of
from shards.sources.text import shown

Paint = Literal["order", "area"]
NUM_CLASSES = 80  # of COCO; with another number it is another class set
UNSEEN = "classes of the image label that show in no pixel of the mask"
EMPTY = "annotations that cover no pixel"


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, and the span of its annotations in the file of lines."""

    key: str
    group: str
    image: Blob
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Coco14:
    """Images of one split.

    Attributes:
        lines: file of the annotations, a json line per image, which workers read instead of the whole json.
        annotations: digest of the json from which the lines were made.
        left_out: number of images of the json that were not taken, since they have no annotation.
        exif: what to do with images that are not upright, see Blob.read_jpeg.
    """

    pictures: tuple[Picture, ...]
    lines: str
    annotations: str
    class_set: ClassSet
    left_out: int = 0
    paint: Paint = "area"
    with_masks: bool = False
    exif: Exif = "keep"
    source: str = "coco14"

    def __len__(self) -> int:
        return len(self.pictures)

    def groups(self) -> list[str]:
        return [picture.group for picture in self.pictures]

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.source,
            "annotations": self.annotations,
            "left_out": self.left_out,
            "paint": self.paint,
            "exif": self.exif,
            "images": digest_of(picture.image for picture in self.pictures),
            "groups": digest_of_text(f"{picture.key} {picture.group}" for picture in self.pictures),
        }

    def __getitem__(self, index: int) -> Sample:
        picture = self.pictures[index]
        line = json.loads(os.pread(opened(self.lines).fileno(), picture.size, picture.offset))
        height, width = line["size"]
        image = picture.image.read_jpeg((height, width), self.exif)
        where = f"{line['where']}: image {picture.group} ({picture.image})"
        mask_HW, empty = painted(line["annotations"], height, width, self.paint, where)
        image_label = tuple(sorted({one["class_id"] for one in line["annotations"] if not one["iscrowd"]}))
        hidden = tuple(one for one in image_label if one not in classes_in(mask_HW))
        return Sample(
            key=picture.key,
            image=image,
            image_label=image_label,
            group=picture.group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
            mask_place=str(line["where"]),
            hidden=hidden,
            remarks={
                **({EMPTY: f"annotations {empty}"} if empty else {}),
                **({UNSEEN: ", ".join(self.class_set.classes[one - 1] for one in hidden)} if hidden else {}),
            },
        )


def painted(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, paint: Paint, where: str
) -> tuple[np.ndarray, list[Any]]:
    """Annotations with `class_id`, `iscrowd`, `segmentation` -> (H, W) uint8 class ids, 255 where only a crowd is, and
    the ids of the annotations that cover no pixel."""
    mask_HW = np.zeros((height, width), dtype=np.uint8)
    regions = [region(one["segmentation"], height, width, f"{where}, annotation {one['id']}") for one in annotations]
    areas = [int(inside_HW.sum()) for inside_HW in regions]
    order = list(range(len(regions)))
    if paint == "area":
        order.sort(key=lambda number: -areas[number])
    order.sort(key=lambda number: not annotations[number]["iscrowd"])  # stable: crowds first, else unchanged
    for number in order:
        one = annotations[number]
        mask_HW[regions[number]] = IGNORE_INDEX if one["iscrowd"] else one["class_id"]
    return mask_HW, [one["id"] for one, area in zip(annotations, areas, strict=True) if area == 0]


def read_coco(
    annotations: Blob,
    images: Mapping[str, Blob],
    lines: Path,
    *,
    all_images: bool = False,
    paint: Paint = "area",
    with_masks: bool = False,
    exif: Exif = "keep",
) -> Coco14:
    """The images of a json of instances.

    Args:
        images: {path below their place: file}.
        lines: file to which the annotations are written; keep it until all samples are read.
        all_images: also take images without annotations, which show only background.

    Raises:
        DataError: not such a json, too many categories, an annotation of an unknown image or category, or an image's
            file is missing, ambiguous, or also that of another image.
    """
    content = read_json(annotations)
    where = str(annotations)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if len({type(one) for one in names}) > 1:
        raise DataError(f"{where}: some ids of its categories are numbers, some are text; wanted one kind")
    class_ids = {one: n + 1 for n, one in enumerate(sorted(names))}
    class_set = ClassSet(
        name="coco14" if len(names) == NUM_CLASSES else f"coco{len(names)}",
        classes=tuple(names[one] for one in class_ids),
    )
    of_image = annotations_of(content, class_ids, where)
    taken = [image for image in content["images"] if all_images or of_image[image["id"]]]
    files = files_of(taken, images, where)
    keys = keys_of([image["file_name"] for image in taken], where)
    spans = write_lines(
        lines,
        (
            {"size": [image["height"], image["width"]], "annotations": of_image[image["id"]], "where": where}
            for image in taken
        ),
    )
    return Coco14(
        pictures=tuple(
            Picture(key, str(image["id"]), file, *span)
            for key, image, file, span in zip(keys, taken, files, spans, strict=True)
        ),
        lines=str(lines.absolute()),
        annotations=digest_of([annotations]),
        class_set=class_set,
        left_out=len(content["images"]) - len(taken),
        paint=paint,
        with_masks=with_masks,
        exif=exif,
    )


def annotations_of(content: Mapping[str, Any], class_ids: Mapping[int, int], where: str) -> dict[int, list[dict]]:
    """{image id: its annotations in the order of the file, reduced to what painting needs}."""
    of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        if one["image_id"] not in of_image or one["category_id"] not in class_ids:
            raise DataError(
                f"{where}: annotation {one['id']} is of image {one['image_id']} and category {one['category_id']}; "
                "one of them is not listed"
            )
        if one.get("iscrowd", 0) not in (0, 1):
            raise DataError(f"{where}: annotation {one['id']}: iscrowd is {shown(one['iscrowd'])}; wanted 0 or 1")
        about = {"id": one["id"], "class_id": class_ids[one["category_id"]], "iscrowd": one.get("iscrowd", 0)}
        of_image[one["image_id"]].append({**about, "segmentation": one["segmentation"]})
    return of_image
