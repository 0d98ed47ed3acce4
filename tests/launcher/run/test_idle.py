"""Options that have no effect beside others are refused or told; none of what ships has one."""

import re

import pytest
from support.places import ROOT

from launcher.config.file import load_config
from launcher.config.options import options_model
from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.run.idle import REFUSED, TABLES, TOLD, name_idle, name_unreached, refuse_idle, refuse_overrides
from launcher.studies.plan import training_overrides
from launcher.studies.table import load_study, studies

NO_RUNS = ("studies", "accelerate", "kubernetes")
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in NO_RUNS)
CPU = "launch.device=cpu"


def test_nothing_that_ships_has_an_option_without_effect():
    for path in CONFIGS:
        config = load_config(path)
        refuse_idle(config)
        assert name_unreached(config) == ""
    for name in studies():
        study = load_study(name)
        for training in study.trainings:
            path = ROOT / study.trainings[training].config
            refuse_idle(load_config(path, training_overrides(study, training, 0)))


def test_every_rule_is_of_options_that_there_are():
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    for option in {option for rule in (*REFUSED, *TOLD) for option in rule.options}:
        section, _, name = option.partition(".")
        models = [options_model(one) for one in TABLES[section].values()] if section in TABLES else [sections[section]]
        assert not name or any(name in model.model_fields for model in models), option


@pytest.mark.parametrize(
    ("shipped", "overrides", "said"),
    [
        (
            "smoke/vitb",
            ["teacher=runs/x"],
            "teacher has no effect: the method does not use one; leave it out (teacher=null)",
        ),
        (
            "voc/msee_vitb",
            ["data.min_crop=0.5"],
            "data.min_crop has no effect: the method looks at two views, which are",
        ),
        ("voc/frozen_vitb", ["data.scale=[0.8,1.4]"], "cropped by data.min_crop; leave it out (data.scale=[0.5, 2.0])"),
        (
            "smoke/vitb",
            ["data.pixel_batch_size=4"],
            "data.pixel_batch_size has no effect: there is no data.pixel; leave",
        ),
        (
            "smoke/student_vitb",
            ["method.still=0.1"],
            "method.still has no effect: method.time_weight is 0; leave it out",
        ),
        (
            "smoke/student_vitb",
            ["method.level=logits", "method.metric=l1", "method.project=both"],
            'method.metric has no effect: method.level compares class scores; leave it out (method.metric="cosine")\n'
            "method.project has no effect",
        ),
        (
            "smoke/cotrain_vitb",
            ["method.level=map_max", "method.project=none", "method.project_dim=8"],
            "method.project_dim has no effect: method.project is none; leave it out (method.project_dim=null)",
        ),
        (
            "voc/msee_vitb",
            ["method.region_masks=false", "method.present_only=false"],
            "method.region_masks is false; le",
        ),
        (
            "smoke/frozen_vitb",
            ["model.texts=[]", "model.text_weights=null"],
            "model.other_texts has no effect: there are no model.texts; leave it out (model.other_texts=[])",
        ),
        (
            "smoke/vitb",
            ["cam.step_px=64"],
            "cam.step_px has no effect: there is no cam.window_px; leave it out (cam.st",
        ),
    ],
)
def test_what_would_be_taken_for_what_it_is_not_is_refused(shipped, overrides, said):
    path = ROOT / f"configs/{shipped}.yaml"
    with pytest.raises(ConfigError) as error:
        refuse_idle(load_config(path, overrides))
    assert said in str(error.value)
    for line in str(error.value).splitlines():  # what it says to do is what mends it
        overrides.append(line.rpartition("(")[2].removesuffix(")"))
    refuse_idle(load_config(path, overrides))


