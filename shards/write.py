"""Sources -> tar shards. A split appears under its final name complete and checked, or not at all.

If a source says what it is made of (`identity`), its write may be killed: the next identical one continues with the
finished shards. OUT/SPLIT/made_of.json then says what the split was made of.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from shards.files import publish, take_lock, tell_refusal, temporary_name
from shards.folder import ShardFolder
from shards.index import INDEX_NAME, Index, Shard, check_every_class_has_an_image
from shards.index_shard import index_shard
from shards.sample_files import members_of
from shards.schema import ClassSet, DataError, DiskError, Source, Supervision, identity_of
from shards.unfinished import MADE_OF, find_finished_shard, hold_lock, save_note, temporary_folder

DEFAULT_SHARDS = 32
ALREADY = "exists already; remove it or choose another --out"
SWEEP_S = 10.0  # how long to wait for the lock of a new file, which a sweeping process may hold briefly


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

    Samples are distributed over the shards in a fixed pseudo-random order, so that the frames of a video are spread and
    a few shards hold samples of every kind.

    Args:
        source: the samples. With supervision `label` they must have no mask.
        num_shards: at most this many, and never more than there are samples.
        may_lack_classes: write label-only shards without a positive image of some class, to be joined with others;
            training refuses them by default.
        run: like `map`; that of a process pool writes shards in parallel. The bytes do not depend on it.

    Raises:
        DataError: an empty split; a group that another split in OUT has; a class without a positive image in a
            label-only split; OUT/SPLIT exists or is being written; or an invalid sample.
    """
    final = out / split
    if len(source) == 0:
        raise DataError(f"split '{split}': the source has no sample for it; check its place and the split's list")
    order = np.random.default_rng(0).permutation(len(source))
    dealt = [rows.tolist() for rows in np.array_split(order, min(num_shards, len(source)))]
    content = identify_write(source, split, supervision, len(dealt))
    with hold_lock(final):
        refuse_existing(final)
        check_groups(set(source.groups()), out, split)
        with temporary_folder(final, content) as folder:
            jobs = [ShardRows(folder / f"{split}-{number:05d}.tar", rows) for number, rows in enumerate(dealt)]
            shards = tuple(run(partial(write_shard, source, supervision), jobs))
            index = Index.of(source.class_set, split, supervision, shards)
            if supervision == "label" and not may_lack_classes:
                check_every_class_has_an_image(index, str(final))
            index.save(folder)
    return index


def refuse_existing(folder: Path) -> None:
    """Raise DataError if a split already exists."""
    if folder.exists():
        raise DataError(f"{folder}: {ALREADY}")


def identify_write(source: Source, split: str, supervision: Supervision, num_shards: int) -> dict[str, Any] | None:
    """Everything that the bytes of a write depend on; None if the source states no identity."""
    made_of = identity_of(source)
    if made_of is None:
        return None
    content = {
        "source": made_of,
        "classes": source.class_set.classes,
        "samples": len(source),
        "split": split,
        "supervision": supervision,
        "num_shards": num_shards,
        "versions": versions(),
    }
    return json.loads(json.dumps(content))


