"""What a sample is, and what it looks like inside a tar shard.

    KEY.jpg   the image as its owner published it (JPEG; other formats are encoded once)
    KEY.json  {"image_label": [class ids], "size": [H, W], "source": ..., "group": ...}
    KEY.png   the mask: class ids, 255 = ignore. Only in shards whose supervision is `pixel`.

Foreground class ids are 1..K, 0 is background; channel k-1 of a multi-hot image label is class k.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError

IGNORE_INDEX = 255
"""Of pixels that are not labelled. wsss.tensors has its own, since neither room imports the other."""
Supervision = Literal["label", "pixel"]
Box = tuple[int, int, int, int]  # y0, y1, x0, x1 in pixels, half-open

KEY_PATTERN = re.compile(r"[A-Za-z0-9_\-]+")  # no dot: WebDataset cuts the key at the first one; no slash: no paths


class DataError(ValueError):
    """The user's data are not what they should be. The message says where, got, wanted, what to do."""


class SampleError(DataError):
    """The bytes of one sample are no image, mask or description. The others are not touched: it may be left out."""


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The foreground classes of a dataset, in the order of their ids 1..K."""

    name: str
    classes: tuple[str, ...]

    @property
    def num_fg_classes(self) -> int:
        return len(self.classes)

    def multi_hot(self, image_label: Iterable[int]) -> np.ndarray:
        """Class ids 1..K -> (K,) float32 with a 1 at channel id-1."""
        present_K = np.zeros(len(self.classes), dtype=np.float32)
        present_K[[class_id - 1 for class_id in image_label]] = 1.0
        return present_K


SMOKE = ClassSet(name="smoke", classes=("smoke",))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with what is known about it.

    `group` names the video, scene or frame that the image is cut from: splits never share one.
    `regions` are named boxes (chimneys, say) that evaluation measures false activation on. They are
    positional knowledge like a mask, so they too may only be written to `pixel` shards.
    """

    key: str
    image: bytes
    image_label: tuple[int, ...]
    group: str
    source: str
    mask: np.ndarray | None = None
    regions: Mapping[str, Sequence[Box]] = field(default_factory=dict)

    def members(self, class_set: ClassSet, supervision: Supervision) -> dict[str, bytes]:
        """The files of this sample in a shard, by extension.

        Raises:
            DataError: key unusable, label outside the class set, image that does not decode, mask missing,
                not wanted, of another size or with a class id that does not exist.
        """
        where = f"{self.source}: sample '{self.key}'"
        if not KEY_PATTERN.fullmatch(self.key):
            raise DataError(f"{where}: a key may hold letters, digits, '_' and '-' only; rename it")
        check_image_label(self.image_label, class_set, where)
        height, width = decode_image(self.image, where).shape[:2]
        about: dict[str, Any] = {
            "image_label": list(self.image_label),
            "size": [height, width],
            "source": self.source,
            "group": self.group,
        }
        members = {"jpg": self.image, "json": b""}
        if supervision == "pixel":
            if self.mask is None:
                raise DataError(f"{where}: has no mask; a pixel shard needs one for every sample (or write label-only)")
            check_mask(self.mask, (height, width), class_set, where)
            unlabelled = set(np.unique(self.mask).tolist()) - {0, IGNORE_INDEX, *self.image_label}
            if unlabelled:
                raise DataError(f"{where}: mask shows class ids {sorted(unlabelled)}, label says {self.image_label}")
            about["regions"] = {name: [list(box) for box in boxes] for name, boxes in sorted(self.regions.items())}
            members["png"] = encode_mask(self.mask)
        elif self.mask is not None or self.regions:
            raise DataError(f"{where}: carries a mask or regions, but a label-only shard holds none: drop them first")
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


def check_mask(mask_HW: np.ndarray, size: tuple[int, int], class_set: ClassSet, where: str) -> None:
    """Raise DataError unless the mask is (H, W), of the image's size, with ids 0..K or 255."""
    if mask_HW.shape != size:
        raise DataError(f"{where}: mask is {mask_HW.shape}, image is {size} (height, width): they must be equal")
    present = np.unique(mask_HW)
    wrong = [int(v) for v in present if v > class_set.num_fg_classes and v != IGNORE_INDEX]
    if wrong:
        raise DataError(
            f"{where}: mask holds class ids {wrong}; wanted 0 (background), "
            f"1..{class_set.num_fg_classes} ({', '.join(class_set.classes)}) or {IGNORE_INDEX} (ignore)"
        )


def classes_in(mask_HW: np.ndarray) -> tuple[int, ...]:
    """The image label of a mask: the foreground class ids that it shows, sorted."""
    return tuple(sorted(set(np.unique(mask_HW).tolist()) - {0, IGNORE_INDEX}))


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Encoded image -> (H, W, 3) uint8 RGB. EXIF rotation is not applied: masks are drawn on the stored pixels.

    Raises:
        SampleError: the bytes are no complete image, or one of so many pixels that it must be an attack.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(
            f"{where}: image does not decode ({len(data)} bytes: {reason(error)}); replace or remove it"
        ) from error


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Encoded palette or grey PNG -> (H, W) uint8 class ids.

    Raises:
        SampleError: the bytes are no complete image, or a colour image (whose class ids nobody can know).
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in ("P", "L", "1"):
                raise SampleError(f"{where}: mask has mode {image.mode}; wanted a palette or grey image of class ids")
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(
            f"{where}: mask does not decode ({len(data)} bytes: {reason(error)}); replace or remove it"
        ) from error


def reason(error: BaseException) -> str:
    """Why an image does not decode; the same words in every process (PIL's have an address of memory in them)."""
    return "no image format that is known" if isinstance(error, UnidentifiedImageError) else str(error)


def encode_image(image_HW3: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_mask(mask_HW: np.ndarray) -> bytes:
    """(H, W) uint8 class ids -> palette PNG in the colours of PASCAL VOC."""
    image = Image.fromarray(mask_HW.astype(np.uint8), mode="P")
    image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> list[int]:
    """The 256 RGB colours that PASCAL VOC paints class ids with: bit j of a colour is bit 3(7-j)+channel of the id."""
    ids = np.arange(256)
    rgb = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            rgb[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return rgb.reshape(-1).tolist()


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
