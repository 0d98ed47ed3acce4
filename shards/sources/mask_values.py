"""Masks whose grey levels are not class ids, such as 0 and 255: the class that each level means."""

from collections.abc import Mapping

import numpy as np

from shards.image_bytes import decode_grey, decode_mask
from shards.schema import IGNORE_INDEX, ClassSet, DataError
from shards.sources.label_names import BACKGROUND

IGNORE = "ignore"
OTHER = "other"  # instead of a level: all levels that are not named
OPTION = "--mask-values"


def parse_mask_values(text: str | None, class_set: ClassSet) -> dict[int, int] | None:
    """`0=background,255=cat,other=ignore` -> {grey level: class id}; None -> None, for masks of class ids.

    Raises:
        DataError: not a level 0..255, a level twice, or a name that is not a class.
    """
    if text is None:
        return None
    ids = {BACKGROUND: 0, IGNORE: IGNORE_INDEX}
    ids |= {name: number for number, name in enumerate(class_set.classes, start=1)}
    found: dict[int, int] = {}
    for part in text.split(","):
        level, equals, name = (one.strip() for one in part.partition("="))
        if level == OTHER:
            level = "-1"
        elif not equals or not level.isascii() or not level.isdigit() or int(level) > 255:
            raise DataError(
                f"{OPTION} {text}: '{part}' is not LEVEL=NAME, such as 0={BACKGROUND},255={class_set.classes[0]}"
            )
        if name not in ids:
            raise DataError(f"{OPTION} {text}: '{name}' is not a class; wanted one of {', '.join(ids)}")
        if int(level) in found:
            raise DataError(f"{OPTION} {text}: level {part.partition('=')[0].strip()} occurs twice")
        found[int(level)] = ids[name]
    other = found.pop(-1, None)
    return found if other is None else {**dict.fromkeys(range(256), other), **found}


def read_mask(data: bytes, where: str, values: Mapping[int, int] | None) -> np.ndarray:
    """Encoded PNG -> (H, W) uint8 class ids: its grey levels, or what these mean by `values`.

    Raises:
        DataError: the bytes are damaged or not such a mask, or `values` lacks a level.
    """
    if values is None:
        return decode_mask(data, where)
    levels_HW = decode_grey(data, where)
    if unknown := sorted({*np.unique(levels_HW).tolist()} - {*values}):
        raise DataError(
            f"{where}: holds the grey levels {unknown[:8]}{' ...' if len(unknown) > 8 else ''}, which {OPTION} lacks; "
            f"say what they are (LEVEL=NAME, or {OTHER}={IGNORE} for all that are not named)"
        )
    table = np.zeros(256, dtype=np.uint8)
    table[[*values]] = [*values.values()]
    return table[levels_HW]
