import json
import pickle
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from support.photographs import Colours, Photographs, Segmenting, stand_in_for_a_run
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.evaluation.judge_masks import MaskJudge
from launcher.jobs import pool
from launcher.jobs import segment as job
from launcher.jobs.crf_pool import run_in_order
from launcher.jobs.label_maps import read_left_out
from launcher.jobs.segment import segment
from launcher.run import build
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask
from shards.masks import MaskFolder
from shards.tars import tar_members
from shards.write import write_split
from wsss.maps.fusion import RULES, fold_views
from wsss.refine.crf import mean_field


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """Splits val (with masks), test (label-only shards without a label) and lynxes (other classes)."""
    out = tmp_path_factory.mktemp("pets")
    write_split(Photographs("val", 6), out, "val", "pixel", num_shards=3)
    for split, options in (("test", {}), ("lynxes", {"classes": ("lynx", "puma")})):
        source = Photographs(split, 4, with_masks=False, with_labels=False, **options)
        write_split(source, out, split, "label", num_shards=2, may_lack_classes=True)
    return out


@pytest.fixture
def run(in_tmp, tiny_yaml, pets, monkeypatch):
    """A run whose trained method knows the colours; RUN/segments is where its masks go."""

    def config_of(overrides):
        return load_config(tiny_yaml("classify"), ["segment.workers=0", *overrides])

    stand_in_for_a_run(job, monkeypatch, config_of, Photographs.class_set, Segmenting())
    return in_tmp / "runs/pets"


def members(path):
    return {f"{key}.{extension}": data for key, extension, _, data in tar_members(path)}


def masks_of(folder, shards):
    """{sample number: (H, W) class ids} of every KEY.png."""
    found = MaskFolder(folder, shards)
    return {number: found(number) for number in range(len(shards))}


