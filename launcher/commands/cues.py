"""`wsss cues sam|clip|walk`: what these refiners need beside the scores.

On several GPUs: `accelerate launch --num_processes N -m launcher.commands.cues sam|clip|walk ...`.
"""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Out
from launcher.errors import RunError, report_user_errors
from launcher.jobs.cues import write_cues

Shards = Annotated[str, typer.Argument(help="Folder or URL of one split's image shards.")]


def sam(
    shards: Shards,
    weights: Annotated[Path, typer.Option(help="A checkpoint of segment-anything, such as sam_vit_h_4b8939.pth.")],
    out: Out = Path("cues/sam"),
    variant: Annotated[str, typer.Option(help="vit_b, vit_l or vit_h: what the checkpoint is.")] = "vit_h",
    points_per_side: Annotated[int, typer.Option(min=1, help="The grid of prompts has its square of points.")] = 32,
    points_per_batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together: memory.")] = 64,
    pred_iou: Annotated[float, typer.Option(help="Masks that SAM itself rates lower are dropped.")] = 0.70,
    stability: Annotated[float, typer.Option(help="Masks that a shifted threshold changes more are dropped.")] = 0.85,
    crop_layers: Annotated[int, typer.Option(min=0, help="Repeat on 4^i crops for each further layer i.")] = 0,
    min_area_px: Annotated[int, typer.Option(min=0, help="Smaller holes and islands go.")] = 20,
) -> None:
    """SAM proposals of every image, for the refiner `sam`."""
    from wsss.models.sam import PUBLISHED

    if variant not in PUBLISHED:
        raise RunError(f"--variant {variant}: choose one of {', '.join(PUBLISHED)}")
    folder = write_cues(
        "sam", shards, out, weights=weights, variant=variant, points_per_side=points_per_side, pred_iou=pred_iou,
        points_per_batch=points_per_batch, stability=stability, crop_layers=crop_layers, min_area_px=min_area_px,
    )  # fmt: skip
    print(f"cues: {folder}")


def clip(
    shards: Shards,
    weights: Annotated[Path, typer.Option(help="Folder of a CLIP in Hugging Face format.")],
    out: Out = Path("cues/clip"),
    size: Annotated[int, typer.Option(min=1, help="Side of CLIP's square input, a multiple of its patch size.")] = 448,
    positive: Annotated[list[str] | None, typer.Option(help="Prompt of the one class; repeat for several.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Prompt of something else; repeat for several.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
) -> None:
    """CLIP maps of every image, for the refiner `clip`."""
    folder = write_cues(
        "clip", shards, out, weights=weights, size=size, batch_size=batch_size,
        positive=tuple(positive) if positive else None, negative=tuple(negative) if negative else None,
    )  # fmt: skip
    print(f"cues: {folder}")


def walk(
    shards: Shards,
    run: Annotated[Path, typer.Option(help="Folder of a run trained with method `affinity`.")],
    out: Out = Path("cues/walk"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
) -> None:
    """AffinityNet's affinities of every image, for the refiner `walk`."""
    print(f"cues: {write_cues('walk', shards, out, run=run, batch_size=batch_size)}")


def register(app: typer.Typer) -> None:
    """Add `cues sam`, `cues clip` and `cues walk` to a command."""
    cues = typer.Typer(no_args_is_help=True, help="What refiners need besides the scores, computed once per split.")
    line = "Example:  wsss cues {} data/smoke/val --weights {}"
    cues.command(epilog=line.format("sam", "sam_vit_b_01ec64.pth --variant vit_b"))(sam)
    cues.command(epilog=line.format("clip", "clip-vit-base-patch16"))(clip)
    cues.command(epilog="Example:  wsss cues walk data/smoke/val --run runs/smoke/affinity")(walk)
    app.add_typer(cues, name="cues", rich_help_panel=MASKS)


if __name__ == "__main__":
    main = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    main.command()(sam)
    main.command()(clip)
    main.command()(walk)
    with report_user_errors():
        main()
