"""What a sample is, and what it looks like inside a tar shard.

    KEY.jpg   the image as its owner published it (JPEG; other formats are encoded once)
    KEY.json  {"image_label": [class ids], "size": [H, W], "source": ..., "group": ...}; "remarks" if any, and
              "frame": [clip, number] of a frame of a clip
    KEY.png   the mask: class ids, 255 = ignore. Only in shards whose supervision is `pixel`.

Foreground class ids are 1..K, 0 is background; channel k-1 of a multi-hot image label is class k.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.pixels import (
    ORIENTATION,
    Palette,
    PixelError,
    grey_of,
    ids_of,
    orientation_of,
    rgb_of,
    upright,
    voc_colours,
)

IGNORE_INDEX = 255
"""Of pixels that are not labelled. wsss.tensors has its own, since neither room imports the other."""
MAX_CLASSES = 254  # a class id is a byte, 0 is background and 255 ignored
Supervision = Literal["label", "pixel"]
Box = tuple[int, int, int, int]  # y0, y1, x0, x1 in pixels, half-open

Decoded = TypeVar("Decoded")
TURNED = "EXIF orientation is not 1: viewers show the image turned, its pixels are kept as they lie (see --exif)"
ORDER = "; a class's id is its place among the classes: if the mask counts them otherwise, give --classes in its order"

KEY_PATTERN = re.compile(r"[A-Za-z0-9_\-]+")  # no dot: WebDataset cuts the key at the first one; no slash: no paths


class DataError(ValueError):
    """The user's data are not what they should be. The message says where, got, wanted, what to do."""


class SampleError(DataError):
    """The bytes of one sample are no image, mask or description. The others are not touched: it may be left out."""


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The foreground classes of a dataset, in the order of their ids 1..K.

    Raises:
        DataError: more classes than a mask of bytes can name.
    """

    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.classes) > MAX_CLASSES:
            raise DataError(
                f"class set '{self.name}' has {len(self.classes)} classes; wanted at most {MAX_CLASSES}, since an id "
                "is a byte, 0 is background and 255 ignored: merge classes or leave some out"
            )

    @property
    def num_fg_classes(self) -> int:
        return len(self.classes)

    def multi_hot(self, image_label: Iterable[int]) -> np.ndarray:
        """Class ids 1..K -> (K,) float32 with a 1 at channel id-1."""
        present_K = np.zeros(len(self.classes), dtype=np.float32)
        present_K[[class_id - 1 for class_id in image_label]] = 1.0
        return present_K

    def named(self, ids: Iterable[int]) -> str:
        """Class ids 1..K as '2 (cat), 3 (dog)', in their order."""
        return ", ".join(f"{class_id} ({self.classes[class_id - 1]})" for class_id in sorted(ids))


def hint_at_order(found: Sequence[str], wanted: Sequence[str]) -> str:
    """What to do where shards have the wanted classes in another order, which gives them other ids; "" otherwise."""
    same = found != wanted and sorted(found) == sorted(wanted)
    return f": the same names in another order; write the shards again with --classes {','.join(wanted)}" * same


SMOKE = ClassSet(name="smoke", classes=("smoke",))


class Frame(NamedTuple):
    """Where an image stands in a film: frames of one clip follow each other by their numbers, which may have gaps."""

    clip: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with what is known about it.

    `group` names the video, scene or frame that the image is cut from: splits never share one.
    `regions` are named boxes (chimneys, say) that evaluation measures false activation on. They are
    positional knowledge like a mask, so they too may only be written to `pixel` shards.
    `frame` is the image's place in its clip; None = it is of none, or nobody said.
    `hidden` are classes of the label that no pixel of the mask shows, since others lie over them.
    `mask_place` is the mask's file, or where one was looked for. `remarks` ({what: detail}) are things that the user
    has to hear of although the sample is taken; they are written to its json, counted and said at the end.
    """

    key: str
    image: bytes
    image_label: tuple[int, ...]
    group: str
    source: str
    frame: Frame | None = None
    mask: np.ndarray | None = None
    mask_place: str = ""
    hidden: tuple[int, ...] = ()
    regions: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def members(self, class_set: ClassSet, supervision: Supervision) -> dict[str, bytes]:
        """The files of this sample in a shard, by extension.

        Raises:
            DataError: key unusable, label outside the class set, image that does not decode, mask missing,
                not wanted, of another size, with a class id that does not exist or without a class of the label.
        """
        where = f"{self.source}: sample '{self.key}'"
        if not KEY_PATTERN.fullmatch(self.key):
            raise DataError(f"{where}: a key may hold letters, digits, '_' and '-' only; rename it")
        check_image_label(self.image_label, class_set, where)
        height, width = decode_image(self.image, where).shape[:2]
        _, orientation = header_of(self.image, where)
        remarks = {**self.remarks, **({TURNED: str(orientation)} if orientation != 1 else {})}
        about: dict[str, Any] = {
            "image_label": list(self.image_label),
            "size": [height, width],
            "source": self.source,
            "group": self.group,
        }
        if self.frame is not None:
            about["frame"] = list(self.frame)
        members = {"jpg": self.image, "json": b""}
        if supervision == "pixel":
            place = f" ({self.mask_place})" if self.mask_place else ""
            if self.mask is None:
                raise DataError(
                    f"{where}: has no mask{place}; a pixel shard needs one for every sample (or write label-only)"
                )
            check_mask(self.mask, (height, width), class_set, where, orientation)
            present = set(np.unique(self.mask).tolist())
            unlabelled = present - {0, IGNORE_INDEX, *self.image_label}
            if unlabelled:
                raise DataError(
                    f"{where}: mask{place} shows {class_set.named(unlabelled)}, label says "
                    f"{class_set.named(self.image_label) or 'none of the classes'}; correct the label or the mask"
                    f"{ORDER if len(class_set.classes) > 1 else ''}"
                )
            seen = {*self.image_label} - {*self.hidden}
            absent = class_set.named(seen - present)
            if absent:
                binary = (
                    "; a 0/255 mask? Class ids are wanted, 255 is ignored: see --mask-values"
                    if present == {0, IGNORE_INDEX}
                    else ""
                )
                raise DataError(
                    f"{where}: label says {absent}, but the mask{place} shows {sorted(present)} only"
                    f"{binary}; correct the label or the mask"
                )
            about["regions"] = {name: [list(box) for box in boxes] for name, boxes in sorted(self.regions.items())}
            members["png"] = encode_mask(self.mask)
        elif self.mask is not None or self.regions:
            raise DataError(f"{where}: carries a mask or regions, but a label-only shard holds none: drop them first")
        if remarks:
            about["remarks"] = remarks
        members["json"] = json.dumps(about, sort_keys=True).encode()
        return members