def versions() -> dict[str, str]:
    """Versions of the installed packages that influence the bytes."""
    found = {}
    for name in ("numpy", "pillow", "webdataset", "av"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def is_written(source: Source, out: Path, split: str, supervision: Supervision, num_shards: int) -> bool:
    """Whether OUT/SPLIT exists and was made of this source in this way, by any versions of the packages.

    Raises:
        DataError: it exists but was made of something else (names what differs), or it or the source does not say.
    """
    final = out / split
    if not final.exists():
        return False
    now = identify_write(source, split, supervision, min(num_shards, len(source)))
    try:
        before = json.loads((final / MADE_OF).read_text())
    except (OSError, ValueError):
        before = None
    if now is None or not isinstance(before, dict):
        raise DataError(f"{final}: {ALREADY}")
    old, new = flat(before), flat(now)
    different = [
        f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in old | new if old.get(name) != new.get(name)
    ]
    if different:
        raise DataError(
            f"{final}: exists already, made of something else ({'; '.join(different)}); remove it or choose another "
            "--out"
        )
    return True


def flat(content: dict[str, Any]) -> dict[str, Any]:
    """The result of identify_write without versions, as a flat dict."""
    kept = {name: one for name, one in content.items() if name not in ("source", "versions")}
    return {**kept, **{f"source's {name}": one for name, one in (content.get("source") or {}).items()}}


class ShardRows(NamedTuple):
    """One shard to write from these rows of a source."""

    path: Path
    rows: list[int]

    def __str__(self) -> str:
        return str(self.path)


def write_shard(source: Source, supervision: Supervision, task: ShardRows) -> Shard:
    """Write the samples of these rows to one tar; its bytes depend on nothing else (no times, no user names)."""
    path, rows = task
    finished = find_finished_shard(path)
    if finished is not None:
        return finished
    encoded = ((s.key, members_of(s, source.class_set, supervision)) for s in (source[row] for row in rows))
    write_tar(path, encoded)
    shard = index_shard(path)
    with report_full_disk(path):
        save_note(path, shard)
    return shard


def write_tar(
    path: Path, samples: Iterable[tuple[str, dict[str, bytes]]], publish: Callable[[Path, Path], None] = publish
) -> None:
    """Write (key, {extension: bytes}) samples as a WebDataset tar that is complete or absent.

    The temporary file is locked until it has its name, so that sweep_unfinished recognises those of killed writers.

    Args:
        publish: gives the finished temporary file its name.

    Raises:
        DiskError: the disk does not accept it. Errors from making the samples are passed on unchanged.
    """
    import webdataset

    with temporary_name(path) as temporary:
        with report_full_disk(path):
            file = open_locked(temporary)
        with file:
            tar = webdataset.TarWriter(file, encoder=False, mtime=0, user="wsss", group="wsss")
            try:
                for key, members in samples:
                    with report_full_disk(path):
                        tar.write({"__key__": key, **members})
                with report_full_disk(path):
                    tar.close()
                    file.flush()
                    publish(temporary, path)
            except BaseException:
                with suppress(Exception):  # else Python does it after the file is closed, and prints an error
                    tar.close()
                with suppress(OSError):  # else what could not be written is raised again, instead of the DiskError
                    file.close()
                raise


def open_locked(temporary: Path) -> BinaryIO:
    """A new file to write, which is not swept while it is open."""
    while True:
        file = temporary.open("wb")
        with suppress(OSError):  # a file system without locks, where nothing is swept
            take_lock(file.fileno(), wait_s=SWEEP_S)
        if temporary.exists():
            return file
        file.close()  # swept before it was locked


def sweep_unfinished(folder: Path) -> None:
    """Remove the temporary tars of killed writers; those of running writers, here or elsewhere, are locked."""
    for temporary in folder.glob(".*.tar.*.tmp"):
        with suppress(OSError), temporary.open("r+b") as file:
            if take_lock(file.fileno()):
                temporary.unlink()


@contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """Turn errors of the disk inside the block into a DiskError with the free space; not errors from making samples."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {tell_refusal(error, path)}; then start again") from error


def remarks_of(folder: Path) -> list[str]:
    """The remarks on the samples of a written split, each with its count and its first sample."""
    samples = ShardFolder(folder)
    found: dict[str, list[str]] = {}
    for number, key in enumerate(samples.keys):
        for remark, detail in sorted(samples.about(number).get("remarks", {}).items()):
            found.setdefault(remark, []).append(f"'{key}' ({detail})")
    return [f"{len(places)} of {len(samples)} images: {one}, first {places[0]}" for one, places in found.items()]


def check_groups(groups: set[str], out: Path, split: str) -> None:
    """Raise DataError if another split in OUT has one of these groups: its frames would leak into this split."""
    for other in sorted(path.parent for path in out.glob(f"[!.]*/{INDEX_NAME}")):
        shared = sorted(groups & Index.load(other).groups)
        if shared:
            raise DataError(
                f"split '{split}' shares {len(shared)} groups with split '{other.name}' in {out}, first '{shared[0]}': "
                "frames of one video or scene must not be on both sides; move the whole group to one split"
            )


def check_classes(class_set: ClassSet, out: Path, split: str) -> None:
    """Raise DataError if another split in OUT has other classes, whose ids would have another meaning."""
    for other in sorted(path.parent for path in out.glob(f"[!.]*/{INDEX_NAME}")):
        classes = Index.load(other).classes
        if classes != class_set.classes:
            raise DataError(
                f"split '{split}' has {class_set.num_fg_classes} classes, split '{other.name}' in {out} has "
                f"{len(classes)}; they differ in {sorted({*classes} ^ {*class_set.classes})[:3] or 'their order'}; "
                "choose another --out"
            )
