"""`wsss segment`, `wsss pack-voc` and `wsss trajectory`."""

import shutil
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from launcher.errors import ConfigError
from launcher.sources import example


class DataSet(str, Enum):
    voc = "voc"
    coco = "coco"


Run = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/voc/toco_vitb.")]
Name = Annotated[str | None, typer.Option(help="A further set of masks, in RUN/segments@NAME.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog=example("wsss segment runs/voc/toco_vitb segment.scales=[1,1.5,1.25] segment.flip=true --name ms_crf")
    )(segment)
    app.command("pack-voc", epilog=example("wsss pack-voc runs/voc/toco_vitb --name ms_crf"))(pack_voc)
    app.command(epilog=example("wsss trajectory runs/voc/toco_vitb --beside voc"))(trajectory)


def segment(
    run: Run,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")] = None,
    split: Annotated[str, typer.Option(help="val, tune or train; or the name of --shards.")] = "val",
    shards: Annotated[str | None, typer.Option(help="Other image shards, such as VOC's test split.")] = None,
    name: Name = None,
    cams: Annotated[bool, typer.Option("--cams", help="Also label maps of the CAMs, by the image labels.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Remove what was made before with other settings.")] = False,
) -> None:
    """Masks by the network's own segmentation, as mask shards below RUN/segments."""
    from launcher.build import load_about
    from launcher.segment import segment as segment_here
    from launcher.segment import segments_folder
    from launcher.topology import launch, process_count, uses_cpu

    settings, _ = load_about(run, overrides or [])
    folder = shards or {"val": settings.data.val, "tune": settings.data.tune, "train": settings.data.train}.get(split)
    if folder is None:
        raise ConfigError(f"--split {split}: {run} has no such split; give its folder with --shards")
    if overwrite:
        shutil.rmtree(segments_folder(run, name) / split, ignore_errors=True)
    if uses_cpu(settings) or process_count(settings) == 1:
        print(f"masks: {segment_here(run, split, folder, overrides or [], name, cams=cams)}")
        return
    arguments = [str(run), split, str(folder), name or "-", "cams" if cams else "-", *(overrides or [])]
    if code := launch(settings, "launcher.segment", arguments):
        raise typer.Exit(code)


def pack_voc(
    run: Run,
    name: Name = None,
    split: Annotated[str, typer.Option(help="The split that was segmented.")] = "test",
    out: Annotated[Path | None, typer.Option(help="The archive; default: RUN/voc2012_SET_SPLIT.tar.gz.")] = None,
) -> None:
    """Archive for the PASCAL VOC evaluation server, from the masks of `wsss segment RUN --split test`; checks it."""
    from launcher.voc_server import pack_voc as pack

    path, count = pack(run, name=name, split=split, out=out)
    print(f"{path}: {count} images, reopened and checked")


def trajectory(run: Run, beside: Annotated[DataSet, typer.Option(help="Which of ToCo's logs.")] = DataSet.voc) -> None:
    """A run's losses and mIoU beside ToCo's published training log, at the same steps."""
    from launcher.trajectory import as_text, write_trajectory

    print(as_text(run, beside.value))
    print(f"page: {write_trajectory(run, beside.value)}")