def check_image_label(image_label: Sequence[int], class_set: ClassSet, where: str) -> None:
    """Raise DataError unless the label is a sorted list of different class ids in 1..K."""
    wrong = [class_id for class_id in image_label if not 1 <= class_id <= class_set.num_fg_classes]
    if wrong:
        raise DataError(
            f"{where}: label holds class ids {wrong}; class set '{class_set.name}' has 1..{class_set.num_fg_classes}"
        )
    if list(image_label) != sorted(set(image_label)):
        raise DataError(f"{where}: label {list(image_label)} must be sorted and name each class once")


def check_mask(
    mask_HW: np.ndarray, size: tuple[int, int], class_set: ClassSet, where: str, orientation: int = 1
) -> None:
    """Raise DataError unless the mask is (H, W), of the image's size, with ids 0..K or 255."""
    check_size_of_mask(mask_HW.shape, size, where, orientation)
    check_class_ids(mask_HW, class_set, where)


def check_class_ids(mask_HW: np.ndarray, class_set: ClassSet, where: str) -> None:
    """Raise DataError unless a mask holds ids 0..K or 255 only."""
    wrong_HW = (mask_HW > class_set.num_fg_classes) & (mask_HW != IGNORE_INDEX)
    if wrong_HW.any():
        raise DataError(
            f"{where}: mask holds class ids {np.unique(mask_HW[wrong_HW]).tolist()}; wanted 0 (background), "
            f"1..{class_set.num_fg_classes} ({', '.join(class_set.classes)}) or {IGNORE_INDEX} (ignore); of other grey "
            "levels `wsss shards images` and `smoke` are told by --mask-values what they mean"
        )


