"""A sample as the files of a tar shard, checked before they are written.

KEY.jpg   the image as published (JPEG; other formats are encoded once)
KEY.json  {"image_label": [class ids], "size": [H, W], "source": ..., "group": ...}; "remarks" if any, and
          "frame": [clip, number] of a frame of a clip
KEY.png   the mask: class ids, 255 = ignore. Only in shards with supervision `pixel`, whose json also has "regions"
"""

import json
from typing import Any

import numpy as np

from shards.image_bytes import decode_image, encode_mask, header_of
from shards.schema import (
    IGNORE_INDEX,
    KEY_PATTERN,
    ClassSet,
    DataError,
    Sample,
    Supervision,
    check_class_ids,
    check_image_label,
    check_size_of_mask,
)

ORDER = (
    "; a class's id is its place among the classes: if the mask numbers them differently, give --classes in that order"
)
TURNED = "EXIF orientation is not 1: viewers show the image turned, its pixels are kept as they lie (see --exif)"


def members_of(sample: Sample, class_set: ClassSet, supervision: Supervision) -> dict[str, bytes]:
    """{extension: bytes} of a sample in a shard.

    Raises:
        DataError: an unusable key, a label outside the class set, an image that does not decode, or a mask that is
            missing, not wanted, of another size, with an unknown class id or without a class of the label.
    """
    where = f"{sample.source}: sample '{sample.key}'"
    if not KEY_PATTERN.fullmatch(sample.key):
        raise DataError(f"{where}: a key may hold letters, digits, '_' and '-' only; rename it")
    check_image_label(sample.image_label, class_set, where)
    height, width = decode_image(sample.image, where).shape[:2]
    _, orientation = header_of(sample.image, where)
    about: dict[str, Any] = {
        "image_label": list(sample.image_label),
        "size": [height, width],
        "source": sample.source,
        "group": sample.group,
    }
    if sample.frame is not None:
        about["frame"] = list(sample.frame)
    if remarks := {**sample.remarks, **({TURNED: str(orientation)} if orientation != 1 else {})}:
        about["remarks"] = remarks
    members = {"jpg": sample.image, "json": b""}
    if supervision == "pixel":
        about["regions"] = {name: [list(box) for box in boxes] for name, boxes in sorted(sample.regions.items())}
        members["png"] = encode_mask(checked_mask(sample, (height, width), orientation, class_set, where))
    elif sample.mask is not None or sample.regions:
        raise DataError(f"{where}: carries a mask or regions, but a label-only shard holds none: drop them first")
    members["json"] = json.dumps(about, sort_keys=True).encode()
    return members


def checked_mask(
    sample: Sample, size: tuple[int, int], orientation: int, class_set: ClassSet, where: str
) -> np.ndarray:
    """The mask of a sample whose image has this size and EXIF orientation: (H, W), known class ids that fit its label.

    Raises:
        DataError: there is no mask, or it is invalid.
    """
    place = f" ({sample.mask_place})" if sample.mask_place else ""
    if sample.mask is None:
        raise DataError(f"{where}: has no mask{place}; a pixel shard needs one for every sample (or write label-only)")
    check_size_of_mask(sample.mask.shape, size, where, orientation)
    check_class_ids(sample.mask, class_set, where)
    present = set(np.unique(sample.mask).tolist())
    unlabelled = present - {0, IGNORE_INDEX, *sample.image_label}
    if unlabelled:
        raise DataError(
            f"{where}: mask{place} shows {class_set.named(unlabelled)}, label says "
            f"{class_set.named(sample.image_label) or 'none of the classes'}; correct the label or the mask"
            f"{ORDER if len(class_set.classes) > 1 else ''}"
        )
    seen = {*sample.image_label} - {*sample.hidden}
    absent = class_set.named(seen - present)
    if absent:
        values = f" 0=background,255={class_set.classes[0]}" if len(class_set.classes) == 1 else ""
        binary = (
            f"; a 0/255 mask? Class ids are wanted, 255 is ignored: see --mask-values{values}"
            if present == {0, IGNORE_INDEX}
            else ""
        )
        raise DataError(
            f"{where}: label says {absent}, but the mask{place} shows {sorted(present)} only"
            f"{binary}; correct the label or the mask"
        )
    return sample.mask
