"""`wsss bench`: ratios and ranges, each measured in one run."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import CARE, ConfigFile, Json, Overrides, example
from launcher.files import require_here


def register(app: typer.Typer) -> None:
    """Add `bench all|lr-range|msee-step|crf|tracking|jobs` to a command."""
    bench = typer.Typer(no_args_is_help=True, help="Benchmark this machine.")
    bench.command("all", epilog=example("wsss bench all --device cuda --out bench"))(everything)
    bench.command("lr-range", epilog=example("wsss bench lr-range configs/demo/student.yaml"))(lr_range)
    bench.command("msee-step", epilog=example("wsss bench msee-step --json"))(msee_step)
    bench.command("crf", epilog=example("wsss bench crf --classes 81"))(crf)
    bench.command("tracking", epilog=example("wsss bench tracking --steps 100 --json"))(tracking)
    bench.command("jobs", epilog=example("wsss bench jobs --json"))(jobs)
    app.add_typer(bench, name="bench", rich_help_panel=CARE)


def everything(
    out: Annotated[
        Path,
        typer.Option(help="Output folder: bench.jsonl, bench.md and the stderr of the cases.", callback=require_here),
    ],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    minutes: Annotated[
        float, typer.Option(min=0, help="Time limit; cases that do not fit into the rest of it are skipped.")
    ] = 9.0,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this case; repeatable. Default: all, in order.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Only test that the cases run: toy sizes, everything once.")] = False,
) -> None:
    """Benchmark a GPU: peak throughput, kernels, steps, precision, waits, compilation."""
    from launcher.bench.suite import run_suite

    run_suite(out, device=device, minutes=minutes, only=only or [], smoke=smoke)


def lr_range(
    config: ConfigFile,
    overrides: Overrides = None,
    low: Annotated[float, typer.Option(help="First learning rate.")] = 1e-7,
    high: Annotated[float, typer.Option(help="Last learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option(min=3)] = 100,
) -> None:
    """Learning-rate range test: plot the loss while the rate grows, and suggest a rate."""
    from launcher.bench.lr_range import lr_range as find
    from launcher.config.file import load_config
    from launcher.run.folder import run_folder

    settings = load_config(config, overrides or [])
    found = find(settings, low=low, high=high, steps=steps)
    suggested = "none" if found["suggested"] is None else f"{found['suggested']:.1e}"
    print(f"suggested learning rate: {suggested} ({found['reason']}); the config says {settings.train.lr:.1e}")
    print(f"plot: {run_folder(settings) / 'lr_range.svg'}")


def msee_step(
    network: Annotated[str, typer.Option(help="timm name of the ViT, with random weights.")] = "vit_tiny_patch16_224",
    image_px: Annotated[int, typer.Option(help="Side of the main view; local crops are 96/448 of it.")] = 448,
    images: Annotated[int, typer.Option(min=2, help="Images per step, a multiple of 2.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each step; the median is reported.")] = 3,
    classes: Annotated[int, typer.Option(min=3, help="Foreground classes: 20 for VOC, 80 for COCO.")] = 20,
    energy_scale: Annotated[float, typer.Option(help="Resolution of the energy loss, the same in both steps.")] = 0.5,
    energy_grid: Annotated[
        float, typer.Option(help="See method.energy_grid; 0 takes half of the time of a step.")
    ] = 1.0,
    json: Json = False,
) -> None:
    """Compare the step of M-SEE with a simple reference: losses and gradients must agree; FLOPs, time, memory."""
    from launcher.bench.msee_step import as_text, compare, counted_on_meta

    found = compare(
        timm_name=network,
        image_px=image_px,
        images=images,
        repeats=repeats,
        classes=classes,
        energy_scale=energy_scale,
        energy_grid=energy_grid,
    )
    found["vit_base_448"] = counted_on_meta()
    print(json_format.dumps(found, indent=1) if json else as_text(found))


def crf(
    classes: Annotated[
        int, typer.Option(min=3, help="Number of classes with the background: 21 for VOC, 81 for COCO.")
    ] = 21,
    shown: Annotated[int, typer.Option(min=1, help="Number of classes that an image shows.")] = 2,
    images: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Compare the CRF on the background and the proposed classes with the CRF on all classes: time and masks."""
    from launcher.bench.crf import crf_ratio

    print(json_format.dumps(crf_ratio(classes=classes, shown=min(shown, classes - 1), images=images), indent=1))


def tracking(
    steps: Annotated[
        int, typer.Option(min=20, help="Number of tracked steps per tracker, and of untracked steps.")
    ] = 200,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between logged metrics; a run's default is 10.")] = 1,
    side_px: Annotated[int, typer.Option(min=16, help="Side of the images; sets how long a step takes.")] = 128,
    json: Json = False,
) -> None:
    """How much of a step tracking takes, with TensorBoard and with a local, an absent and a silent MLflow."""
    from launcher.bench.tracking import format_times, measure

    found = measure(steps=steps, log_every=log_every, side_px=side_px)
    print(json_format.dumps(found, indent=1) if json else format_times(found))


def jobs(
    shards: Annotated[int, typer.Option(min=2, help="Number of shards that are timed in each case.")] = 24,
    images: Annotated[int, typer.Option(min=1, help="Number of images per shard.")] = 4,
    side_px: Annotated[int, typer.Option(min=8, help="Side of the images; sets how long a shard takes.")] = 64,
    json: Json = False,
) -> None:
    """Shards per second with one and two workers, local and of Dask, and the overhead per shard."""
    from launcher.bench.jobs import format_rates, measure

    found = measure(shards=shards, images=images, side_px=side_px)
    print(json_format.dumps(found, indent=1) if json else format_rates(found))
