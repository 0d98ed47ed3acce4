"""What a sample is, for all code that writes, reads and checks data.

Foreground class ids are 1..K, 0 is background; channel k-1 of a multi-hot image label is class k.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

IGNORE_INDEX = 255
"""Value of pixels without a label. wsss.tensors has its own, since neither package imports the other."""
MAX_CLASSES = 254  # a class id is a byte, 0 is background and 255 ignored
Supervision = Literal["label", "pixel"]
Box = tuple[int, int, int, int]  # y0, y1, x0, x1 in pixels, half-open

KEY_PATTERN = re.compile(r"[A-Za-z0-9_\-]+")  # no dot, at which WebDataset ends the key; no slash, so no paths


class DataError(ValueError):
    """The user's data is wrong. The message says where, what was got, what was wanted, and what to do."""


class DiskError(DataError):
    """The disk does not accept what is written. It is not the sample's fault: all others would be refused, too."""


class SampleError(DataError):
    """The bytes of one sample are not an image, mask or description. Others are not affected, so it may be left out."""


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The foreground classes of a dataset, in the order of their ids 1..K.

    Raises:
        DataError: more classes than the bytes of a mask can hold.
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
    """What to do if shards have the wanted classes in another order, and so with other ids; "" otherwise."""
    same = found != wanted and sorted(found) == sorted(wanted)
    return f": the same names in another order; write the shards again with --classes {','.join(wanted)}" * same


SMOKE = ClassSet(name="smoke", classes=("smoke",))


class Frame(NamedTuple):
    """The place of an image in a clip, whose frames follow each other by their numbers, which may have gaps."""

    clip: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with what is known about it.

    `group` names the video, scene or frame from which the image was cut; splits never share one.
    `regions` are named boxes, such as chimneys, on which evaluation measures false activation. Like a mask they say
    where something is, so they may only be written to `pixel` shards.
    `frame` is the image's place in its clip; None = not part of a clip, or not known.
    `hidden` are classes of the label that no pixel of the mask shows, since others cover them.
    `mask_place` is the mask's file, or where one was looked for. `remarks` ({what: detail}) are things that the user
    should know although the sample is accepted; they are written to its json, counted and reported at the end.
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


def check_image_label(image_label: Sequence[int], class_set: ClassSet, where: str) -> None:
    """Raise DataError unless the label is a sorted list of different class ids in 1..K."""
    wrong = [class_id for class_id in image_label if not 1 <= class_id <= class_set.num_fg_classes]
    if wrong:
        raise DataError(
            f"{where}: label holds class ids {wrong}; class set '{class_set.name}' has 1..{class_set.num_fg_classes}"
        )
    if list(image_label) != sorted(set(image_label)):
        raise DataError(f"{where}: label {list(image_label)} must be sorted and name each class once")


def check_class_ids(mask_HW: np.ndarray, class_set: ClassSet, where: str) -> None:
    """Raise DataError unless a mask holds only ids 0..K and 255."""
    wrong_HW = (mask_HW > class_set.num_fg_classes) & (mask_HW != IGNORE_INDEX)
    if wrong_HW.any():
        raise DataError(
            f"{where}: mask holds class ids {np.unique(mask_HW[wrong_HW]).tolist()}; wanted 0 (background), "
            f"1..{class_set.num_fg_classes} ({', '.join(class_set.classes)}) or {IGNORE_INDEX} (ignore); with `wsss "
            "shards images` and `smoke`, say with --mask-values what other grey levels mean"
        )


def check_size_of_mask(mask_size: tuple[int, ...], size: tuple[int, int], where: str, orientation: int) -> None:
    """Raise DataError unless both (height, width) are equal; says if the image's EXIF orientation may be the cause."""
    if mask_size != size:
        turned = (
            f"; its EXIF orientation is {orientation}: viewers show it turned, see --exif" if orientation != 1 else ""
        )
        raise DataError(f"{where}: mask is {mask_size}, image is {size} (height, width): they must be equal{turned}")


def classes_in(mask_HW: np.ndarray) -> tuple[int, ...]:
    """The image label of a mask: its foreground class ids, sorted."""
    return tuple(sorted(set(np.unique(mask_HW).tolist()) - {0, IGNORE_INDEX}))


class Source(Protocol):
    """A lazy sequence of samples that can be sent to worker processes."""

    @property
    def class_set(self) -> ClassSet: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def groups(self) -> list[str]:
        """The group of each sample, without reading an image."""
        ...


@runtime_checkable
class Traceable(Protocol):
    """A source that can tell whether it would give the same samples as one in an earlier process."""

    def identity(self) -> dict[str, Any] | None:
        """Plain values (json) that differ whenever a sample, its bytes or its place could differ; None = not known."""
        ...


def identity_of(source: Source) -> dict[str, Any] | None:
    """The identity that a source states; None if it does not state one."""
    return source.identity() if isinstance(source, Traceable) else None
