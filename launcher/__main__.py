"""The `wsss` command. Each subcommand is one short call into a module; heavy imports wait until one is chosen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher import (
    bench_commands,
    benchmark_sources,
    cue_commands,
    export,
    run_commands,
    segment_commands,
    sources,
    study_commands,
    track_commands,
)
from launcher.sources import Only, Out, Shards, Workers, describe, example, write

if TYPE_CHECKING:
    from shards.remote import Place

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Weakly supervised semantic segmentation from image-level labels.",
)
shards_app = typer.Typer(no_args_is_help=True, help="Raw data -> tar shards with an index; look at and check them.")
app.add_typer(shards_app, name="shards")
sources.register(shards_app)
benchmark_sources.register(shards_app)
cue_commands.register(app)
study_commands.register(app)
bench_commands.register(app)
segment_commands.register(app)
run_commands.register(app)
track_commands.register(app)
export.register(app)

Run = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/demo/student.")]
Split = Annotated[str | None, typer.Option(help="Only this split: val, tune or train. Default: val and tune.")]
Overwrite = Annotated[bool, typer.Option(help="Remove what was made before with other settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")]


@shards_app.command(
    epilog=example("wsss shards synthetic --out data/demo --split train --images 640 --cooccurrence 0.9")
)
def synthetic(
    out: Out,
    split: Annotated[str, typer.Option(help="Name of the split; also keys its random scenes.")],
    images: Annotated[int, typer.Option(min=1, help="Number of frames.")] = 256,
    size: Annotated[int, typer.Option(help="Side of the square frame, in pixels.")] = 128,
    cooccurrence: Annotated[float, typer.Option(help="P(chimney | smoke) = P(no chimney | no smoke).")] = 0.5,
    smoke_rate: Annotated[float, typer.Option(help="Share of frames with smoke.")] = 0.5,
    seed: int = 0,
    masks: Annotated[bool, typer.Option(help="Pixel shards with masks, for evaluation; default: label-only.")] = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Procedural factory scenes with exact masks, in which chimneys give smoke away."""
    from shards.sources.synthetic import Synthetic

    source = Synthetic(
        split=split,
        num_images=images,
        size=size,
        cooccurrence=cooccurrence,
        smoke_rate=smoke_rate,
        seed=seed,
        with_masks=masks,
    )
    write(source, out, split, masks, shards, workers)


@shards_app.command(
    epilog=example("wsss shards smoke --root frames --labels labels.csv --out data/mine --split train --hold-out 0.15")
)
def smoke(
    root: Annotated[Path, typer.Option(help="Folder of your frames.")],
    labels: Annotated[Path, typer.Option(help="csv or json of image labels, relative to --root.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Name of the split that is written.")],
    only: Only = None,
    masks: Annotated[bool, typer.Option(help="Pixel shards with masks, for evaluation; default: label-only.")] = False,
    hold_out: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.9, help="Write whole groups of this share, with masks, as 'tune'."),
    ] = None,
    image_folder: Annotated[str, typer.Option(help="Where images are, below --root.")] = "images",
    mask_folder: Annotated[str, typer.Option(help="Where masks are, below --root.")] = "masks",
    label_column: Annotated[str, typer.Option(help="Column that says 1 (smoke) or 0.")] = "label",
    group_column: Annotated[str, typer.Option(help="Column that names the video or scene.")] = "group",
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Folders of smoke frames with a table of image labels."""
    from dataclasses import replace

    from shards.sources.smoke_images import read_table

    source = read_table(
        root,
        labels,
        only=only,
        image_folder=image_folder,
        mask_folder=mask_folder,
        label_column=label_column,
        group_column=group_column,
    )
    if hold_out is not None:
        source, held = source.hold_out(hold_out)
        write(replace(held, with_masks=True), out, "tune", True, shards, workers)
    write(replace(source, with_masks=masks), out, split, masks, shards, workers)


@shards_app.command(epilog=example("wsss shards verify data/demo/train"))
def verify(folder: Annotated[str, typer.Argument(help="Folder or URL with index.json.")]) -> None:
    """Read every byte of a folder of shards and compare it with the index."""
    from shards.verify import verify as check

    index = check(folder)
    print(f"{folder}: {len(index.shards)} shards, {index.num_samples} samples, every byte as written")


@shards_app.command(epilog=example("wsss shards info data/demo/train"))
def info(folder: Annotated[str, typer.Argument(help="Folder or URL with index.json.")]) -> None:
    """Say what a folder of shards holds."""
    print(describe(folder))


@app.command(epilog=example("wsss train configs/demo/teacher.yaml train.seed=1 name=demo/teacher_seed1"))
def train(
    config: Annotated[Path, typer.Argument(help="YAML that says the whole run.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to begin anew if there is no checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the command, do not train.")
    ] = False,
) -> None:
    """Train through `accelerate launch`; goes on from the last checkpoint if the run's folder exists."""
    from launcher.build import run_folder
    from launcher.checkpoint import latest
    from launcher.config_file import load_config
    from launcher.topology import launch, launch_command
    from launcher.train import preflight

    settings = load_config(config, overrides or [])
    if resume:
        latest(run_folder(settings))
    preflight(settings)
    arguments = [str(config), *(overrides or [])]
    if dry_run:
        print(" ".join(launch_command(settings, "launcher.train", arguments)[0]))
        return
    code = launch(settings, "launcher.train", arguments)
    if code:
        raise typer.Exit(code)


