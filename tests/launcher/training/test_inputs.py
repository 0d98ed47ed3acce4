"""Everything that a run reads is opened once in a process."""

import re
from collections import Counter
from pathlib import Path

import pytest
from support.methods import build
from support.networks import tiny_cnn, tiny_deeplab, tiny_swin, tiny_vit
from support.tiny import write_tiny_yaml

from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.jobs import output
from launcher.jobs.infer import infer, try_cams
from launcher.jobs.refine import refine
from launcher.processes import surroundings
from launcher.run import folder as run_folders
from launcher.run import steps
from launcher.run.folder import Run
from launcher.training.inputs import Inputs
from launcher.training.preflight import check_image_size, check_memory, check_share, preflight
from launcher.training.run import train
from shards.index import Index
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.write import write_split
from wsss.methods.base import Frozen
from wsss.methods.classify import Classify
from wsss.methods.cotrain import CoTrain
from wsss.methods.distill import Distill
from wsss.methods.mixed import Mixed
from wsss.methods.supervised import Supervised
from wsss.models.base import Network


@pytest.fixture
def opened(monkeypatch):
    """{what was read: how often}, by path."""
    count = Counter()
    load, read_content, read_made_of = Index.load, run_folders.read_content, output.read_made_of
    newest = steps.newest_complete

    def counting(function):
        def counted(*arguments):
            count[Path(arguments[-1])] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(Index, "load", staticmethod(counting(load)))
    monkeypatch.setattr(run_folders, "read_content", counting(read_content))
    monkeypatch.setattr(output, "read_made_of", counting(read_made_of))
    monkeypatch.setattr(steps, "newest_complete", counting(newest))
    return count


def distilled(scenes, *overrides):
    return load_config(write_tiny_yaml(Path(), scenes, "distill"), ["train.steps=2", "name=again", *overrides])


def test_a_run_with_a_teacher_opens_each_folder_and_each_config_once(run, scenes, opened):
    config = distilled(scenes)
    teacher = [Path("runs/teacher"), Path("runs/teacher/config.yaml")]
    read = [scenes / "train", scenes / "val", scenes / "tune", *teacher]
    preflight(config)
    assert opened == Counter(read)
    opened.clear()
    train(config)
    assert opened == Counter(read)
    opened.clear()
    train(distilled(scenes, "train.log_every=1"))  # goes on: now there is a run to compare with
    assert opened == Counter([*read, Path("runs/again/config.yaml")])


def test_masks_and_the_few_images_that_have_some_are_opened_once(in_tmp, scenes, opened):
    few = Synthetic(split="few", num_images=4, size=32, smoke_rate=0.0, with_masks=True)
    write_split(few, in_tmp, "few", "pixel", num_shards=2)
    few_alone = [f"data.pixel={in_tmp}/few", "train.steps=2"]
    with pytest.raises(DataError, match="no image is labelled smoke among 4"):
        preflight(load_config(write_tiny_yaml(Path(), scenes, "mixed"), few_alone))
    mixed = load_config(write_tiny_yaml(Path(), scenes, "mixed"), [*few_alone, "data.may_lack_classes=true"])
    opened.clear()
    for run in (preflight, train):
        run(mixed)
        assert opened == Counter([scenes / "train", scenes / "val", scenes / "tune", in_tmp / "few"])
        opened.clear()


def test_masks_are_looked_up_once(run, scenes, opened):
    teacher = Path("runs/teacher")
    infer(teacher, "train", scenes / "train")
    (masks,) = refine(teacher, ["train"], Run(teacher).config.refine.model_copy(update={"chain": (), "workers": 1}))
    config = load_config(write_tiny_yaml(Path(), scenes, "supervised"), [f"data.masks={masks}", "name=again"])
    opened.clear()
    inputs = Inputs(config)
    inputs.check()
    assert inputs.learns_from["data.masks"].startswith("made of ")
    assert set(next(inputs.batches_from(0))) >= {"image", "mask"}
    assert opened == Counter([scenes / "train", scenes / "val", scenes / "tune", masks])

    path = masks / "train-00003.tar"
    whole = path.read_bytes()
    at = whole.index(b"NUMPY") + 200  # in the scores beside the mask: all decodes as before
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    inputs.compare_masks(rank=0, ranks=2)
    place = re.escape(str(path))
    told = rf"1 of 12 mask shards have changed since .*:\n  {place}: its sha256 differs .*\nrun the command that made"
    with pytest.raises(DataError, match=told):
        inputs.compare_masks(rank=1, ranks=2)
    with pytest.raises(DataError, match=told):
        train(config)


def test_nothing_is_opened_that_is_not_asked_for(in_tmp, scenes, tiny_config, opened):
    next(Inputs(tiny_config("classify")).batches_from(0))
    assert opened == Counter([scenes / "train"])


