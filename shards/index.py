"""index.json: what a folder of shards holds, and where each member's bytes are.

Shards are read through the index, never as a blind stream: a truncated shard is found before the first step instead of
silently giving fewer samples, and any sample takes one positioned read.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from shards.files import write_whole
from shards.remote import Place, place_of, read_bytes
from shards.schema import IGNORE_INDEX, KEY_PATTERN, ClassSet, DataError, Frame, Supervision, check_image_label
from shards.tars import shown, unreadable

INDEX_NAME = "index.json"
SHARD_NAME = re.compile(r"[\w\-.]+\.tar")  # becomes part of a path and of a URL
SHA256 = re.compile(r"[0-9a-f]{64}")  # becomes a file's name in the cache


class Shard(BaseModel):
    """One tar file. Each list has an entry per sample, in the order of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str
    keys: list[str]
    groups: list[str]
    image_labels: list[list[int]]
    members: dict[str, list[tuple[int, int]]]  # extension -> (offset, size) of each sample's member
    frames: list[Frame | None] | None = None  # each sample's place in its clip; None if no sample has one

    @model_validator(mode="after")
    def _consistent(self) -> "Shard":
        if not SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"shard name {shown(self.name)} must be a plain NAME.tar")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.name}: sha256 is {shown(self.sha256)}; wanted 64 hex digits")
        lengths = {len(self.keys), len(self.groups), len(self.image_labels), *map(len, self.members.values())}
        lengths |= set() if self.frames is None else {len(self.frames)}
        if lengths != {len(self.keys)} or not self.keys:
            raise ValueError(f"{self.name}: lists of {sorted(lengths)} samples; wanted equal, non-empty lists")
        bad_keys = [key for key in self.keys if not KEY_PATTERN.fullmatch(key)]
        if bad_keys:
            raise ValueError(f"{self.name}: unusable keys {[*map(shown, bad_keys[:3])]}")
        for extension, spans in self.members.items():
            if any(offset < 0 or size <= 0 or offset + size > self.bytes for offset, size in spans):
                raise ValueError(f"{self.name}: a '{extension}' member lies outside the {self.bytes} bytes")
        return self


