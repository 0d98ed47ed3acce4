"""Sources -> tar shards. A split appears under its final name whole and checked, or not at all."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shards.index import INDEX_NAME, Index, Shard, index_shard
from shards.schema import ClassSet, DataError, Sample, Supervision

DEFAULT_SHARDS = 32


class Source(Protocol):
    """Where samples come from: a lazy sequence that can be sent to worker processes."""

    class_set: ClassSet

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def groups(self) -> list[str]:
        """The group of each sample, known without reading an image."""
        ...


def write_split(
    source: Source,
    out: Path,
    split: str,
    supervision: Supervision,
    *,
    num_shards: int = DEFAULT_SHARDS,
    may_lack_classes: bool = False,
    run: Callable[[Callable[[Any], Shard], Iterable[Any]], Iterable[Shard]] = map,
) -> Index:
    """Write OUT/SPLIT/: the shards and their index.

    Samples are dealt to the shards in a fixed pseudo-random order, so that neighbours of one video are spread
    and reading a few shards sees every kind of sample.

    Args:
        source: the samples. With supervision `label` they must carry no mask.
        num_shards: at most this many; never more than there are samples.
        may_lack_classes: write label-only shards without a positive image of some class, to be joined with others;
            training refuses them as they are.
        run: like `map`; a process pool's version writes shards in parallel. The bytes do not depend on it.

    Raises:
        DataError: empty split; a group that another split in OUT holds; a class without a positive image in a
            label-only split; OUT/SPLIT exists; or a sample that is not what it should be.
    """
    final = out / split
    if final.exists():
        raise DataError(f"{final}: exists already; remove it or choose another --out")
    if len(source) == 0:
        raise DataError(f"split '{split}': the source has no sample for it; check --root and the split's list")
    check_groups(set(source.groups()), out, split)
    order = np.random.default_rng(0).permutation(len(source))
    dealt = [rows.tolist() for rows in np.array_split(order, min(num_shards, len(source)))]
    with temporary_folder(final) as folder:
        jobs = [(folder / f"{split}-{number:05d}.tar", rows) for number, rows in enumerate(dealt)]
        shards = tuple(run(partial(write_shard, source, supervision), jobs))
        index = Index.of(source.class_set, split, supervision, shards)
        if supervision == "label" and not may_lack_classes:
            check_every_class_has_an_image(index, str(final))
        index.save(folder)
    return index


def write_shard(source: Source, supervision: Supervision, job: tuple[Path, list[int]]) -> Shard:
    """Write the samples of these rows to one tar; the bytes depend on nothing else (no times, no user names)."""
    path, rows = job
    encoded = ((s.key, s.members(source.class_set, supervision)) for s in (source[row] for row in rows))
    write_tar(path, encoded)
    return index_shard(path)


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """Write (key, {extension: bytes}) samples as a WebDataset tar: temporary name, then rename."""
    import webdataset

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0, user="wsss", group="wsss") as tar:
                for key, members in samples:
                    tar.write({"__key__": key, **members})
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """A folder beside `final` that takes its name when the block succeeds and is removed when it fails."""
    folder = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_groups(groups: set[str], out: Path, split: str) -> None:
    """Raise DataError if another split in OUT holds one of these groups: its frames would leak into this split."""
    for other in sorted(path.parent for path in out.glob(f"*/{INDEX_NAME}")):
        shared = sorted(groups & Index.load(other).groups)
        if shared:
            raise DataError(
                f"split '{split}' shares {len(shared)} groups with split '{other.name}' in {out}, first '{shared[0]}': "
                "frames of one video or scene must not be on both sides; move the whole group to one split"
            )


def check_every_class_has_an_image(index: Index, where: str) -> None:
    """Raise DataError if a class has no positive image, since nothing could be learned of it."""
    without = [name for name, count in index.class_counts().items() if count == 0]
    if without:
        raise DataError(
            f"{where}: no image is labelled {', '.join(without)} among {index.num_samples}; "
            "check the label column, or leave the class out of the class set"
        )
