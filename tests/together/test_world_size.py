"""1, 2 and 4 processes train on the same samples in the same order, with the same losses; what differs is said here."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.places import ROOT
from support.squares import Squares
from support.tiny import CNN_SIZE, VIT, VIT_SIZE
from support.together import together, trained
from support.toys import TOY

from launcher.config.file import to_yaml
from launcher.errors import RunError
from launcher.run.folder import ABOUT, CONFIG, Run
from launcher.training.inputs import check_same_run
from shards.write import write_split

MSEE = ROOT / "configs/voc_mini/msee.yaml"
STEPS = ["data.val=null", "train.steps=4", "train.log_every=1", "train.save_every=2"]


@pytest.fixture
def msee(in_tmp):
    """Overrides that make M-SEE small, with all its losses from the first step on, two images to a group."""
    write_split(Squares("train", 16, False), in_tmp / "pets", "train", "label", num_shards=4)
    further = ["method.msee_from=0", "data.global_batch_size=8", "train.lr=1e-3", "train.power=0"]
    return [*TOY, *further, *STEPS]


def keys_of_steps(ranks):
    """Keys per step, in the order of the ranks."""
    steps = zip(*(facts["keys"][:4] for facts in ranks), strict=True)
    return [[key for keys in step for key in keys] for step in steps]


def test_msee_trains_alike_on_one_two_and_four_processes(msee):
    seen = {n: together(n, trained, MSEE, [[*msee, f"launch.processes={n}", f"name=of{n}"]]) for n in (1, 2, 4)}
    one = [facts for (facts,) in seen[1]]
    assert len(set(one[0]["losses"])) == 4 and len(one[0]["keys"][0]) == 8
    for n in (2, 4):
        ranks = [facts for (facts,) in seen[n]]
        assert keys_of_steps(ranks) == keys_of_steps(one)
        assert ranks[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-4)
        assert all(rank["sum"] == ranks[0]["sum"] for rank in ranks)
        assert ranks[0]["sum"] == pytest.approx(one[0]["sum"], rel=1e-4)


def test_gradients_that_are_averaged_at_once_are_those_of_ddp(msee):
    """Bit for bit: also with two micro-batches, clipped, with an average; and a NaN of one rank stops both."""
    two = [*msee, "launch.processes=2", "train.accumulate=2", "train.max_grad_norm=0.5", "train.ema_decay=0.5"]
    runs = [
        [*two, "name=ddp", "ddp@"],
        [*two, "name=once", "unequal@"],
        [*two, "name=recorded", "recorded@"],
        [*two, "name=nan", "recorded@", "nan@3"],
    ]
    ranks = together(2, trained, MSEE, runs)
    for ddp, once, recorded, stopped in ranks:
        assert ddp == once == recorded
        assert "step 2" in stopped["error"]
    assert ranks[0][1]["sum"] == ranks[1][1]["sum"]


@pytest.mark.slow
def test_msee_trains_under_zero_as_under_ddp(msee):
    runs = [[*msee, "launch.processes=2", f"launch.zero={zero}", f"name=z{zero}"] for zero in (0, 2)]
    ddp, *others = together(2, trained, MSEE, runs)[0]
    for other in others:
        assert other["losses"] == pytest.approx(ddp["losses"], rel=1e-5)
        assert other["norms"] == pytest.approx(ddp["norms"], rel=1e-5)
        assert other["sum"] == pytest.approx(ddp["sum"], rel=1e-5)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 1)])
def test_a_run_may_stop_on_some_processes_and_go_on_with_others(msee, before, after):
    def until(step, processes, name):
        return [*msee, f"train.steps={step}", f"launch.processes={processes}", f"name={name}"]

    runs = [until(4, before, "whole"), until(2, before, "moved"), until(2, before, "same"), until(4, before, "same")]
    whole, first, *same = together(before, trained, MSEE, runs)[0]
    assert same[0]["losses"] + same[1]["losses"] == whole["losses"]
    states = [load_file(f"runs/{name}/step_0000004/model.safetensors") for name in ("whole", "same")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])  # also on four: see D-159
    rest = together(after, trained, MSEE, [until(4, after, "moved")])[0][0]
    assert len(first["losses"]) == len(rest["losses"]) == 2
    assert first["losses"] + rest["losses"] == pytest.approx(whole["losses"], rel=1e-4)


def test_batchnorm_on_cpus_is_the_exception(in_tmp, tiny_yaml):
    """Each process normalises by the images it has; on GPUs train.sync_norm joins them, and torch has none for CPUs."""
    yaml = tiny_yaml("classify")
    runs = [[*STEPS, f"launch.processes={n}", f"name=of{n}"] for n in (1, 2)]
    ((one,),) = together(1, trained, yaml, runs[:1])
    (two,), (other,) = together(2, trained, yaml, runs[1:])
    assert keys_of_steps([two, other]) == keys_of_steps([one])
    assert two["losses"] != pytest.approx(one["losses"], rel=1e-3)
    assert two["losses"] == pytest.approx(one["losses"], rel=0.5)
    assert two["sum"] == other["sum"] and two["state"] == other["state"] != one["state"]


def test_a_network_with_parameters_that_nothing_reads_trains_on_two_processes_as_on_one(in_tmp, tiny_yaml):
    small = "timm_options: {depths: [1, 1, 1, 1], dims: [8, 8, 16, 16]}"
    model = f"model={{name: cnn, timm_name: convnext_atto, output_stride: 16, {small}}}"
    runs = [[*STEPS, model, f"launch.processes={n}", f"name=of{n}"] for n in (1, 2)]
    ((one,),) = together(1, trained, tiny_yaml("classify"), runs[:1])
    (two,), (other,) = together(2, trained, tiny_yaml("classify"), runs[1:])
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["sum"] == other["sum"]


def test_the_processes_of_a_run_may_change_and_its_batch_may_not(tiny_config, tmp_path):
    (tmp_path / CONFIG).write_text(to_yaml(tiny_config("classify", "launch.processes=4")))
    (tmp_path / ABOUT).write_text('{"dataset_fingerprint": "f", "learns_from": {}}')
    check_same_run(Run(tmp_path), tiny_config("classify", "launch.processes=2", "launch.zero=2"), "f", {})
    with pytest.raises(RunError, match="data.global_batch_size: 8 -> 4"):
        check_same_run(Run(tmp_path), tiny_config("classify", "data.global_batch_size=4"), "f", {})


class Uneven(Squares):
    """Squares whose masks know much of some images and little of others."""

    def __getitem__(self, n):
        sample = super().__getitem__(n)
        if not self.with_masks:
            return sample
        mask = sample.mask.copy()
        mask[: 4 * (n % 8)][mask[: 4 * (n % 8)] == 0] = 255
        return replace(sample, mask=mask)


LEARNING_FROM_MASKS = {
    "supervised": [
        "data.train=pets/masks",
        f"model={{name: segmenter, timm_name: vit_tiny_patch16_224, decoder_layers: 1, timm_options: {VIT_SIZE}}}",
    ],
    "mixed": ["data.train=pets/train", "data.pixel=pets/masks", "data.pixel_batch_size=4", f"model={VIT}"],
    "affinity": [
        "data.train=pets/masks",
        f"model={{name: affinity_net, timm_name: resnet10t, widths: [4, 4, 4], timm_options: {CNN_SIZE}}}",
        "model.affinity_dim=8",
        "method.radius=2",
        "data.image_size=64",
    ],
}


def test_methods_that_learn_from_masks_train_alike_on_one_process_on_two_and_in_micro_batches(in_tmp, tiny_yaml):
    for split, masks in (("train", False), ("masks", True)):
        write_split(Uneven(split, 16, masks), in_tmp / "pets", split, "pixel" if masks else "label", num_shards=4)
    yaml = tiny_yaml("classify")

    def run(name, number, *more):
        overrides = [f"method={{name: {name}}}", *LEARNING_FROM_MASKS[name], "data.tune=null", *STEPS]
        return [*overrides, f"name={name}{number}", *more]

    alone = [run(name, n, f"train.accumulate={n}") for name in LEARNING_FROM_MASKS for n in (1, 2, 4)]
    (alone,) = together(1, trained, yaml, alone)
    pair = [
        run(name, f"p{n}", f"train.accumulate={n}", "launch.processes=2")
        for name in LEARNING_FROM_MASKS
        for n in (1, 2)
    ]
    pair += [run("supervised", "z2", "launch.processes=2", "launch.zero=2")]
    pair += [run("affinity", "z1", "launch.processes=2", "launch.zero=1")]
    shared, _ = together(2, trained, yaml, pair)
    for number, name in enumerate(LEARNING_FROM_MASKS):
        one, *others = [*alone[3 * number : 3 * number + 3], *shared[2 * number : 2 * number + 2]]
        assert len(set(one["losses"])) == 4
        for other in others:
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-4), name
            assert other["norms"] == pytest.approx(one["norms"], rel=1e-3), name
            assert other["sum"] == pytest.approx(one["sum"], rel=1e-4), name
    for sharded, one in ((shared[-2], alone[0]), (shared[-1], alone[-3])):
        assert sharded["losses"] == pytest.approx(one["losses"], rel=1e-4)