@app.command(epilog=example("wsss infer runs/demo/student cam.scales=[0.5,1,1.5] --overwrite"))
def infer(
    run: Run,
    overrides: Overrides = None,
    split: Split = None,
    name: Annotated[
        str | None, typer.Option(help="A further set of CAMs, in RUN/cams@NAME, beside the run's own.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """CAMs of every kind, as CAM shards below RUN/cams."""
    import shutil

    from launcher.build import load_about
    from launcher.infer import cams_folder
    from launcher.infer import infer as infer_here
    from launcher.topology import launch, process_count, uses_cpu

    settings, _ = load_about(run, overrides or [])
    for of_split, folder in splits(settings, split).items():
        if overwrite:
            shutil.rmtree(cams_folder(run, name) / of_split, ignore_errors=True)
        if uses_cpu(settings) or process_count(settings) == 1:
            print(f"CAMs: {infer_here(run, of_split, folder, overrides or [], name)}")
        elif code := launch(
            settings, "launcher.infer", [str(run), of_split, str(folder), name or "-", *(overrides or [])]
        ):
            raise typer.Exit(code)


@app.command(epilog=example("wsss refine runs/demo/student --name crf_g2 'refine.chain=[{name: crf, gamma: 2}]'"))
def refine(
    run: Run,
    overrides: Overrides = None,
    split: Split = None,
    name: Annotated[
        str | None, typer.Option(help="Masks go to RUN/masks/KIND+NAME; default: the chain's names.")
    ] = None,
    cams: Annotated[str | None, typer.Option(help="Refine the set of CAMs of this name.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """CAMs -> masks by the chain of `refine:`, in parallel, as mask shards below RUN/masks."""
    from launcher.build import load_about
    from launcher.refine import refine as refine_run

    settings, _ = load_about(run, overrides or [])
    wanted = list(splits(settings, split))
    for folder in refine_run(run, wanted, settings.refine, name=name, cams=cams, overwrite=overwrite):
        print(f"masks: {folder}")


@app.command(epilog=example("wsss evaluate runs/demo/student"))
def evaluate(run: Run) -> None:
    """Figures of all CAMs and masks on the validation split, thresholds chosen on `tune`."""
    from launcher.evaluate import evaluate as evaluate_run
    from launcher.evaluate import track

    report = evaluate_run(run)
    print(table_of(report))
    track(run, report)


@app.command(epilog=example("wsss report runs/demo"))
def report(folder: Annotated[Path, typer.Argument(help="A run, or a folder of runs to lay side by side.")]) -> None:
    """One HTML page: figures, curves, overlays."""
    from launcher.report import write_report

    print(f"report: {write_report(folder)}")


def splits(settings: object, only: str | None) -> dict[str, "Place"]:
    """{split: folder of shards} of a run's config."""
    from launcher.config import Config
    from launcher.errors import ConfigError

    assert isinstance(settings, Config)
    data = settings.data
    folders = {"val": data.val, "tune": data.tune, "train": data.train}
    wanted = [only] if only else [name for name in ("val", "tune") if folders[name]]
    for name in wanted:
        if folders.get(name) is None:
            raise ConfigError(f"--split {name}: this run has {', '.join(n for n, f in folders.items() if f)}")
    return {name: folders[name] for name in wanted}  # type: ignore[misc]


def table_of(report: dict) -> str:
    """The figures of an evaluation as text, one line per source and threshold."""
    lines = [f"{report['run']}: {report['dataset']['images']} images of {report['dataset']['folder']}"]
    for source, figures in report["sources"].items():
        for choice in ("fixed", "tuned"):
            at = figures[choice]
            if at is None:
                continue
            chosen = f"threshold {at['threshold']:.2f} ({choice:5s})" if "threshold" in at else f"{'masks':22s}"
            line = f"  {source:20s} {chosen}"
            if "miou" in at:
                low, high = at["miou_interval"]
                lines.append(f"{line}  mIoU {100 * at['miou']:.2f} [{100 * low:.2f}, {100 * high:.2f}]")
                lines.append(f"    {figures['protocol']}")
                continue
            low, high = at["per_image_iou_interval"]
            areas = [
                f"{n.replace('_', ' ')} {100 * at[n]:.1f} %" for n in at if n.endswith("_area") and at[n] is not None
            ]
            iou = f"per-image IoU {100 * at['per_image_iou']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append(f"{line}  {iou}  {', '.join(areas)}")
    return "\n".join(lines)


def main() -> None:
    """Run the command; what the user can mend is told in a line, without a traceback."""
    from launcher.errors import told

    with told():
        app()


if __name__ == "__main__":
    main()