class Index(BaseModel):
    """The whole folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    class_set: str
    classes: tuple[str, ...]
    split: str
    supervision: Supervision
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "Index":
        if not 1 <= len(self.classes) < IGNORE_INDEX:
            raise ValueError(f"{len(self.classes)} classes; wanted 1 to {IGNORE_INDEX - 1}")
        wanted = {"jpg", "json", "png"} if self.supervision == "pixel" else {"jpg", "json"}
        names = [shard.name for shard in self.shards]
        for what, words in (("shards", names), ("classes", self.classes)):
            if twice := twice_in(words):
                raise ValueError(f"{what} appear twice: {sorted(twice)[:3]}")
        seen: set[str] = set()
        for shard in self.shards:
            if set(shard.members) != wanted:
                raise ValueError(
                    f"{shard.name}: members {sorted(shard.members)}; supervision '{self.supervision}' "
                    f"means {sorted(wanted)}, and a label-only shard holds no mask"
                )
            for key, label in zip(shard.keys, shard.image_labels, strict=True):
                check_image_label(label, self.as_class_set(), f"{shard.name}: {key}")
            twice = seen.intersection(shard.keys) or twice_in(shard.keys)
            if twice:
                raise ValueError(f"{shard.name}: keys appear twice: {sorted(twice)[:3]}")
            seen.update(shard.keys)
        if not seen:
            raise ValueError("holds no sample; an empty split cannot be read")
        return self

    def as_class_set(self) -> ClassSet:
        return ClassSet(name=self.class_set, classes=self.classes)

    @property
    def num_samples(self) -> int:
        return sum(len(shard.keys) for shard in self.shards)

    @property
    def groups(self) -> set[str]:
        return {group for shard in self.shards for group in shard.groups}

    @property
    def image_bytes(self) -> dict[str, int]:
        """{key: size of its image in bytes}."""
        sizes: dict[str, int] = {}
        for shard in self.shards:
            sizes |= {key: size for key, (_, size) in zip(shard.keys, shard.members["jpg"], strict=True)}
        return sizes

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any byte of any shard, the classes or the supervision."""
        content = [self.schema_version, self.classes, self.supervision, [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @staticmethod
    def of(class_set: ClassSet, split: str, supervision: Supervision, shards: Iterable[Shard]) -> "Index":
        """The index of these shards; raises DataError if they do not fit together (for example, a key occurs twice)."""
        try:
            return Index(
                class_set=class_set.name,
                classes=class_set.classes,
                split=split,
                supervision=supervision,
                shards=tuple(shards),
            )
        except ValidationError as error:
            raise DataError(f"split '{split}': {first_line(error)}") from error

    def save(self, folder: Path) -> None:
        write_whole(folder / INDEX_NAME, self.model_dump_json(exclude_none=True) + "\n")

    @staticmethod
    def load(folder: Place) -> "Index":
        """Read and check FOLDER/index.json, here or at a URL.

        Raises:
            DataError: missing, not JSON, or not an index (names the first wrong place).
        """
        folder = place_of(folder)
        if not isinstance(folder, Path):
            url = f"{folder}/{INDEX_NAME}"
            return Index.parse(read_bytes(url), url)
        path = folder / INDEX_NAME
        if not path.is_file():
            here = sorted(p.parent.name for p in folder.glob(f"[!.]*/{INDEX_NAME}")) if folder.is_dir() else []
            hint = "write it with `wsss shards`, or name where it is now, as in data.val=FOLDER"
            if here:
                hint = f"it holds the splits {here}: name one"
            raise DataError(f"{folder}: no shards here ({INDEX_NAME} is missing); {hint}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error
        return Index.parse(content, str(path))

    @staticmethod
    def parse(content: bytes, where: str) -> "Index":
        """The index in these bytes; raises DataError if they are not an index."""
        try:
            return Index.model_validate_json(content)
        except ValidationError as error:
            raise DataError(f"{where}: {first_line(error)}; write the shards again") from error

    def class_counts(self) -> dict[str, int]:
        """{class: number of images that show it}."""
        counts = dict.fromkeys(self.classes, 0)
        for shard in self.shards:
            for label in shard.image_labels:
                for class_id in label:
                    counts[self.classes[class_id - 1]] += 1
        return counts


def name_shared(one: Index, other: Index, name: str) -> str:
    """What a split shares with another one of this name, in words; "" if nothing.

    Two splits must share no groups and no images if one evaluates what was learned or chosen on the other. An image is
    recognised by its key and its size in bytes; if most of the common keys have other sizes, as 0001 in two folders
    does, the keys are equal by chance.
    """
    if groups := sorted(one.groups & other.groups):
        return f"shares {len(groups)} groups with {name}, first '{groups[0]}'"
    sizes, others = one.image_bytes, other.image_bytes
    keys = sorted(sizes.keys() & others.keys())
    same = [key for key in keys if sizes[key] == others[key]]
    return f"shares {len(same)} images with {name}, first '{same[0]}'" if 2 * len(same) > len(keys) else ""


def twice_in(words: Iterable[str]) -> set[str]:
    return {word for word, count in Counter(words).items() if count > 1}


def first_line(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"])) or "index"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def check_every_class_has_an_image(index: Index, where: str) -> None:
    """Raise DataError if a class has no positive image, since nothing could be learned about it."""
    without = [name for name, count in index.class_counts().items() if count == 0]
    if index.split == "test" and len(without) == len(index.classes):
        raise DataError(
            f"{where}: a test split without truth: none of its {index.num_samples} images has a label, so nothing can "
            "be learned from it; predict on it, and train on another split"
        )
    if without:
        raise DataError(
            f"{where}: no image is labelled {', '.join(without)} among {index.num_samples}; "
            "check the labels, leave the class out of the class set, or allow it for a part of a data set "
            "(--may-lack-classes when writing, data.may_lack_classes: true when training)"
        )