def test_no_split_judges_what_another_has_taught_or_chosen(tiny_config, scenes):
    train, val = scenes / "train", scenes / "val"
    for overrides, said in (
        ([f"data.val={train}"], rf"data.val: {train} shares \d+ groups with data.train, first '"),
        ([f"data.tune={train}"], rf"data.tune: {train} shares \d+ groups with data.train, first '"),
        ([f"data.tune={val}"], rf"data.tune: {val} shares 6 groups with data.val, first '.*: move whole groups"),
    ):
        with pytest.raises(RunError, match=said):
            Inputs(tiny_config("classify", *overrides)).check()


def test_a_size_that_a_network_or_its_teacher_does_not_take_is_told_before_a_step():
    wanted = "data.image_size: images of 36 x 36 px; this SwinTransformer .* stride 8, such as 32 x 32"
    for method in (Classify(tiny_swin()), Distill(tiny_vit(), Frozen(tiny_swin())), CoTrain(tiny_vit(), tiny_swin())):
        check_image_size(method, 40)
        with pytest.raises(ConfigError, match=wanted):
            check_image_size(method, 36)
    check_image_size(Classify(tiny_cnn()), 36)
    with pytest.raises(ConfigError, match="data.image_size: images of 7 x 7 px are smaller than one cell of this ViT"):
        check_image_size(Classify(tiny_vit()), 7)
    with pytest.raises(ConfigError, match="method.radius is 5; on the 4 x 4 cells of images of 32 px the largest"):
        check_image_size(build("affinity", radius=5), 32)


ONE, CELL = "data.global_batch_size=1", "data.image_size=8"
GPUS = ["data.global_batch_size=2", "launch.device=cuda", "launch.processes=2"]


@pytest.mark.parametrize(
    ("build_method", "overrides", "whose"),
    [
        (lambda: Classify(tiny_cnn()), [ONE, CELL], "CNN"),
        (lambda: Classify(tiny_cnn()), [ONE], None),
        (lambda: Classify(tiny_vit()), [ONE, CELL], None),
        (lambda: CoTrain(tiny_vit(), tiny_cnn()), [ONE, CELL], "CNN"),
        (lambda: CoTrain(tiny_vit(), tiny_cnn(), freeze_norm=True), [ONE, CELL], None),
        (lambda: Distill(tiny_vit(), Frozen(tiny_cnn())), [ONE, CELL], None),
        (lambda: build("affinity", radius=2), [ONE], None),
        (lambda: Supervised(tiny_deeplab()), [ONE, "data.image_size=512"], "DeepLab"),
        (lambda: Supervised(tiny_deeplab()), ["data.global_batch_size=2"], None),
        (lambda: Supervised(tiny_deeplab()), GPUS, None),  # over the images of both
        (lambda: Supervised(tiny_deeplab()), [*GPUS, "train.sync_norm=false"], "DeepLab"),
    ],
)
def test_one_cell_of_one_image_is_refused_before_a_step_where_batch_norm_trains(
    tiny_config, build_method, overrides, whose
):
    method, config = build_method(), tiny_config("classify", *overrides)
    processes = config.launch.processes or 1
    if whose is None:
        check_share(config, method, processes)
        assert all(module.training for module in method.modules() if isinstance(module, Network))
        return
    told = f"images over {processes} processes x 1 micro-batches: for one image .* a BatchNorm of this {whose} sees"
    with pytest.raises(ValueError, match=told):
        check_share(config, method, processes)


def test_so_is_that_of_the_images_with_masks(tiny_config):
    config = tiny_config("mixed", "data.pixel=few", "data.pixel_batch_size=1", CELL)
    with pytest.raises(ValueError, match="data.pixel_batch_size: 1 images over .* .*a BatchNorm of this CNN sees"):
        check_share(config, Mixed(tiny_cnn()), 1)


def test_images_that_do_not_fit_into_memory_are_told_before_a_step(tiny_config, monkeypatch):
    monkeypatch.setattr(surroundings, "free_memory", lambda: 1e6)
    told = "data.global_batch_size 96: 48 images of 128 x 128 px at a time take 0.0 GB before a network .*, and 0.0 GB"
    with pytest.raises(ConfigError, match=told):
        check_memory(tiny_config("classify", "data.global_batch_size=96", "data.image_size=128"), 2)
    check_memory(tiny_config("classify", "data.global_batch_size=96", "data.image_size=128", "train.accumulate=24"), 2)
    with pytest.raises(ConfigError, match="data.pixel_batch_size 100: 100 images of 32 x 32 px"):
        check_memory(tiny_config("mixed", "data.pixel=few", "data.pixel_batch_size=100"), 1)
    with pytest.raises(ConfigError, match="cam.batch_size 8: 8 images of 256 x 256 px"):
        try_cams(Classify(tiny_cnn()), tiny_config("classify", "cam.scales=[1.0, 8.0]"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["launch.zero=gone.json"], "launch.zero: gone.json is no readable DeepSpeed JSON"),
        (["launch.zero=1", "train.precision=fp16"], "launch.zero: float16 is not supported with DeepSpeed"),
    ],
)
def test_what_deepspeed_cannot_do_is_told_before_processes_start(in_tmp, tiny_config, overrides, told):
    pytest.importorskip("deepspeed")
    with pytest.raises(ConfigError, match=told):
        preflight(tiny_config("classify", *overrides))