def check_size_of_mask(mask_size: tuple[int, ...], size: tuple[int, int], where: str, orientation: int = 1) -> None:
    """Raise DataError unless both are the same (height, width); says if the image's EXIF orientation may be why."""
    if mask_size != size:
        turned = (
            f"; its EXIF orientation is {orientation}: viewers show it turned, see --exif" if orientation != 1 else ""
        )
        raise DataError(f"{where}: mask is {mask_size}, image is {size} (height, width): they must be equal{turned}")


def classes_in(mask_HW: np.ndarray) -> tuple[int, ...]:
    """The image label of a mask: the foreground class ids that it shows, sorted."""
    return tuple(sorted(set(np.unique(mask_HW).tolist()) - {0, IGNORE_INDEX}))


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Encoded image -> (H, W, 3) uint8 RGB. EXIF rotation is not applied: masks are drawn on the stored pixels.

    Raises:
        SampleError: the bytes are no complete image, one of a mode that RGB cannot show (see pixels.rgb_of), or one of
            so many pixels that it must be an attack.
    """
    return decoded(data, where, "image", rgb_of)


def decode_mask(data: bytes, where: str, palette: Palette = "ids") -> np.ndarray:
    """Encoded palette or grey PNG -> (H, W) uint8 class ids.

    Args:
        palette: whose colours a palette must have, see pixels.ids_of.

    Raises:
        SampleError: the bytes are no complete PNG, or its values are no class ids (colours, 16 bits, another palette).
    """
    return decoded(data, where, "mask", partial(ids_of, palette=palette))


def decode_grey(data: bytes, where: str) -> np.ndarray:
    """Encoded PNG of grey levels -> (H, W) uint8, see pixels.grey_of. Raises SampleError as decode_mask does."""
    return decoded(data, where, "mask", grey_of)


def decoded(data: bytes, where: str, what: str, read: Callable[[Image.Image], Decoded]) -> Decoded:
    """What `read` makes of an encoded image; whatever the decoder raises becomes a SampleError with its place."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read(image)
    except PixelError as error:
        raise SampleError(f"{where}: {what} {error}") from error
    except Exception as error:  # a decoder raises whatever the first wrong byte leads to
        raise SampleError(
            f"{where}: {what} does not decode ({len(data)} bytes: {reason(error)}); replace or remove it"
        ) from error


def header_of(data: bytes, where: str) -> tuple[tuple[int, int], int]:
    """((height, width) as stored, EXIF orientation 1..8) of an encoded image; its pixels are not decoded."""
    return decoded(data, where, "image", lambda image: ((image.height, image.width), orientation_of(image)))


def turn_upright(data: bytes, where: str) -> bytes:
    """An encoded image -> a JPEG whose pixels lie as viewers show it; the bytes themselves if they do already."""
    _, orientation = header_of(data, where)
    return data if orientation == 1 else encode_image(upright(decode_image(data, where), orientation))


def reason(error: BaseException) -> str:
    """Why an image does not decode; the same words in every process (PIL's have an address of memory in them)."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format that is known"
    return str(error) or type(error).__name__


def encode_image(image_HW3: np.ndarray, quality: int = 95, orientation: int = 1) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG, with its EXIF orientation unless it is upright."""
    buffer = io.BytesIO()
    about = Image.Exif()
    if orientation != 1:
        about[ORIENTATION] = orientation
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=quality, **({"exif": about} if orientation != 1 else {}))
    return buffer.getvalue()


def encode_mask(mask_HW: np.ndarray) -> bytes:
    """(H, W) uint8 class ids -> palette PNG in the colours of PASCAL VOC."""
    image = Image.fromarray(mask_HW.astype(np.uint8), mode="P")
    image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> list[int]:
    """The 256 RGB colours that PASCAL VOC paints class ids with."""
    return voc_colours().reshape(-1).tolist()


class Source(Protocol):
    """Where samples come from: a lazy sequence that can be sent to worker processes."""

    class_set: ClassSet

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def groups(self) -> list[str]:
        """The group of each sample, known without reading an image."""
        ...


@runtime_checkable
class Traceable(Protocol):
    """A source that knows whether it would give the same samples as one of an earlier process."""

    def identity(self) -> dict[str, Any]:
        """Plain values (json) that differ whenever a sample, its bytes or its place could differ."""
        ...