@pytest.mark.parametrize(
    ("shipped", "overrides", "said"),
    [
        ("demo/teacher", ["data.val=null"], "train.eval_every (no data.val)"),
        (
            "voc/msee_vitb",
            ["data.val_part=9", "train.eval_every=null"],
            "data.val_part (the only evaluation uses all images",
        ),
        ("smoke/vitb", [CPU], "train.graph (steps are recorded only on GPUs, without ZeRO, and not for every method)"),
        ("own/msee", ["train.weight_decay=0"], "train.decay_all (train.weight_decay is 0)"),
        ("own/classify", [CPU, "launch.max_restarts=2"], "launch.max_restarts (there is one process)"),
        ("own/classify", ["launch.main_address=here"], "launch.main_address (there is one machine)"),
        (
            "voc/toco_vitb",
            [CPU, "tracking.to=[]", "tracking.experiment=mine", "train.graph=false"],
            "tracking.experiment (no mlflow in tracking.to)",
        ),
        ("voc_mini/frozen", ["method.attended=0"], "method.walk_steps, method.agree_from (method.attended is 0)"),
        ("voc_mini/frozen", ["method.walk_steps=0"], "method.agree_from (method.walk_steps is 0)"),
        (
            "own/classify",
            ["cam.kinds=[class_map]", "cam.layers=[-2]"],
            "cam.layers (no kind of cam.kinds reads layers)",
        ),
        (
            "own/msee",
            ["segment.crf=false", "segment.crf_classes=proposed"],
            "segment.crf_classes (segment.crf is false)",
        ),
        (
            "voc/msee_vitb",
            ["segment.batch_size=4"],
            "segment.batch_size (images of different sizes are processed one by one)",
        ),
        ("own/msee", ["segment.rule=coco"], "segment.rule (there is one view to segment)"),
        (
            "own/classify",
            ["refine.cues={sam: cues/sam}"],
            "refine.cues (it is for a refiner that is not in refine.chain)",
        ),
        (
            "own/classify",
            ["refine.bg_threshold=0.4"],
            "refine.bg_threshold (no score lies between it and refine.thresh",
        ),
    ],
)
def test_what_another_option_turns_off_is_told(shipped, overrides, said):
    line = name_idle(load_config(ROOT / f"configs/{shipped}.yaml", overrides))
    assert line.startswith("no effect here: ") and said in line
    section = said.split(".")[0]
    assert name_idle(load_config(ROOT / f"configs/{shipped}.yaml", overrides), section) and not name_idle(
        load_config(ROOT / f"configs/{shipped}.yaml", overrides), "model"
    )


def test_a_part_of_the_method_that_begins_after_the_last_step_is_told():
    short = load_config(ROOT / "configs/voc/msee_vitb.yaml", ["train.steps=2001", "train.warmup_steps=0"])
    said = "never reached, since the last step is 2001: method.seg_from 2001"
    assert name_unreached(short) == said
    for steps in (0, 2002):
        overrides = [f"train.steps={steps}", "train.warmup_steps=0"]
        assert name_unreached(load_config(ROOT / "configs/voc/msee_vitb.yaml", overrides)) == ""


@pytest.mark.parametrize(
    ("command", "reads", "others"),
    [
        (
            "infer",
            ["cam.scales.0=2", "cam={}", "data.val=x", "teacher=x"],
            ["refine.threshold=0.5", "train.ema_decay=0.9"],
        ),
        ("infer", ["model.timm_options={}", "train.precision=bf16"], ["model.weights=x", "method.target=features"]),
        ("segment", ["segment.crf=false", "launch.device=cpu"], ["cam.flip=true", "evaluate.threshold=0.5"]),
        ("segment --cams", ["cam.flip=true", "evaluate.threshold=0.5"], ["refine.threshold=0.5"]),
        ("refine", ["refine.chain=[]", "data.tune=x"], ["data.train=x", "cam.kinds=[grad]", "evaluate.threshold=0.5"]),
        (
            "evaluate",
            ["evaluate.threshold=0.5", "cam.kinds=[grad]"],
            ["cam.scales=[2]", "refine.threshold=0.5", "name=x"],
        ),
    ],
)
def test_a_command_on_a_trained_run_refuses_what_it_does_not_read(command, reads, others):
    refuse_overrides(command, reads)
    for other in others:
        with pytest.raises(
            ConfigError, match=rf"^{re.escape(other)}: has no effect: `wsss {command}` (reads|uses the w)"
        ):
            refuse_overrides(command, [*reads, other])
