"""What a run costs, from its real graph, compared with what was measured and with sums by hand."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.bench.count import ATTENTION, PAIRS, Counted, count_step, storage_ids
from launcher.bench.stage import Stage
from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.files import find_shipped
from launcher.plan.estimate import (
    GIB,
    count_validations,
    disk_of_data,
    floor_of,
    largest_batch,
    least_accumulate,
    look_at_data,
    make_plan,
    memory_of,
    time_step,
    time_validation,
)
from launcher.plan.gpus import GPUS, HOST_S, UTILISATION, find_gpu
from launcher.plan.measure import measure
from launcher.plan.step import build_without_values, count_config
from launcher.plan.text import format_plan
from launcher.run.start import name_absent
from launcher.training.graph import is_recorded
from shards.schema import ClassSet
from wsss.gaussian_sum import gaussian_sum
from wsss.maps.par import neighbour_weights, propagate
from wsss.methods import METHODS
from wsss.methods.classify import Classify
from wsss.tensors import triton_serves

MEASURED = {  # ms of an update on an H100, docs/experiments.md of 2026-11-26
    ("voc/msee_vitb", ()): 46.7,
    ("smoke/student_vitb", ()): 30.0,
    ("smoke/teacher_resnet50", ()): 19.5,
}


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A folder without data, runs or weights."""
    monkeypatch.chdir(tmp_path)


@cache
def plan_of(name, *overrides, gpu="h100"):
    return make_plan(load_config(find_shipped(name), list(overrides)), GPUS[gpu], processes=1)


def test_flops_and_what_is_kept_are_those_of_a_network_by_hand():
    with FakeTensorMode():
        network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
        x = torch.zeros(5, 8)
        found = count_step(lambda: network(x).sum(), storage_ids(network.parameters()))
    forward = 2 * 5 * (8 * 16 + 16 * 4)
    assert found.flops == forward + 2 * 5 * (8 * 16 + 2 * 16 * 4)  # nobody asks for the gradient of x
    assert found.kept_bytes == 4 * (5 * 8 + 5 * 16)  # x, and the output of the ReLU once, though two keep it


def test_an_operator_takes_the_longer_of_products_traffic_and_launch():
    gpu = GPUS["h100"]
    one = pytest.approx(1)
    assert gpu.least(989 * 10**12, 0, "bf16", "bf16") == (one, "products")
    assert gpu.least(67 * 10**12, 0, "float32", "ieee") == (one, "products")
    assert gpu.least(494 * 10**12, 0, "float32", "tf32") == (one, "products")
    assert gpu.least(67 * 10**12, 0, ATTENTION, "tf32") == (one, "products")
    assert gpu.least(989 * 10**12, 0, PAIRS, "ieee") == (one, "products")
    assert gpu.least(1, 3350 * 10**9, "bf16", "bf16") == (one, "memory")
    assert gpu.least(1, 1, "bf16", "bf16") == (3e-6, "small kernels")
    t4 = GPUS["t4"]  # halves on its matrix units; without TF32
    assert t4.least(65 * 10**12, 0, "bf16", "fp16") == (one, "products")
    assert t4.least(65 * 10**12, 0, PAIRS, "ieee") == (one, "products")
    assert t4.least(81 * 10**11, 0, "float32", "fp16") == (one, "products")
    assert t4.least(81 * 10**11, 0, "float32", "tf32") == (one, "products")
    for name, peak in (("h200", 989), ("a100", 312), ("l40s", 362), ("a10", 125), ("4090", 165), ("3090", 71)):
        for precision in ("bf16", "fp16"):
            assert GPUS[name].least(peak * 10**12, 0, "bf16", precision) == (one, "products")


def test_without_a_graph_a_step_takes_at_least_its_launches(nowhere):
    config = load_config(find_shipped("voc/msee_vitb"), [])
    ops = [*Counted([(0, 0, "bf16")] * 1000).ops, (989 * 10**9, 0, "bf16"), (0, 67 * 10**8, "bf16")]
    floor_s = floor_of(config, GPUS["h100"], ops, trained=10**9)
    assert floor_s == pytest.approx({"products": 1e-3, "memory": 2e-3 + 8e9 / 3.35e12, "small kernels": 3e-3})
    best, worst = time_step(config, 1000, 3e-3, recorded=True)
    assert (best, worst) == pytest.approx((3e-3 / UTILISATION[0], 3e-3 / UTILISATION[1]))
    for accumulate in (1, 2):
        more = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": accumulate})})
        found = time_step(more, 1000, 3e-3 * accumulate, recorded=False)
        assert found == pytest.approx(tuple(1000 * accumulate * each for each in HOST_S))


