"""Every make-up of a row of the smoke paper's tables runs at toy size: one optimizer step, CAMs, masks, figures."""

import shutil
from pathlib import Path

import pytest
import torch
from support.clips import LOOSE, write_tiny_clip
from support.places import ROOT
from support.segmenters import write_sam2, write_sam3
from support.study_walk import rows_that_run, shapes_of, split_rows

from launcher.config.file import load_config
from launcher.jobs.cues.shards import write_cues
from launcher.studies.figures import tabulate_study
from launcher.studies.page import write_study_report
from launcher.studies.run import run_study
from launcher.studies.table import load_study
from shards.sources.synthetic import Synthetic
from shards.write import write_split
from wsss.models.sam_decoder import small_sam

NAMES = tuple(sorted(path.stem for path in (ROOT / "configs/studies").glob("smoke_*.yaml")))

NARROW = "{channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}"
SMALL_VIT = "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 5, num_heads: 2}"
RESNET = ["timm_name=resnet10t", "output_stride=8", f"timm_options={NARROW}"]
TINY = {  # what replaces the options of a model of the paper's size
    "vit": ["timm_name=vit_tiny_patch16_224", f"timm_options={SMALL_VIT}"],
    "cnn": RESNET,
    "pcm": [*RESNET, "conv_dim=8", "f8_dim=4", "affinity_dim=8"],
    "conformer": ["embed_dim=24", "depth=3", "num_heads=2", "channel_ratio=1"],
    "setr": ["patch_size=8", "image_size=32", "hidden_dim=16", "mlp_dim=16", "layers=1", "heads=2", "widths=[8,8]"],
    "segmenter": ["timm_name=vit_tiny_patch16_224", f"timm_options={SMALL_VIT}", "decoder_layers=1"],
    "deeplab": ["timm_name=resnet10t", f"timm_options={NARROW}", "aspp_dim=8", "low_dim=4", "decoder_dim=8"],
    "sam_decoder": ["image_size=64", "encoder={embed_dim: 16, depth: 1, num_heads: 2}"],
    "affinity_net": [*RESNET, "output_stride=16", "widths=[4,4,4]", "affinity_dim=8"],
}
SMALL = [
    "data.image_size=32",
    "data.global_batch_size=4",
    "data.workers=0",
    "train.precision=ieee",
    "train.save_every=null",
]
SMALL += ["cam.batch_size=32", "refine.workers=1", "segment.workers=0", "evaluate.gallery=0"]


def tiny_overrides(config):
    """Overrides that bring a run of the paper's size down to seconds."""
    overrides = [*SMALL, f"train.steps={min(config.train.steps, 1)}", "model.weights=null"]
    overrides = [o for o in overrides if not (o.startswith("model.weights") and config.model.name in ("setr",))]
    overrides += [f"model.{option}" for option in TINY[config.model.name]]
    if config.partner is not None:
        overrides += ["partner.weights=null", *(f"partner.{option}" for option in TINY[config.partner.name])]
    for name in ("train", "val", "tune", "pixel"):
        folder = getattr(config.data, name)
        if folder is not None:
            overrides.append(f"data.{name}=scenes/{folder.name}")
    if config.method.name == "affinity":
        overrides += ["data.image_size=64", "method.radius=2"]  # 4 x 4 cells, which have pairs
    return overrides


@pytest.fixture(scope="module")
def place(tmp_path_factory, mlflow_store):
    """A folder with toy scenes, toy checkpoints and the shipped configs, where the studies run and share their runs."""
    from segment_anything import sam_model_registry

    here = tmp_path_factory.mktemp("studies")
    splits = [("train", 16, False), ("train_more", 20, False), ("train_pixel", 8, True), ("pixel", 4, True)]
    for split, images, masks in [*splits, ("val", 8, True), ("tune", 8, True)]:
        source = Synthetic(split=split, num_images=images, size=32, with_masks=masks)
        write_split(source, here / "scenes", split, "pixel" if masks else "label", num_shards=2)
    (here / "configs").symlink_to(ROOT / "configs")
    write_tiny_clip(here / "weights/clip-vit-base-patch16")
    write_sam2(here / "weights/sam2.1-hiera-large")
    write_sam3(here / "weights/sam3")

    def tiny_sam(checkpoint=None):
        return small_sam(image_size=64, embed_dim=16, depth=1, num_heads=2)

    torch.save(tiny_sam().state_dict(), here / "weights/sam_vit_h_4b8939.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        patch.setitem(sam_model_registry, "vit_h", tiny_sam)
        yield here


def at_toy_size(command):
    """Run a command of a study in this process, its training brought down to toy size."""
    from launcher.__main__ import app
    from launcher.training.run import train

    kind, *arguments = command
    if kind == "train":
        path, *overrides = arguments
        train(load_config(Path(path), [*overrides, *tiny_overrides(load_config(Path(path), overrides))]))
    elif kind == "cues":
        refiner, folder, *options = arguments
        given = dict(zip(options[::2], options[1::2], strict=True))
        loose = {**LOOSE, "points_per_side": int(given.get("--points-per-side", 2)) // 16} if refiner == "sam" else {}
        settings = {name[2:]: Path(given[name]) for name in ("--weights", "--run") if name in given}
        size = {"clip": {"size": 24}, "concept": {"map_size": 16}}.get(refiner, {})
        settings |= {"by": given["--by"]} if "--by" in given else {}
        shards = Path("scenes") / Path(folder).name
        write_cues(refiner, shards, Path(given["--out"]), **settings, **loose, **size)
    else:
        app(command, standalone_mode=False)


LONG = {  # tables that take the ways of another one here with other networks, losses or numbers; `make chaos` runs them
    "smoke_table_4_7",
    "smoke_mini_table_4_7",
    "smoke_table_4_4b",
    "smoke_table_4_9",
    "smoke_mini_table_4_10",
    "smoke_mini_table_4_11c",
    "smoke_mini_table_4_4",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES])
def test_every_row_that_adds_something_trains_infers_refines_and_gives_its_figure(name, place):
    study, names = load_study(name), rows_that_run(name, NAMES)
    if not names:  # each of its rows differs from one of another table in numbers alone
        return
    run_study(study, rows=names, seeds=[0], execute=at_toy_size)
    for row in tabulate_study(study):
        if row["name"] in names:
            assert row["seeds"] == [0], row["name"]
            assert row["fixed"]["mean"] is not None and 0 <= row["fixed"]["mean"] <= 1, row["name"]
            assert row["commits"] and row["protocols"]
    assert write_study_report(name, study).is_file()


def test_every_other_row_has_the_commands_of_one_that_ran_but_for_their_values():
    _, others = split_rows(NAMES)
    assert len(others) > 50
    for row, ran in others.items():
        assert shapes_of(*row) == shapes_of(*ran), f"{row} is taken for {ran}"


def test_what_is_done_is_not_done_again(place):
    study = load_study("smoke_table_4_6")
    run_study(study, seeds=[0], execute=at_toy_size)
    stamps = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.tar")}
    assert stamps
    run_study(study, seeds=[0], execute=at_toy_size)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.tar")} == stamps
    shutil.rmtree("runs/smoke_tables/ts_global_cosine_seed0/cams@single")
    run_study(study, rows=["scale_1.0"], seeds=[0], execute=at_toy_size)
    assert Path("runs/smoke_tables/ts_global_cosine_seed0/cams@single/val").is_dir()
