from pathlib import Path

import pytest
import yaml

from launcher.config.file import flatten, load_config, to_yaml
from launcher.config.options import options_model
from launcher.errors import ConfigError
from wsss.methods import METHODS

GOOD = """
name: some/run
data: {train: data/x/train}
model: {name: vit, timm_name: deit_tiny_patch16_224}
method: {name: distill}
teacher: runs/teacher
train: {steps: 10, lr: 1e-4}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(GOOD)
    return file


def test_a_config_says_every_default_and_reads_back_to_itself(path):
    config = load_config(path)
    assert config.train.lr == 1e-4  # which YAML 1.1 reads as text
    assert config.method.options["align_weight"] == 1.0
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert "standardise: false" in path.read_text()


def test_overrides_are_yaml_and_reach_into_sections_lists_and_options(path):
    config = load_config(
        path, ["train.steps=7", "cam.scales=[0.5, 1]", "cam.scales.0=2", "method.align_weight=0", "data.val=v"]
    )
    assert (config.train.steps, config.cam.scales, config.data.val) == (7, (2.0, 1.0), Path("v"))
    assert config.method.options["align_weight"] == 0
    assert load_config(path, ["data.val=null"]).data.val is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.warmup_step=3", "run.yaml: train: unknown key 'warmup_step'; did you mean 'warmup_steps'?"),
        ("trian.steps=3", "run.yaml: unknown key 'trian'; did you mean 'train'?"),
        ("method.align_weigth=2", "run.yaml: method: unknown key 'align_weigth'; did you mean 'align_weight'?"),
        ("model.timm=x", "run.yaml: model: unknown key 'timm'; did you mean 'timm_name'?"),
        ("refine.chain=[{name: crf, gama: 2}]", "refine.chain.0: unknown key 'gama'; did you mean 'gamma'?"),
        ("train.lr=fast", "run.yaml: train.lr: got 'fast'; input should be a valid number"),
        ("train.steps=2.5", "run.yaml: train.steps: got 2.5; input should be a valid integer"),
        ("train.steps='3'", "run.yaml: train.steps: got '3'; input should be a valid integer"),
        ("method.align_weight=.nan", "run.yaml: method.align_weight: got nan; input should be a finite number"),
        ("train.max_grad_norm=.inf", "run.yaml: train.max_grad_norm: got inf; input should be a finite number"),
        ("train.seed=18446744073709551616", "train.seed: got 18446744073709551616; input should be less than"),
        ("segment.mean_field.iterations=1000000", "segment.mean_field: iterations is 1000000; wanted 1 to 1000"),
        ("segment.mean_field.bilateral_sxy=1e-9", "segment.mean_field: bilateral_sxy is 1e-09; wanted 0.01 or more"),
        ("data.image_size=16385", "data.image_size: got 16385; input should be less than or equal to 16384"),
        ("cam.window_px=1000000", "cam.window_px: got 1000000; input should be less than or equal to 16384"),
        ("cam.scales=[1.0, 8.5]", "cam.scales.1: got 8.5; input should be less than or equal to 8"),
        ("segment.scales=[9]", "segment.scales.0: got 9; input should be less than or equal to 8"),
        ("data.scale=[0.5, 100.0]", "data.scale.1: got 100.0; input should be less than or equal to 8"),
        ("refine.chain=[{name: crf, iterations: 0}]", "refine.chain.0: iterations is 0; wanted 1 to 1000"),
        ("refine.chain=[{name: crf}, {name: crf, gamma: 0}]", "refine.chain.1: gamma is 0.0; wanted above 0"),
        (
            "refine={chain: [{name: walk, log_t: 11}], cues: {walk: x}}",
            "refine.chain.0: beta is 16.0, log_t 11; wanted",
        ),
        (
            "refine={chain: [{name: sam, min_iou: 3}], cues: {sam: x}}",
            "refine.chain.0: min_iou is 3.0; wanted a number",
        ),
        (
            "refine={chain: [{name: clip, weight: -1}], cues: {clip: x}}",
            "refine.chain.0: weight is -1.0; wanted a numb",
        ),
        ("data.workers=1000000", "data.workers: got 1000000; input should be less than or equal to 1024"),
        ("evaluate.gallery=1000000", "evaluate.gallery: got 1000000; input should be less than or equal to 1024"),
        ("segment.workers=1000000", "segment.workers: got 1000000; input should be less than or equal to 1024"),
        ("data.scale=[-1, 1]", "data.scale.0: got -1; input should be greater than 0"),
        ("model.timm_options={embed_dim: 1000000}", "model.timm_options.embed_dim is 1000000; wanted 65,536 or less"),
        ("model.timm_options={depths: [2, .nan]}", "model.timm_options.depths is nan; wanted 65,536 or less"),
        ("model.mean=[0.0, 0.0, -1e9]", "model.mean is -1000000000.0; wanted 65,536 or less"),
        ("data.flip=2", "run.yaml: data.flip: got 2; input should be less than or equal to 1"),
        ("method.level=pixel", "method.level: got 'pixel'; input should be 'global', 'pooled', .* or 'legacy.logits'"),
        ("method.name=dstil", "method.name: there is no 'dstil'; choose one of affinity, classify, cotrain, distill"),
        ("teacher=null", "teacher: method 'distill' needs one; give the folder of a finished run"),
        ("train.warmup_steps=10", r"train: warmup_steps \(10\) must be smaller than steps \(10\)"),
        ("train=null", "run.yaml: train: got None"),
        ("name=../up", "'../up' must be made of letters"),
        ("launch.zero=3", "run.yaml: launch.zero: got 3; wanted 0, 1, 2 or a DeepSpeed JSON such as"),
        ("launch.zero=s3://b/z.json", "run.yaml: launch.zero: s3://b/z.json: must be a local path"),
        ("cam.kinds=[]", "kinds is empty"),
        ("cam.kinds=[grad, seg, grad]", "cam: kinds names 'grad' twice; leave one out"),
        ("cam.scales=[1.0, 0.5, 1]", "cam: scales names 1.0 twice"),
        ("cam.layers=[-1, -1]", "cam: layers names -1 twice"),
        ("segment.scales=[1, 1]", "segment: scales names 1.0 twice"),
        ("refine.cams=[grad, grad]", "refine: cams names 'grad' twice"),
        ("method={name: msee, cam_scales: [1.0, 1.0]}", "method: cam_scales names 1.0 twice"),
        ("model={name: frozen, timm_name: x, texts: [smoke, smoke]}", "model: texts names 'smoke' twice"),
        ("cam.kinds.0=x", "no list entry or section '0' there; give the whole"),
        ("train.steps", "override 'train.steps': wanted section.key=value"),
        ("train.steps=[", "the value is not YAML"),
        ("name.x=1", "no list entry or section 'x' there"),
    ],
)
def test_mistakes_are_told_with_file_key_and_what_to_do(path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.lr=1e-3", "train.stpes=3"], "override 'train.stpes=3' of PATH: train: unknown key 'stpes'"),
        (["train.steps=5"], "override 'train.steps=5' of PATH: train: warmup_steps (7) must be smaller than steps (5)"),
        (
            ["method.name=toco", "method.scales=3"],
            "overrides 'method.name=toco', 'method.scales=3' of PATH: method: unk",
        ),
        (["data.flip=2", "train.stpes=3"], "override 'data.flip=2' of PATH: data.flip: got 2"),
        (
            ["train.warmup_steps=20", "data.flip=0.0", "train.steps=15"],
            "overrides 'train.warmup_steps=20', 'train.steps=15' of PATH: train: warmup_steps (20)",
        ),
    ],
)
def test_what_an_override_breaks_is_told_with_it_and_not_as_the_files_fault(path, overrides, said):
    path.write_text(GOOD.replace("steps: 10", "steps: 10, warmup_steps: 7"))
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert said.replace("PATH", str(path)) in str(caught.value)


def test_what_the_file_breaks_is_told_as_its_own_whatever_is_overridden(path):
    path.write_text(GOOD.replace("steps: 10", "stpes: 10"))
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["data.flip=2", "train.lr=1e-3"])
    said = str(caught.value).splitlines()
    assert f"{path}: train: unknown key 'stpes'; did you mean 'steps'?" in said
    assert any(line.startswith(f"override 'data.flip=2' of {path}: data.flip: got 2") for line in said)


def test_a_list_of_layers_may_have_two_alike(path):
    model = "model={name: setr, patch_size: 32, spread: 8, widths: [16, 16]}"
    refiners = "refine.chain=[{name: crf}, {name: crf}]"
    config = load_config(path, [model, "method={name: supervised}", "teacher=null", "data.scale=[1.0, 1.0]", refiners])
    assert tuple(config.model.options["widths"]) == (16, 16)


def test_unreadable_files_are_told(tmp_path):
    with pytest.raises(ConfigError, match="gone.yaml: config file is missing"):
        load_config(tmp_path / "gone.yaml")
    bad = tmp_path / "bad.yaml"
    twice = "not YAML: the key 'steps' occurs twice; remove one\n.* line 3, column 3"
    for text, message in (
        ("train:\n  steps: 1\n  steps: 2", twice),
        ("a: [", "not YAML"),
        ("- 1", "holds list; wanted sections"),
        ("", "holds NoneType"),
    ):
        bad.write_text(text)
        with pytest.raises(ConfigError, match=f"bad.yaml: {message}"):
            load_config(bad)


def test_a_missing_section_is_told(path):
    content = yaml.safe_load(GOOD)
    del content["model"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="run.yaml: model: is missing; it has no default"):
        load_config(path)


def test_options_are_the_keyword_only_arguments_of_the_constructor():
    assert set(options_model(METHODS["classify"]).model_fields) == {"dark_weight"}
    assert not options_model(METHODS["supervised"]).model_fields


def test_options_that_a_constructor_hands_to_its_base_are_the_bases():
    distill, cotrain = (set(options_model(METHODS[name]).model_fields) for name in ("distill", "cotrain"))
    assert {"level", "metric", "align_weight", "project_dim"} < distill
    assert cotrain - distill == {"gradient", "freeze_norm"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=cotrain"], "partner: method 'cotrain' needs a second network there"),
        (["partner={name: cnn, timm_name: resnet10t}"], "partner: method 'distill' trains one network; leave it out"),
        (["data.pixel=few"], "data.pixel: method 'distill' reads none; leave it out"),
        (["data.masks=made"], "data.masks: method 'distill' learns from image labels"),
        (["method={name: affinity}", "data.val=val"], "data.val: method 'affinity' gives no maps to evaluate"),
        (["refine.chain=[{name: sam}]"], "refine.cues: refiner 'sam' needs what `wsss cues` computes"),
    ],
)
def test_parts_that_do_not_go_with_the_method_are_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


def test_flatten_names_every_value_by_its_dotted_key(path):
    flat = flatten(load_config(path).model_dump(mode="json"))
    assert flat["train.lr"] == 1e-4 and flat["refine.chain.0.name"] == "crf" and flat["cam.scales"] == [1.0]


def test_words_that_old_yaml_takes_for_booleans_stay_words(tiny_config):
    assert tiny_config("classify", "train.precision=ieee").train.precision == "ieee"
    assert tiny_config("classify", "cam.flip=true").cam.flip is True
