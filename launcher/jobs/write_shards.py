"""A source of raw data -> a verified folder of shards, as the `wsss shards` commands do it."""

import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shards.schema import Source, Supervision
    from shards.sources.clips import Clips
    from shards.sources.labelled import Labelled

WORTH_A_POOL = 1 << 30  # bytes; fewer are read sooner than worker processes start


def write_verified(
    source: "Source", out: Path, split: str, masks: bool, shards: int, workers: int | None, may_lack_classes: bool
) -> None:
    """Write a split unless it is there; then compare every byte with its index."""
    from launcher.jobs.pool import run_pool
    from shards.verify import verify
    from shards.write import check_classes

    workers = workers and min(workers, shards, len(source))
    check_classes(source.class_set, out, split)
    write(source, out, split, masks, shards, workers, may_lack_classes)
    large = sum(path.stat().st_size for path in (out / split).glob("*.tar")) > WORTH_A_POOL
    index = verify(out / split, run=partial(run_pool, workers=workers, label=f"verify {split}") if large else map)
    empty = sum(not label for shard in index.shards for label in shard.image_labels)
    print(f"{out / split}: every byte as written; {empty} of {index.num_samples} images have no foreground label")


def write_clips(
    source: "Clips",
    out: Path,
    split: str,
    smoke: bool | None,
    shards: int,
    workers: int | None,
    may_lack_classes: bool,
) -> None:
    """Write the clips' frames, then say what was not taken. Who asks for clips without smoke alone gets them."""
    write(source, out, split, False, shards, workers, may_lack_classes or smoke is False)
    left_out = ", ".join(f"{count} {reason}" for reason, count in source.left_out.items())
    print(f"{len(source.clips)} clips taken, left out: {left_out or 'none'}")


def write(
    source: "Source", out: Path, split: str, masks: bool, shards: int, workers: int | None, may_lack_classes: bool
) -> bool:
    """Write one split in worker processes, unless it already exists, made of the same files with the same options;
    print what it holds, and remarks about its samples.

    Returns:
        Whether it was written now.
    """
    from launcher.jobs.pool import run_pool
    from shards.index import Index, check_every_class_has_an_image
    from shards.write import is_written, remarks_of, write_split

    supervision: Supervision = "pixel" if masks else "label"
    there = is_written(source, out, split, supervision, shards)
    if there:
        if supervision == "label" and not may_lack_classes:  # it may have been written with leave to lack some
            check_every_class_has_an_image(Index.load(out / split), str(out / split))
        print(f"{out / split}: already exists, made of the same files with the same options")
    else:
        write_split(
            source,
            out,
            split,
            supervision,
            num_shards=shards,
            may_lack_classes=may_lack_classes,
            run=partial(run_pool, workers=workers, label=f"write {split}"),
        )
    print(summarise(out / split))
    for remark in remarks_of(out / split):
        print(f"warning: {out / split}: {remark}", file=sys.stderr)
    return not there


class Part(NamedTuple):
    """What becomes one split of several: see write."""

    source: "Source"
    masks: bool
    may_lack_classes: bool


def warn_of_copies(source: "Labelled") -> None:
    """Say that images of a table are there more than once."""
    from shards.sources.copies import describe_copies

    if said := describe_copies(source):
        print(f"warning: {source.source}: {said}", file=sys.stderr)


def write_parts(parts: Mapping[str, Part], out: Path, shards: int, workers: int | None) -> None:
    """Write the splits of one table, {name: part}, all or none: if one of them fails, the others are removed, so that
    the command can be run again. Splits that a killed command finished are kept.

    Raises:
        DataError: see write_split; a split that is there, made of something else, is told before anything is written.
    """
    from shards.write import check_classes, is_written

    for name, part in parts.items():
        is_written(part.source, out, name, "pixel" if part.masks else "label", shards)
        check_classes(part.source.class_set, out, name)
    written: list[Path] = []
    try:
        for name, part in parts.items():
            if write(part.source, out, name, part.masks, shards, workers, part.may_lack_classes):
                written.append(out / name)
    except Exception:
        for folder in written:
            shutil.rmtree(folder)
            print(f"{folder}: removed again: the splits of one table are written all or none")
        raise


def write_held_out(
    source: "Labelled",
    out: Path,
    split: str,
    *,
    shares: Mapping[str, float],
    seed: int,
    masks: bool,
    skip_unmasked: bool,
    shards: int,
    workers: int | None,
    may_lack_classes: bool,
) -> dict[str, "Labelled"]:
    """Write a table as one split, or as what is kept of it and what is held out; see hold_out.

    Args:
        source: without masks.
        split: that is kept, and learned from.
        shares: of what is held out; {} = nothing is.
        masks: read masks: of what is held out, or else of `split`. Without, no mask is looked at.
        skip_unmasked: leave images with a class and without a mask out of what has masks, and say how many.

    Returns:
        {split: what was written}.

    Raises:
        DataError: see hold_out and write_parts.
    """
    from dataclasses import replace

    from shards.sources.held_out import hold_out

    if source.has_masks and not masks:
        count = sum(row.mask is not None for row in source.rows)
        print(f"{count} images have a mask; pass --masks to store them, for metrics of CAMs and masks")
    kept, held = source, {split: source}
    if shares:
        kept, held = hold_out(source, shares, seed=seed, masked=masks, skip=skip_unmasked)
    if skip_unmasked:
        for name, part in held.items():
            held[name] = part.without_lacking()
            if part.lacking:
                print(
                    f"{out / name}: {len(part.lacking)} of {len(part)} images are labelled {part.any_class} and have "
                    "no mask: they are left out of all splits"
                )
    of_split = {name: replace(part, with_masks=masks) for name, part in held.items()}
    if shares:
        of_split[split] = kept
        if "tune" in held and not masks:
            print("'tune' has no masks: it can choose the gate, but no threshold")
    # what is held out is judged, not learned: it may lack a class
    parts = {name: Part(one, one.with_masks, may_lack_classes or name != split) for name, one in of_split.items()}
    write_parts(parts, out, shards, workers)
    return of_split


def summarise(folder: Path | str) -> str:
    """What a folder of shards holds, in a line."""
    from shards.index import Index

    index = Index.load(folder)
    megabytes = sum(shard.bytes for shard in index.shards) / 1e6
    counts = ", ".join(f"{name} in {count}" for name, count in index.class_counts().items())
    return (
        f"{folder}: split '{index.split}', supervision '{index.supervision}', {index.num_samples} images "
        f"({counts}) of {len(index.groups)} groups in {len(index.shards)} shards, {megabytes:.1f} MB, "
        f"fingerprint {index.fingerprint}"
    )
