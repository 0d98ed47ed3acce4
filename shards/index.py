"""index.json: what a folder of shards holds, and where each member's bytes lie.

Reading goes through the index and never through a blind stream: a truncated shard is found before the
first step instead of quietly giving fewer samples, and any sample is one positioned read.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from shards.schema import IGNORE_INDEX, KEY_PATTERN, ClassSet, DataError, Supervision, check_image_label

INDEX_NAME = "index.json"


class Shard(BaseModel):
    """One tar file. The lists run over its samples in the order of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str
    keys: list[str]
    groups: list[str]
    image_labels: list[list[int]]
    members: dict[str, list[tuple[int, int]]]  # extension -> (offset, size) of each sample's member

    @model_validator(mode="after")
    def _consistent(self) -> "Shard":
        if Path(self.name).name != self.name or not self.name.endswith(".tar"):
            raise ValueError(f"shard name '{self.name}' must be a plain NAME.tar")
        lengths = {len(self.keys), len(self.groups), len(self.image_labels), *map(len, self.members.values())}
        if lengths != {len(self.keys)} or not self.keys:
            raise ValueError(f"{self.name}: lists of {sorted(lengths)} samples; wanted equal, non-empty lists")
        bad_keys = [key for key in self.keys if not KEY_PATTERN.fullmatch(key)]
        if bad_keys:
            raise ValueError(f"{self.name}: unusable keys {bad_keys[:3]}")
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
        seen: set[str] = set()
        for shard in self.shards:
            if set(shard.members) != wanted:
                raise ValueError(
                    f"{shard.name}: members {sorted(shard.members)}; supervision '{self.supervision}' "
                    f"means {sorted(wanted)}, and a label-only shard holds no mask"
                )
            for key, label in zip(shard.keys, shard.image_labels, strict=True):
                check_image_label(label, self.as_class_set(), f"{shard.name}: {key}")
            twice = seen.intersection(shard.keys)
            if twice or len(set(shard.keys)) < len(shard.keys):
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
    def fingerprint(self) -> str:
        """16 hex digits that change when any byte of any shard, the classes or the supervision change."""
        content = [self.schema_version, self.classes, self.supervision, [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @staticmethod
    def of(class_set: ClassSet, split: str, supervision: Supervision, shards: Iterable[Shard]) -> "Index":
        """The index of these shards; raises DataError if they do not go together (a key twice, say)."""
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
        (folder / INDEX_NAME).write_text(self.model_dump_json() + "\n")

    @staticmethod
    def load(folder: Path) -> "Index":
        """Read and check FOLDER/index.json.

        Raises:
            DataError: not there, not JSON, or not an index (the first wrong place is named).
        """
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            here = (
                sorted(p.parent.name for p in Path(folder).glob(f"[!.]*/{INDEX_NAME}")) if Path(folder).is_dir() else []
            )
            hint = f"it holds the splits {here}: name one" if here else "write it with `wsss shards` (see --help)"
            raise DataError(f"{folder}: no shards here ({INDEX_NAME} is missing); {hint}")
        try:
            return Index.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {first_line(error)}; write the shards again") from error

    def class_counts(self) -> dict[str, int]:
        """How many images each class is in."""
        counts = dict.fromkeys(self.classes, 0)
        for shard in self.shards:
            for label in shard.image_labels:
                for class_id in label:
                    counts[self.classes[class_id - 1]] += 1
        return counts


def first_line(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not text"
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"])) or "index"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def index_shard(path: Path) -> Shard:
    """Read a finished shard once and say what it holds.

    Raises:
        DataError: the tar is damaged, or a sample lacks a member that others have.
    """
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    about: dict[str, dict] = {}
    for key, extension, span, data in tar_members(path):
        row = rows.setdefault(key, {})
        if extension in row:
            raise DataError(f"{path}: '{key}.{extension}' is there twice: two samples have one key; rename one")
        row[extension] = span
        if extension == "json":
            about[key] = json.loads(data)
    extensions = sorted({extension for row in rows.values() for extension in row})
    for key, row in rows.items():
        if sorted(row) != extensions:
            raise DataError(f"{path}: sample '{key}' has members {sorted(row)}; others have {extensions}")
    return Shard(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        keys=list(rows),
        groups=[about[key]["group"] for key in rows],
        image_labels=[about[key]["image_label"] for key in rows],
        members={extension: [row[extension] for row in rows.values()] for extension in extensions},
    )


def tar_members(path: Path) -> Iterator[tuple[str, str, tuple[int, int], bytes]]:
    """(key, extension, (offset, size), bytes) of each member of a tar shard.

    Raises:
        DataError: the tar ends early or is no tar.
    """
    try:
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                reader = tar.extractfile(info)
                data = reader.read() if reader else b""
                if len(data) != info.size:
                    raise DataError(f"{path}: member {info.name} ends after {len(data)} of {info.size} bytes")
                yield key, extension, (info.offset_data, info.size), data
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: damaged tar ({error}); write or fetch it again") from error


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(folder: Path, run: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map) -> Index:
    """Check every byte of a shard folder against its index.

    Args:
        run: like `map`; a process pool's version reads shards in parallel.

    Raises:
        DataError: lists every shard that is missing, of another size, changed, or other than the index says.
    """
    index = Index.load(folder)
    problems = [problem for problem in run(partial(problem_of, folder), index.shards) if problem]
    extra = {path.name for path in folder.glob("*.tar")} - {shard.name for shard in index.shards}
    problems += [f"{name}: not in the index" for name in sorted(extra)]
    if problems:
        listed = "\n  ".join(problems)
        raise DataError(
            f"{folder}: {len(problems)} of {len(index.shards)} shards are not what was written:\n  {listed}\n"
            "Write the shards again, or restore them from a copy."
        )
    return index


def problem_of(folder: Path, shard: Shard) -> str:
    """What is wrong with a shard; nothing said if it is as written."""
    path = folder / shard.name
    if not path.is_file():
        return f"{shard.name}: missing"
    if path.stat().st_size != shard.bytes:
        return f"{shard.name}: {path.stat().st_size} bytes; the index says {shard.bytes}"
    if sha256_of(path) != shard.sha256:
        return f"{shard.name}: its sha256 is not the index's: the bytes changed"
    if index_shard(path) != shard:
        return f"{shard.name}: its members are not where the index says"
    return ""