@pytest.mark.parametrize(
    ("name", "processes", "overrides", "recorded"),
    [
        ("voc/msee_vitb", 1, [], True),
        ("voc/msee_vitb", 2, [], True),
        ("voc/msee_vitb", 2, ["launch.zero=1"], False),
        ("voc/msee_vitb", 1, ["train.graph=false"], False),
        ("smoke/teacher_resnet50", 1, [], True),
        ("smoke/teacher_resnet50", 2, [], False),  # its BatchNorm talks inside the step
        ("smoke/teacher_resnet50", 2, ["train.sync_norm=false"], True),
    ],
)
def test_a_step_is_recorded_where_nothing_inside_it_talks(nowhere, name, processes, overrides, recorded):
    config = load_config(find_shipped(name), overrides)
    method = build_without_values(config, look_at_data(config, [])[0])
    known = {"processes": processes, "zero": config.launch.zero != 0}
    assert is_recorded(config.train, method, device="cuda", **known) is recorded
    assert not is_recorded(config.train, method, device="cpu", **known)


def test_memory_time_and_disk_are_sums_by_hand(nowhere):
    config = load_config(find_shipped("voc/msee_vitb"), [])

    def changed(section, **values):
        return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})

    sizes = {"weights": 100 * GIB, "frozen": 20 * GIB, "trained": 80 * GIB}
    parts = {"weights": 120, "gradients": 80, "AdamW": 160, "activations": 50, "workspace": 41.6}
    shared = {0: parts, 1: {**parts, "AdamW": 40, "workspace": 29.6}}
    shared[2] = {**shared[1], "gradients": 20, "workspace": 23.6}
    for zero, wanted in shared.items():
        memory = memory_of(changed("launch", zero=zero), sizes, 50 * GIB, 4)
        assert {name: value / GIB for name, value in memory.items()} == pytest.approx(wanted)
    averaged = memory_of(changed("train", ema_decay=0.99), sizes, 50 * GIB, 4)
    assert averaged["average"] == 100 * GIB and averaged["workspace"] / GIB == pytest.approx(51.6)
    memory = {"weights": 3 * GIB, "activations": GIB, "workspace": 7 * GIB}  # of two images
    for memory_gib, images in ((9.41, 10), (9.39, 9), (3.5, 0)):  # 1.1 (3 + 10 / 2) + 0.6
        assert largest_batch(GPUS["t4"]._replace(memory_gib=memory_gib), memory, 2) == images

    steps = {"steps": 10, "eval_every": 4}
    for more, often in (({}, 3), ({"eval_every": None}, 1), ({"steps": 0}, 1)):
        assert count_validations(changed("train", **steps | more)) == often
    without = changed("data", val=None)
    assert count_validations(without) == 0 and time_validation(without, GPUS["h100"], 9, 1, 1) is None
    assert time_validation(config, GPUS["h100"], None, 1, 1) is None
    looks = 2 * (1 + 0.25 + 2.25)  # scales, each with its mirror image
    for precision, peak in (("bf16", 989), ("fp16", 989), ("tf32", 494), ("ieee", 67)):
        found = time_validation(changed("train", precision=precision), GPUS["h100"], 100, 10**12, 2)
        assert found == pytest.approx([100 * looks / peak / 2 / share for share in UTILISATION])
    t4 = time_validation(changed("train", precision="fp16"), GPUS["t4"], 100, 10**12, 1)
    assert t4 == pytest.approx([100 * looks / 65 / share for share in UTILISATION])
    part = time_validation(changed("data", val_part=40), GPUS["h100"], 100, 10**12, 1)
    assert part == pytest.approx([40 * looks / 989 / share for share in UTILISATION])

    classes = look_at_data(config, [])[0]
    of_maps = 5 * 3 * 28**2 * 2  # bytes of the maps of 5 images of one class, in 3 kinds, at float16
    assert disk_of_data(config, classes, 3, 2) == {"CAMs": 3 * of_maps, "masks": 50_000}  # some 3 classes an image
    assert disk_of_data(changed("cam", classes="all"), classes, 3, 2)["CAMs"] == 20 * of_maps
    assert disk_of_data(config, classes, None, None) == {}


