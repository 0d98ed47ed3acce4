"""Regions of COCO's annotations (polygons and run-length codes) -> pixels; checked before any C code gets them."""

from typing import Any

import numpy as np

from shards.schema import DataError
from shards.sources.text import shown

FARTHEST = 10  # how far outside its image a polygon's point may be, in widths or heights of the image


def region(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Polygons or a run-length code -> (H, W) bool.

    Raises:
        DataError: neither, of another size than the image, or with impossible numbers.
    """
    if not isinstance(segmentation, list):
        return runs_of(segmentation, height, width, where)
    from pycocotools import mask as codes

    polygons = polygons_of(segmentation, height, width, where)
    return codes.decode(codes.merge(codes.frPyObjects(polygons, height, width))).astype(bool)


def polygons_of(segmentation: Any, height: int, width: int, where: str) -> list[list[float]]:
    """The polygons of an annotation, each x0, y0, x1, y1, ... in pixels, checked before they are rasterised.

    Raises:
        DataError: not a list of lists of six or more numbers, an odd count, not finite, or far outside the image.
    """
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(f"{where}: segmentation is {shown(segmentation)}; wanted a list of polygons")
    for flat in segmentation:
        if (
            not isinstance(flat, list)
            or len(flat) < 6  # four numbers would be taken for a box
            or len(flat) % 2
            or not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in flat)
        ):
            raise DataError(f"{where}: polygon {shown(flat)}; wanted x0, y0, x1, y1, ... of at least three points")
        for number, value in enumerate(flat):
            side = height if number % 2 else width
            if not -FARTHEST * side <= value <= (FARTHEST + 1) * side:  # false for NaN too
                raise DataError(
                    f"{where}: polygon has the coordinate {'xy'[number % 2]} = {shown(value)}; wanted pixels of an "
                    f"image of {height} x {width} (height, width), at most {FARTHEST} of its sides outside"
                )
    return segmentation


def runs_of(code: Any, height: int, width: int, where: str) -> np.ndarray:
    """A run-length code, plain or compressed -> (H, W) bool: runs of 0 and 1 down the columns, 0 first.

    Raises:
        DataError: of another size, not a code, a negative run, or runs whose sum is not the number of pixels.
    """
    if not isinstance(code, dict) or code.get("size") != [height, width] or "counts" not in code:
        raise DataError(f"{where}: segmentation {shown(code)}; wanted polygons, or size {[height, width]} and counts")
    counts = code["counts"]
    if isinstance(counts, str):
        counts = decompressed(counts, where)
    if not isinstance(counts, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in counts):
        raise DataError(f"{where}: counts are {shown(counts)}; wanted whole numbers, or COCO's compressed text")
    wrong = [one for one in counts if not 0 <= one <= height * width]
    if wrong or sum(counts) != height * width:
        got = f"hold {shown(wrong[0])}" if wrong else f"sum to {sum(counts)}"
        raise DataError(
            f"{where}: its {len(counts)} counts {got}, its image has {height} x {width} = {height * width} pixels "
            "(height, width): the code is of another image or damaged"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def decompressed(text: str, where: str) -> list[int]:
    """Decompress COCO's counts: numbers in letters of 5 bits from '0' on; from the fourth number on, each is the
    difference to the last but one."""
    counts: list[int] = []
    number, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"{where}: counts {shown(text)} are not a run-length code (letter {letter!a})")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise DataError(f"{where}: counts {shown(text)} end in the middle of a number; export them again")
    return counts
