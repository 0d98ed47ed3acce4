"""`wsss shards voc12` and `wsss shards coco14`: from raw archives or folders to verified shards of all splits."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.commands.arguments import Exif, LackClasses, Out, Turned, Workers, example, refuse_idle
from launcher.files import require_here
from launcher.jobs.write_shards import write_verified

NOT_FOUND = "not written"


class PaintOrder(str, Enum):
    order = "order"
    area = "area"


Roots = Annotated[
    list[Path],
    typer.Option(
        "--root",
        help="Folder or archive (zip, tar) with the raw files; repeatable. Nothing is unpacked.",
        callback=require_here,
    ),
]
OnlySplit = Annotated[str | None, typer.Option("--split", help="Write only this split. Default: all that are found.")]
WithMasks = Annotated[
    bool | None,
    typer.Option(
        "--masks/--no-masks",
        help="Write masks, or image labels only. Default: masks in all splits except train and test.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `wsss shards`."""
    lines: dict[Callable[..., None], str] = {
        voc12: "wsss shards voc12 --root VOCdevkit --root benchmark.tgz --out data/voc12",
        coco14: "wsss shards coco14 --root coco --out data/coco14",
    }
    for command, line in lines.items():
        app.command(epilog=example(line))(command)


def voc12(
    root: Roots,
    out: Out,
    split: OnlySplit = None,
    list_file: Annotated[
        str | None, typer.Option("--list", help="List of the images of the split: a path, or a name in ImageSets.")
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression on the image's name; its first group is the group (photograph)."),
    ] = None,
    masks: WithMasks = None,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Annotated[int, typer.Option(min=1, help="Maximum number of tar files per split.")] = 128,
    workers: Workers = None,
) -> None:
    """PASCAL VOC 2012 with SBD's annotations: train (train_aug), val, test. Run it again after a kill: it resumes."""
    from shards.schema import DataError
    from shards.sources.archives import remove_repacked
    from shards.sources.voc12 import COMPLETE, GROUP_PATTERN, NoSuchSplit, read_voc12
    from shards.sources.voc_files import find_files

    if list_file is not None and split is None:
        raise DataError("--list names the images of one split; say which with --split")
    typer.echo(f"looking for files in {', '.join(map(str, root))}", err=True)
    files = find_files(root, out)
    sources, reasons = {}, []
    for name in [split] if split else list(COMPLETE):
        try:
            sources[name] = read_voc12(
                files,
                name,
                list_file=list_file,
                group_pattern=group_pattern or GROUP_PATTERN,
                with_masks=wants_masks(name, masks),
                exif=exif.value,
            )
        except NoSuchSplit as error:
            reasons.append(f"{name} {NOT_FOUND}: {error}")
    if not sources:
        raise DataError("\n".join(reasons))
    for name, source in sources.items():
        complete = f" of {COMPLETE[name]} in the whole data set" if name in COMPLETE else ""
        masks_from = ", ".join(f"{count} {kind}s" for kind, count in source.masks_from.items()) or "no masks"
        print(f"{name}: {len(source)} images{complete}, listed by {source.ids_from}; {masks_from}")
        write_verified(source, out, name, wants_masks(name, masks), shards, workers, may_lack_classes or name == "test")
    for reason in reasons:
        typer.echo(f"warning: {reason}", err=True)
    remove_repacked(files.repacked, out)


def coco14(
    out: Out,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            "--root", help="Folder or archive (zip, tar) with the raw files; repeatable.", callback=require_here
        ),
    ] = None,
    year: Annotated[int | None, typer.Option(help="2014 or 2017; needed if both are in --root.")] = None,
    split: OnlySplit = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="Instead of --root: a json of instances. Needs --images and --split.", callback=require_here),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or archive with the images of --annotations.", callback=require_here)
    ] = None,
    all_images: Annotated[bool, typer.Option("--all-images", help="Include images without annotations.")] = False,
    paint: Annotated[
        PaintOrder, typer.Option(help="Which object is on top: the later annotation, or the smaller object.")
    ] = PaintOrder.area,
    masks: WithMasks = None,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Annotated[int, typer.Option(min=1, help="Maximum number of tar files per split.")] = 128,
    workers: Workers = None,
) -> None:
    """MS COCO 2014 or 2017, or any json of instances: train and val. Run it again after a kill: it resumes."""
    from shards.sources.coco14 import read_coco
    from shards.unfinished import hold_lock

    if masks is False:
        refuse_idle("there are no masks", paint=paint is not PaintOrder.area)
    if annotations is not None:
        refuse_idle("--annotations is one file", year=year)
    for name, (of_split, files) in coco_splits(root or [], year, split, annotations, images).items():
        with hold_lock(out / f"{name}.annotations"):
            lines = out / f".{name}.annotations.jsonl"
            try:
                typer.echo(f"reading {of_split}", err=True)
                source = read_coco(
                    of_split,
                    files,
                    lines,
                    all_images=all_images,
                    paint=paint.value,
                    with_masks=wants_masks(name, masks),
                    exif=exif.value,
                )
                print(f"{name}: {len(source)} images; {source.left_out} without an annotation are left out")
                write_verified(source, out, name, wants_masks(name, masks), shards, workers, may_lack_classes)
            finally:
                lines.unlink(missing_ok=True)


def coco_splits(
    root: list[Path], year: int | None, split: str | None, annotations: Path | None, images: Path | None
) -> dict[str, tuple[Any, Any]]:
    """{split: (annotations, {file name: image})}."""
    from shards.schema import DataError
    from shards.sources.archives import Blob
    from shards.sources.coco_files import find_files, list_images

    if annotations is not None or images is not None:
        if annotations is None or images is None or split is None or root:
            raise DataError("--annotations, --images and --split go together, and replace --root")
        return {split: (Blob(str(annotations)), list_images(images))}
    if not root:
        raise DataError("name the raw files with --root, or with --annotations, --images and --split")
    typer.echo(f"looking for files in {', '.join(map(str, root))}", err=True)
    files = find_files(root)
    names = [place for place in files.annotations if files.images.get(place)]
    alone = sorted({*files.annotations, *files.images} - set(names))
    wanted = [n for n in names if (year is None or n.endswith(str(year))) and (split is None or n[:-4] == split)]
    if not wanted or len({name[-4:] for name in wanted}) > 1:
        raise DataError(
            f"{', '.join(map(str, root))}: annotations with their images: {sorted(names)}, one without the other: "
            f"{alone}; wanted {split or 'train and val'} of one year; see --root, --year and --split"
        )
    for name in alone:
        typer.echo(f"warning: {name} {NOT_FOUND}: images or annotations are not there", err=True)
    return {name[:-4]: (files.annotations[name], files.images[name]) for name in sorted(wanted)}


def wants_masks(split: str, masks: bool | None) -> bool:
    return split not in ("train", "test") if masks is None else masks