def test_float16_counts_as_bfloat16():
    with FakeTensorMode():
        x = torch.zeros(2, 2, dtype=torch.float16)
        assert count_step(lambda: x @ x, set(), backward=False).ops[0][2] == "bf16"


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[0]} {' '.join(case[1])}")
def test_a_shipped_config_takes_what_was_measured(nowhere, case):
    name, overrides = case
    low, high = plan_of(name, *overrides).step_s
    assert low <= MEASURED[case] / 1e3 <= high and high < 2.5 * low


def test_the_memory_of_an_image_is_what_was_measured(nowhere):
    plan = plan_of("voc/msee_vitb")
    measured = (50 - 27) / 32  # GiB from 32 to 64 images
    assert plan.memory["activations"] / plan.images / GIB == pytest.approx(measured, rel=0.1)
    floor_ms = {name: 1e3 * seconds for name, seconds in plan.floor_s.items()}
    assert f"its floor    {sum(floor_ms.values()):.3g} ms on one NVIDIA H100" in format_plan(plan)
    assert f": products {floor_ms['products']:.3g}, memory {floor_ms['memory']:.3g}, small " in format_plan(plan)
    assert 9.8 < floor_ms["products"] < 15  # 9,800 GFLOP at 989 TFLOP/s and more
    energy = 2 * (224 * 224) ** 2 * (32 + 32)  # an image's pairs: a point's numbers as split, 21 classes as 32
    assert plan.flops / 4 == pytest.approx(2184e9 + energy, rel=0.02)  # the rest of D-45
    assert plan.epochs == pytest.approx(20_000 * 4 / 10_582) and plan.validations == 10
    checkpoint = plan.memory["weights"] + plan.memory["AdamW"]  # without an average
    assert plan.disk["checkpoints"] == 2 * checkpoint and plan.saves == 10
    assert plan.save_s == pytest.approx(checkpoint / 0.5e9)
    took = replace(plan, step_s=(0.1, 0.2), validation_s=(60.0, 120.0), saves=5, save_s=2.0)
    assert took.hours == pytest.approx((2610 / 3600, 5210 / 3600))
    assert replace(took, validation_s=None).hours == pytest.approx((2010 / 3600, 4010 / 3600))
    assert replace(plan, memory={"weights": int(79.6 * GIB)}).fits
    assert not replace(plan, memory={"weights": int(79.6 * GIB) + 1}).fits


@pytest.mark.parametrize(("name", "most_ms"), [("voc/msee_vitb", 25.0), ("coco/msee_vitb", 52.3)])
def test_a_step_does_no_more_than_it_did(nowhere, name, most_ms):
    plan = plan_of(name)
    assert 1e3 * sum(plan.floor_s.values()) <= most_ms and plan.launches <= 2540


def test_kernels_of_our_own_count_for_what_a_gpu_runs():
    pytest.importorskip("triton")
    with FakeTensorMode():
        image, maps = torch.zeros(2, 3, 20, 10), torch.zeros(2, 6, 20, 10)
        pixels, values = torch.zeros(2, 200, 5), torch.zeros(2, 200, 21)
        weights = count_step(lambda: neighbour_weights(image, (1, 2)), set(), backward=False).ops
        weight = torch.zeros(2, 16, 20, 10)
        flow = count_step(lambda: propagate(maps, weight, (1, 2), 3), set(), backward=False).ops
        sums = count_step(lambda: gaussian_sum(pixels, values), set(), backward=False).ops
    assert weights[-1] == (0, 4 * (16 + 2 * 200 * 3 + 2 * 200 * 16), "float32")  # of places, image and what they give
    assert flow == [(0, 4 * 200 * 2 * (2 * 16 + 2 * 6), "float32")] * 3  # weights twice: four maps at a time
    assert sums[-1][::2] == (2 * 2 * 200**2 * (32 + 32), PAIRS)
    assert not triton_serves(torch.zeros(1))