def up(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def as_input(image_HW3):
    return torch.from_numpy(image_HW3.astype(np.float32) / 255).permute(2, 0, 1)[None]


def native_logits(image_HW3, scale=1.0, flip=False):
    """Logits at the image's size: padded to the stride by repeating the border, cut afterwards."""
    height, width = image_HW3.shape[:2]
    view = up(as_input(image_HW3), (int(scale * height), int(scale * width)))
    view = view.flip(-1) if flip else view
    padded = F.pad(view, (0, -view.shape[-1] % 8, 0, -view.shape[-2] % 8), mode="replicate")
    logits = up(Colours()(padded).seg_logits_BChw, padded.shape[-2:])[..., : view.shape[-2], : view.shape[-1]]
    logits = up(logits, (height, width))
    return logits.flip(-1) if flip else logits


def test_masks_have_the_images_own_size_and_nothing_is_floored(run, pets):
    shards = ShardFolder(pets / "val")
    out = segment(run, "val", pets / "val", ["segment.crf=false"])
    assert out == run / "segments/val"
    assert sorted(path.name for path in out.glob("*.tar")) == [shard.name for shard in shards.index.shards]
    for number, mask_HW in masks_of(out, shards).items():
        wanted_HW = native_logits(shards.image(number)).argmax(1)[0].numpy()
        assert mask_HW.shape == shards.mask(number).shape
        assert (mask_HW == wanted_HW).mean() > 0.999
        name = shards.index.shards[shards.shard_of[number]].name
        about = json.loads(members(out / name)[f"{shards.keys[number]}.json"])
        assert about["class_ids"] == np.unique(mask_HW).tolist() and about["size"] == list(mask_HW.shape)
        assert about["group"] == shards.groups[number]


def test_scales_and_flips_are_fused_by_the_rule_of_voc(run, pets):
    shards = ShardFolder(pets / "val")
    out = segment(run, "val", pets / "val", ["segment.crf=false", "segment.scales=[1,1.5]", "segment.flip=true"])
    for number, mask_HW in masks_of(out, shards).items():
        image = shards.image(number)
        scales = [native_logits(image, scale) + native_logits(image, scale, flip=True) for scale in (1, 1.5)]
        assert (mask_HW == torch.maximum(*scales).argmax(1)[0].numpy()).mean() > 0.999


def test_squashed_images_are_batched_and_fused_by_the_rule_of_coco_at_each_images_size(run, pets):
    shards = ShardFolder(pets / "val")
    options = ["segment.crf=false", "segment.size=squash", "segment.rule=coco", "segment.batch_size=2"]
    out = segment(run, "val", pets / "val", [*options, "segment.scales=[1,1.5]", "segment.flip=true"])
    flips, scales = RULES["coco"]
    for number, mask_HW in masks_of(out, shards).items():
        square = np.asarray(Image.fromarray(shards.image(number)).resize((32, 32), Image.Resampling.BILINEAR))
        views = []
        for side in (32, 48):
            view = up(as_input(square), (side, side))
            views.append(tuple(Colours()(x).seg_logits_BChw for x in (view, view.flip(-1))))
        fused = fold_views(views, mask_HW.shape, flips=flips, scales=scales)
        assert (mask_HW == fused.argmax(1)[0].numpy()).mean() > 0.999


def test_the_crf_gets_the_softmax_of_the_fused_logits_and_the_whole_image(run, pets):
    shards = ShardFolder(pets / "val")
    out = segment(run, "val", pets / "val", ["segment.mean_field.iterations=3"])
    changed = 0
    for number, mask_HW in masks_of(out, shards).items():
        image = shards.image(number)
        probs = native_logits(image).softmax(1)[0].numpy()
        toco_seg = {"gaussian_sxy": 1, "gaussian_weight": 1, "bilateral_sxy": 121, "bilateral_srgb": 5}
        wanted = mean_field(image, probs, iterations=3, **toco_seg, bilateral_weight=4).argmax(0)
        assert (mask_HW == wanted).mean() > 0.999
        changed += (wanted != probs.argmax(0)).sum()
    assert changed > 50  # it does something


def test_where_pydensecrf_is_not_installed_masks_are_made_and_tell_how(run, pets, monkeypatch):
    options = ["segment.mean_field.iterations=2"]
    with monkeypatch.context() as bare:
        bare.setattr("wsss.refine.crf.is_installed", lambda name: False)
        out = segment(run, "val", pets / "val", options)
    assert json.loads((out / "job.json").read_text())["segment"]["mean_field"]["by"] == "exact"
    pytest.importorskip("pydensecrf")
    with pytest.raises(RunError, match="made with other settings"):  # no half of the masks by another sum
        segment(run, "val", pets / "val", [*options, "segment.mean_field.by=lattice"])


def test_neither_worker_processes_nor_batches_nor_a_restart_change_a_byte(run, pets):
    whole = segment(run, "val", pets / "val")
    first = {path.name: path.read_bytes() for path in whole.glob("*.tar")}
    pooled = segment(run, "val", pets / "val", ["segment.workers=1", "segment.batch_size=1"], "pooled")
    assert pooled == run / "segments@pooled/val"
    assert {path.name: path.read_bytes() for path in pooled.glob("*.tar")} == first
    gone, kept = sorted(whole.glob("*.tar"))[:2]
    gone.unlink()
    written = kept.stat().st_mtime_ns
    segment(run, "val", pets / "val")
    assert gone.read_bytes() == first[gone.name] and kept.stat().st_mtime_ns == written
    assert not list(whole.glob(".*.tmp"))


class Sent(ThreadPoolExecutor):
    """Work is pickled, as on its way to another process."""

    def submit(self, work, *arguments):
        return super().submit(pickle.loads(pickle.dumps(work)), *arguments)


def test_processes_that_take_one_shard_after_another_load_the_network_once_and_write_the_same(run, pets, monkeypatch):
    alone = segment(run, "val", pets / "val", ["segment.crf=false"])
    trained, loaded = job.load_trained, []
    for place in (job, build):
        monkeypatch.setattr(place, "load_trained", lambda of: loaded.append(of) or trained(of))
    monkeypatch.setattr(pool, "spawned_pool", lambda workers, devices: Sent(1))
    shared = segment(run, "val", pets / "val", ["segment.crf=false", "launch.processes=2"], "shared")
    wanted = {path.name: path.read_bytes() for path in alone.glob("*.tar")}
    assert {path.name: path.read_bytes() for path in shared.glob("*.tar")} == wanted
    assert len(loaded) == 2  # by the command, which looks whether it can be, and by who does it


def test_proposed_classes_give_the_same_masks_where_the_others_have_no_chance(run, pets):
    every = masks_of(segment(run, "val", pets / "val"), ShardFolder(pets / "val"))
    few = segment(run, "val", pets / "val", ["segment.crf_classes=proposed"], "few")
    assert len(read_left_out(few)) == 6 and all(0 <= mass < 0.06 for mass in read_left_out(few))
    assert read_left_out(run / "segments/val") == []
    for number, mask_HW in masks_of(few, ShardFolder(pets / "val")).items():
        assert (mask_HW == every[number]).mean() > 0.999


@pytest.mark.parametrize("crf", ["true", "false"])
def test_logits_that_are_no_numbers_are_refused_by_the_images_name(run, pets, monkeypatch, crf):
    class Broken(Colours):
        def forward(self, image):
            out = super().forward(image)
            out.seg_logits_BChw[0, 0, 0, 0] = torch.nan
            return out

    trained = job.load_trained
    monkeypatch.setattr(job, "load_trained", lambda of: trained(of)._replace(method=Segmenting(Broken())))
    shards = ShardFolder(pets / "val")
    with pytest.raises(RunError, match=f"sample '{shards.keys[0]}': the network's logits are NaN"):
        segment(run, "val", pets / "val", [f"segment.crf={crf}"])


def test_other_settings_are_refused_and_named(run, pets):
    segment(run, "val", pets / "val", ["segment.crf=false"])
    segment(run, "val", pets / "val", ["segment.crf=false", "segment.workers=1", "segment.mean_field.iterations=3"])
    with pytest.raises(RunError, match="made with other settings .segment"):
        segment(run, "val", pets / "val", ["segment.crf=false", "segment.flip=true"])
    with pytest.raises(RunError, match="cam_threshold"):
        segment(run, "val", pets / "val", ["segment.crf=false"], cams=True)


def test_label_maps_of_the_cams_are_those_that_validation_judges(run, pets):
    shards = ShardFolder(pets / "val", "pixel")
    options = ["segment.crf=false", "evaluate.threshold=0.45"]
    trained = job.load_trained(job.Run(run, options))
    judge = MaskJudge(trained.run.config, trained.method, shards, Accelerator(cpu=True))
    judged = judge.judge(list(range(len(shards))), set())
    for name, size in (("native", "native"), ("squash", "squash")):
        out = segment(run, "val", pets / "val", [*options, f"segment.size={size}"], name, cams=True)
        confusion = torch.zeros(2, 3, 3, dtype=torch.int64)
        for number in range(len(shards)):
            of_shard = members(out / shards.index.shards[shards.shard_of[number]].name)
            for k, kind in enumerate(("cam", "aux_cam")):
                label = decode_mask(of_shard[f"{shards.keys[number]}.{kind}.png"], kind)
                pair = torch.from_numpy(shards.mask(number).astype(int) * 3 + label)[shards.mask(number) != 255]
                confusion[k] += torch.bincount(pair.flatten(), minlength=9).view(3, 3)
        assert torch.equal(confusion, judged.confusion[1:])


def test_the_rule_of_the_cams_is_part_of_what_masks_were_made_of(run, pets):
    plain = ["segment.crf=false"]
    segment(run, "val", pets / "val", plain, cams=True)
    toco = [*plain, "cam.fuse=toco", "cam.scales=[1.0,0.5,1.5]", "cam.flip=true"]
    segment(run, "val", pets / "val", toco, cams=True)  # the same rule, named
    with pytest.raises(RunError, match="made with other settings .cam.pad: 'pad', now 'floor'"):
        segment(run, "val", pets / "val", [*toco, "cam.pad=floor"], cams=True)


def test_images_without_labels_are_segmented_but_have_no_cams_to_judge(run, pets):
    out = segment(run, "test", pets / "test", ["segment.crf=false"])
    shards = ShardFolder(pets / "test")
    assert [mask_HW.shape for mask_HW in masks_of(out, shards).values()] == [
        shards.image(n).shape[:2] for n in range(len(shards))
    ]
    with tarfile.open(next(out.glob("*.tar"))) as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"png", "json"}
    with pytest.raises(RunError, match="no image has a label"):
        segment(run, "test", pets / "test", [], "cams", cams=True)


