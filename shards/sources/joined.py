"""Several folders of shards as one source: a training set from several datasets, such as IJmond, RISE and SMOKE5K."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.folder import ShardFolder
from shards.remote import Place
from shards.schema import ClassSet, DataError, Frame, Sample, Supervision


@dataclass(frozen=True)
class Joined:
    """The samples of all folders, in order. Keys are unchanged, but equal ones get their folder's name in front.

    Raises:
        DataError: no folder, the same images twice, or folders with other classes or supervision than the first.
    """

    folders: tuple[Place, ...]
    parts: tuple[ShardFolder, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.folders:
            raise DataError("join: no folder named; give two or more")
        parts = tuple(ShardFolder(folder) for folder in self.folders)
        first = parts[0].index
        first_with: dict[str, ShardFolder] = {}
        for part in parts:
            other = first_with.setdefault(part.index.fingerprint, part)
            if other is not part:
                raise DataError(f"join: {other.folder} and {part.folder} hold the same images; name them once")
        for part in parts[1:]:
            if (part.index.classes, part.index.supervision) != (first.classes, first.supervision):
                raise DataError(
                    f"{part.folder}: classes {part.index.classes}, supervision '{part.index.supervision}'; "
                    f"{parts[0].folder} has {first.classes}, '{first.supervision}': they cannot be one split"
                )
        object.__setattr__(self, "parts", parts)

    @property
    def class_set(self) -> ClassSet:
        return self.parts[0].index.as_class_set()

    @property
    def supervision(self) -> Supervision:
        return self.parts[0].index.supervision

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def groups(self) -> list[str]:
        return [group for part in self.parts for group in part.groups]

    def identity(self) -> dict[str, Any]:
        return {"name": "joined", "fingerprints": [part.index.fingerprint for part in self.parts]}

    def __getitem__(self, index: int) -> Sample:
        for number_of_part, part in enumerate(self.parts):
            if index < len(part):
                return self.sample(number_of_part, index)
            index -= len(part)
        raise IndexError(index)

    def sample(self, number_of_part: int, number: int) -> Sample:
        """One sample of one folder, with its image's bytes unchanged."""
        part = self.parts[number_of_part]
        key = part.keys[number]
        others = (other for n, other in enumerate(self.parts) if n != number_of_part)
        pixel = self.supervision == "pixel"
        about, frame = part.about(number), part.frames[number]
        return Sample(
            key=f"{number_of_part}_{key}" if any(key in other.number_of_key for other in others) else key,
            image=part.read(number, "jpg"),
            image_label=tuple((np.flatnonzero(part.image_label_NK[number]) + 1).tolist()),
            group=part.groups[number],
            source=str(about["source"]),
            frame=frame and Frame(f"{number_of_part}_{frame.clip}", frame.number),
            mask=part.mask(number) if pixel else None,
            mask_place=part.where(number),
            remarks=about.get("remarks", {}),
            regions=part.regions(number) if pixel else {},
        )