@pytest.mark.parametrize(("heads", "kind"), [(2, ATTENTION), (1, PAIRS)])
def test_attention_is_two_products_and_five_on_the_way_back(heads, kind):
    with FakeTensorMode():
        q, k, v = (torch.zeros(3, heads, 8, 4, requires_grad=True) for _ in range(3))
        found = count_step(lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum(), set())
    product = 2 * 3 * heads * 8 * 8 * 4  # scores, their sum; back: scores anew, and two gradients of each product
    assert [(flops, of) for flops, _, of in found.ops if flops] == [(2 * product, kind), (5 * product, kind)]


def test_a_name_for_memory_that_is_there_costs_nothing():
    with FakeTensorMode():
        x, weight = torch.zeros(2, 3, 4), torch.zeros(4, 5)
        found = count_step(lambda: x @ weight, set(), backward=False)
    assert found.ops == [(2 * 6 * 4 * 5, 4 * (6 * 4 + 4 * 5 + 6 * 5), "float32")]


def test_a_network_that_reads_values_or_counts_several_images_is_planned_too(nowhere):
    small = ("data.image_size=64", "data.global_batch_size=2")
    tiny = ("model.timm_name=vit_tiny_patch16_224", "model.timm_options={depth: 2}")
    assert plan_of("smoke/segmenter", *small, *tiny).flops > 0
    assert plan_of("smoke/stage3_deeplab", *small, "model.timm_name=resnet10t").flops > 0


def test_what_only_cpus_do_is_not_planned(nowhere):
    """A bilateral grid has as many cells as the colours of an image say; GPUs take every pixel."""
    small = ["data.image_size=64", "data.global_batch_size=2", "method.crop_px=32", "model.timm_options={depth: 3}"]
    config, class_set = load_config(find_shipped("own/msee"), small), ClassSet(name="own", classes=("cat",))
    assert config.method.options["energy_grid"] == 1
    assert count_config(config, build_without_values(config, class_set), class_set, 2)[0].flops > 0


class OtherOnCpus(Classify):
    grid = True

    def as_on_gpus(self):
        self.grid = False

    def forward(self, batch, step):
        if self.grid:
            batch["image"].unique()
        return super().forward(batch, step)