def test_shards_of_other_classes_and_networks_that_do_not_segment_are_refused(run, pets, monkeypatch):
    with pytest.raises(RunError, match="has the classes .'lynx', 'puma'."):
        segment(run, "lynxes", pets / "lynxes")

    class Blind(Colours):
        def forward(self, image):
            from dataclasses import replace

            return replace(super().forward(image), seg_logits_BChw=None)

    config = job.Run(run).config
    stand_in_for_a_run(job, monkeypatch, lambda _: config, Photographs.class_set, Segmenting(Blind()))
    with pytest.raises(RunError, match="Blind does not segment"):
        segment(run, "val", pets / "val")
    assert not list((run / "segments/val").glob("*.tar"))


class Slow:
    """An executor that finishes a task only when its result is asked for; counts those under way."""

    def __init__(self):
        self.waiting, self.most = 0, 0

    def submit(self, work, task):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        future, slow = Future(), self

        def result(timeout=None):
            slow.waiting -= 1
            return work(task)

        future.result = result
        return future


def test_results_come_in_order_and_the_queue_is_bounded():
    pool = Slow()
    assert list(run_in_order(pool, lambda n: n * n, iter(range(20)), 4)) == [n * n for n in range(20)]
    assert pool.most == 4
    assert list(run_in_order(None, lambda n: -n, iter(range(3)), 1)) == [0, -1, -2]


def test_impossible_settings_are_refused_before_anything_runs(tiny_config):
    assert tiny_config("classify").segment.mean_field.bilateral_sxy == 121
    for override, message in (
        ("segment.scales=[]", "segment: scales is empty"),
        ("segment.rule=city", "segment.rule: got 'city'"),
        ("segment.mean_field.gaussian_sxy=0", "segment.mean_field.gaussian_sxy: got 0"),
        ("segment.crf_clases=all", "did you mean 'crf_classes'"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config("classify", override)


@pytest.mark.parametrize("command", ["segment", "pack-voc", "bench crf"])
def test_help_of_each_command_ends_with_an_example_of_it(command):
    shown = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200)
    assert shown.exit_code == 0 and f"Example:  wsss {command}" in shown.output
