"""A job looks at its options before it claims an output folder, or removes what lies there."""

from pathlib import Path

import pytest
from support.networks import tiny_cnn

from launcher.config.file import load_config
from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.errors import ConfigError, RunError
from launcher.jobs.infer import infer, try_cams
from launcher.jobs.refine import refine
from launcher.jobs.segment import segment
from launcher.run.folder import Run, split_folders
from launcher.training.preflight import preflight
from wsss.methods.classify import Classify

WRONG = [
    (
        "cam.kinds=[foo]",
        r"cam\.kinds: \['foo'\] are not among .* \['attention', 'class_map', 'grad', 'layer', 'project'\]",
    ),
    ("cam.layers=[9]", r"cam\.layers: no layer 9; this network has 2"),
    ("cam.window_px=50", r"cam\.window_px 50 .* must be multiples of the network's stride 8"),
    ("cam.step_px=3 cam.window_px=16", r"cam\.step_px 3 must be multiples"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_cams_that_cannot_be_read_are_told_before_their_folder_is_claimed(run, scenes, overrides, message):
    with pytest.raises(ConfigError, match=message):
        infer(run, "val", scenes / "val", overrides.split(), "z")
    assert not (run / "cams@z").exists()
    infer(run, "val", scenes / "val", ["cam.kinds=[grad]"], "z")
    before = sorted((run / "cams@z/val").iterdir())
    with pytest.raises(ConfigError, match=message):
        infer(run, "val", scenes / "val", overrides.split(), "z", overwrite=True)
    assert sorted((run / "cams@z/val").iterdir()) == before
    infer(run, "val", scenes / "val", ["cam.kinds=[class_map]"], "z", overwrite=True)
    with pytest.raises(RunError, match="made with other settings"):
        infer(run, "val", scenes / "val", ["cam.kinds=[grad]"], "z")


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_and_before_a_run_begins(in_tmp, tiny_config, overrides, message):
    with pytest.raises(
        ConfigError, match=message.replace("'attention', ", "").replace(", 'project'", "").replace("has 2", "has 4")
    ):
        preflight(tiny_config("classify", "cam.kinds=[grad]", *overrides.split()))


def test_a_fault_in_a_method_of_others_keeps_its_traceback(tiny_config):
    class OfOthers(Classify):
        def maps_of(self, out):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="^shapes differ$"):
        try_cams(OfOthers(tiny_cnn()), tiny_config("classify"))


def test_small_scales_are_those_of_the_images_not_of_the_small_one_that_is_tried(in_tmp, tiny_config):
    preflight(tiny_config("classify", "cam.scales=[0.25]", "cam.pad=floor"))


def test_a_scale_at_which_nothing_is_left_of_an_image_is_told_before_a_run(in_tmp, tiny_config):
    with pytest.raises(ConfigError, match="has 0.01, at which nothing is left of images of 32 px; wanted 0.0313 or"):
        preflight(tiny_config("classify", "cam.scales=[1, 0.01]", "cam.pad=pad"))


def test_masks_that_no_network_gives_and_empty_scales_claim_nothing(run, scenes):
    with pytest.raises(RunError, match="ViT does not segment"):
        segment(run, "val", scenes / "val")
    assert not (run / "segments").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chain": (Named(name="crf", iterations=0),)}, r"iterations is 0; wanted 1 to 1000"),
        ({"cams": ("class_map", "foo")}, r"\['foo'\] are not among the inferred kinds"),
    ],
)
def test_a_chain_that_cannot_run_claims_no_folder(run, wrong, message):
    with pytest.raises(RunError, match=message):
        refine(run, ["val", "tune"], RefineConfig(workers=1, **wrong), name="z")
    assert not (run / "masks").exists()
    refine(run, ["val"], RefineConfig(workers=1, chain=(), cams=("class_map",)), name="z")
    with pytest.raises(RunError, match=message):
        refine(run, ["val"], RefineConfig(workers=1, **wrong), name="z", overwrite=True)
    assert len(list((run / "masks/class_map+z/val").glob("*.tar"))) == 12


def test_no_split_is_claimed_where_another_cannot_be_refined(run):
    (run / "cams/tune/job.json").unlink()
    with pytest.raises(RunError, match=r"cams/tune: no CAMs here; run `wsss infer"):
        refine(run, ["val", "tune"], RefineConfig(workers=1, chain=()))
    assert not (run / "masks").exists()


def test_a_run_without_val_and_tune_says_so(run, scenes):
    config = Run(run).config
    bare = config.model_copy(update={"data": config.data.model_copy(update={"val": None, "tune": None})})
    with pytest.raises(ConfigError, match=r"neither data\.val nor data\.tune, only train: name it with --split"):
        split_folders(bare)
    assert list(split_folders(bare, "train")) == ["train"]
    assert load_config(Path(run) / "config.yaml")