def test_a_method_says_what_it_does_on_gpus(nowhere, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", OtherOnCpus)
    small = ["data.image_size=64", "data.global_batch_size=2", "model.timm_name=resnet10t", "method={name: mine}"]
    assert plan_of("smoke/teacher_resnet50", *small).flops > 0
    monkeypatch.setattr(OtherOnCpus, "as_on_gpus", lambda self: None)
    with pytest.raises(ConfigError, match="method 'mine': its step cannot be counted without values"):
        plan_of("smoke/teacher_resnet50", *small, "train.seed=1")


def test_a_gpu_without_bfloat16_is_planned_in_float16_alone(nowhere):
    message = r"precision is bf16, which NVIDIA T4 16GB .* does not support; take train.precision=fp16, or ieee"
    with pytest.raises(ConfigError, match=message):
        plan_of("smoke/teacher_resnet50", gpu="t4")


def test_frozen_weights_take_no_gradients_and_need_no_files(nowhere):
    """Grad-CAM of texts, and two encoders of 5.5 million weights."""
    tiny = "vit_tiny_patch16_224"
    small = ("data.image_size=64", "data.global_batch_size=2", "model.decoder_dim=32", "model.second_options={}")
    memory = plan_of("smoke/frozen_vitb", *small, f"model.timm_name={tiny}", f"model.second={tiny}").memory
    assert memory["weights"] > 4 * 2 * 5.5e6 and 0 < memory["gradients"] < 1e6


def test_what_does_not_fit_says_what_does(nowhere):
    assert plan_of("smoke/teacher_resnet50").fits and plan_of("smoke/teacher_resnet50").accumulate == 1
    large = plan_of("smoke/teacher_resnet50", "data.global_batch_size=128", "train.precision=fp16", gpu="t4")
    assert large.floor_s["products"] == pytest.approx(large.flops / 65e12, rel=0.2)
    assert not large.fits and 0 < large.largest < 128
    assert 128 // large.accumulate <= large.largest < 128 // (large.accumulate // 2)
    assert f"train.accumulate={large.accumulate} instead of 1" in format_plan(large)
    config = load_config(find_shipped("coco/msee_vitb"), ["data.global_batch_size=64"])
    method = build_without_values(config, look_at_data(config, [])[0])
    assert least_accumulate(config, method, 1, 0) is None
    assert least_accumulate(config, method, 1, 1) is None  # groups of two images
    assert least_accumulate(config, method, 2, 2) == 16


def test_checkpointing_is_named_where_it_makes_a_batch_fit(nowhere):
    large = ("smoke/student_vitb", "data.global_batch_size=256")
    plain, kept_less = (plan_of(*large, f"model.checkpointing={on}", gpu="a10") for on in ("false", "true"))
    assert not plain.fits and kept_less.fits and not kept_less.can_checkpoint
    assert f"train.accumulate={plain.accumulate} instead of 1, or model.checkpointing=true" in format_plan(plain)
    assert kept_less.memory["activations"] < 0.3 * plain.memory["activations"]
    assert kept_less.flops < 1.25 * plain.flops


@pytest.mark.parametrize("processes, message", [(3, "4 does not divide into 3"), (4, "4 images over 4 .* groups of 2")])
def test_a_batch_that_training_would_refuse_is_refused(nowhere, processes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(load_config(find_shipped("voc/msee_vitb"), []), GPUS["a10"], processes=processes)


def test_shards_that_are_here_are_looked_at(in_tmp, tiny_config, scenes):
    config, assumed = tiny_config("classify"), []
    class_set, train, val = look_at_data(config, assumed)
    assert (class_set.classes, train, val) == (("smoke",), 48, 24) and not assumed
    plan = make_plan(config, GPUS["h100"], price=2.0)
    shards = sum(path.stat().st_size for split in ("train", "val") for path in (scenes / split).glob("*.tar"))
    assert plan.disk["shards"] == shards
    assert "minutes, " in format_plan(plan) and "at 2 a GPU and hour" in format_plan(plan)


def test_weights_that_are_not_here_are_among_what_is_assumed(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = load_config(find_shipped("voc/frozen_vitb"), ["model.text_weights=gone"])
    first, second, texts = name_absent(config.model, "model")
    assert "the weights of 'vit_base_patch16_clip_quickgelu_224.openai' must be downloaded" in first
    assert "without internet give a file, model.second_weights=PATH" in second
    assert texts == "model.text_weights: gone does not exist; it is assumed to be there"
    of_student = "  - model.weights: the weights of 'deit_tiny_patch16_224' must be downloaded"
    assert of_student in format_plan(plan_of("smoke_mini/student"))
    cached = tmp_path / "models--timm--vit_base_patch14_reg4_dinov2.lvd142m"
    (cached / "snapshots/a1").mkdir(parents=True)
    (cached / "snapshots/a1/model.safetensors").touch()
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("a1")
    (tmp_path / "gone").touch()
    assert name_absent(config.model, "model") == [first]


def test_codes_say_whether_it_fits_and_a_probe_replaces_the_estimate(nowhere, in_tmp, tiny_yaml, monkeypatch):
    command, small = CliRunner(), str(tiny_yaml("classify"))
    fits = command.invoke(app, ["plan", small, "--measure", "2"])
    assert fits.exit_code == 0, fits.output
    assert "ms measured" in fits.output and "median of 2 on this CPU" in fits.output
    asked, plan = [], SimpleNamespace(images=4, processes=1, assumed=[])
    monkeypatch.setattr(Stage, "clock", lambda self, *given: asked.append(given[1:]) or {"ms": 200.0, "peak_gib": 0.5})
    measure(plan, load_config(Path(small), ["train.accumulate=2"]), 7)
    assert (plan.step_s, plan.measured, plan.memory) == ((0.4, 0.4), True, {"measured peak": 2**29})
    assert asked == [(7, 3)] and plan.assumed[0].startswith("a step is the median of 7 on this CPU")
    too_large = ["plan", "smoke/teacher_resnet50", "data.global_batch_size=128", "train.precision=fp16", "--gpu", "t4"]
    assert command.invoke(app, too_large).exit_code == 3
    with pytest.raises(ConfigError, match="there is no 'h1000'; choose one of h100"):
        find_gpu("h1000")
