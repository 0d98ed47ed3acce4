"""Whole updates and inference at the papers' sizes."""

import time

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as watch

from launcher.bench.stage import PRECISIONS, Found, Stage
from launcher.config.sections import CamConfig, Precision
from launcher.jobs.infer import cams_of
from launcher.processes.precision import in_precision

VOC_PX, SMOKE_PX = 448, 512


def step_msee_voc(stage: Stage) -> Found:
    """M-SEE on VOC, 4 images: in each precision, without the energy and PAR, and ToCo."""
    found, px, images = Found(), stage.size(VOC_PX, 64), stage.size(4, 2)
    for precision in PRECISIONS:
        found[precision] = stage.clock(stage.update(*stage.method("msee", images, px), precision), 10, 3)
    without = stage.method("msee", images, px, energy_weight=0.0)
    found["bf16, no energy"] = stage.clock(stage.update(*without, "bf16"), 20, 3)
    without = stage.method("msee", images, px, energy_weight=0.0, par_iterations=0)
    found["bf16, no energy, no PAR"] = stage.clock(stage.update(*without, "bf16"), 20, 3)
    toco = stage.method("toco", images, px)
    found["toco, bf16"] = stage.clock(stage.update(*toco, "bf16"), 20, 3)
    return found


def step_msee_coco(stage: Stage) -> Found:
    """M-SEE on COCO: 8 images, 80 classes."""
    found, px, images = Found(), stage.size(VOC_PX, 64), stage.size(8, 2)
    for name, options in (("bf16", {}), ("bf16, no energy", {"energy_weight": 0.0})):
        method = stage.method("msee", images, px, 80, **options)
        found[name] = stage.clock(stage.update(*method, "bf16"), 8, 2)
    return found


def step_smoke(stage: Stage) -> Found:
    """The smoke paper's student and a ResNet, 8 images; the ResNet also with channels last."""
    found, images, px = Found(), stage.size(8, 2), stage.size(SMOKE_PX, 64)
    for precision in PRECISIONS:
        for name in ("distill", "classify"):
            update = stage.update(*stage.method(name, images, px, 1), precision)
            found[f"{name}, {precision}"] = stage.clock(update, 10, 3)
    for benchmark in (False, True):
        torch.backends.cudnn.benchmark = benchmark
        method, batch = stage.method("classify", images, px, 1)
        method.to(memory_format=torch.channels_last)
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        name = f"classify, bf16, channels last{', cudnn.benchmark' if benchmark else ''}"
        found[name] = stage.clock(stage.update(method, batch, "bf16"), 10, 3)
    torch.backends.cudnn.benchmark = False
    return found


def profile(stage: Stage) -> Found:
    """The 40 kernels that take most of a VOC step in bf16, how many are launched, and how long the GPU is busy."""
    update = stage.update(*stage.method("msee", stage.size(4, 2), stage.size(VOC_PX, 64)), "bf16")
    update()
    update()
    stage.wait()
    with watch(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if stage.cuda else [])]) as seen:
        update()
        stage.wait()

    def took_ms(row) -> float:  # type: ignore[no-untyped-def]
        return (row.self_device_time_total if stage.cuda else row.self_cpu_time_total) / 1e3

    of_device = [row for row in seen.key_averages() if (row.device_type.name == "CUDA") == stage.cuda]
    rows = sorted(of_device, key=took_ms, reverse=True)
    return {
        "launches": sum(row.count for row in rows),
        "busy_ms": round(sum(map(took_ms, rows)), 2),
        "top": [[row.key[:100], row.count, round(took_ms(row), 3)] for row in rows[:40]],
    }


def graphed(stage: Stage) -> Found:
    """Steps as one CUDA graph compared with the same steps launched kernel by kernel."""
    found = Found()
    for what, name, px, images, classes in (
        ("msee on VOC", "msee", VOC_PX, 4, 20),
        ("msee on COCO", "msee", VOC_PX, 8, 80),
        ("distill", "distill", SMOKE_PX, 8, 1),
        ("classify", "classify", SMOKE_PX, 8, 1),
    ):
        for graph in (False, True):
            method = stage.method(name, stage.size(images, 2), stage.size(px, 64), classes)
            row = stage.clock(stage.update(*method, "bf16", graph=graph), 12, 6)
            found[f"{what}{', graph' if graph else ''}"] = {**row, "images_s": round(images / row["ms"] * 1e3, 1)}
    return found


def compiled(stage: Stage) -> Found:
    """The VOC step with every block of the encoder compiled, in a CUDA graph; seconds until the first step is done."""
    method, batch = stage.method("msee", stage.size(4, 2), stage.size(VOC_PX, 64))
    torch._dynamo.config.recompile_limit = 64  # each block at each scale, with and without a gradient
    for block in method.student.backbone.blocks:  # type: ignore[union-attr]
        block.compile(backend="eager" if stage.smoke else "inductor", dynamic=False)
    update, began = stage.update(method, batch, "bf16", graph=True), time.perf_counter()
    update()
    stage.wait()
    first_s = round(time.perf_counter() - began, 1)
    return {"msee on VOC": {"first_s": first_s, **stage.clock(update, 12, 6)}}


def inference(stage: Stage) -> Found:
    """Maps of the student at four scales, as in `wsss infer`."""
    found, images, px = Found(), stage.size(16, 2), stage.size(SMOKE_PX, 64)
    method, _ = stage.method("distill", 2, px, 1)
    image = torch.rand(images, 3, px, px, device=stage.device)
    cam = CamConfig(kinds=("grad", "class_map", "project"), scales=(0.5, 1.0, 1.5, 2.0))
    for precision in PRECISIONS:

        def run(precision: Precision = precision) -> None:
            with in_precision(precision, stage.device.type):
                cams_of(method, image, cam)

        row = stage.clock(run, 4, 1)
        found[precision] = {**row, "images_s": round(images / row["ms"] * 1e3, 1)}
    return found


def batch_sweep(stage: Stage) -> Found:
    """Images per second and memory by batch size, until memory runs out."""
    found = Found()
    for name, px, classes in (("msee", VOC_PX, 20), ("distill", SMOKE_PX, 1)):
        for images in (2,) if stage.smoke else (2, 4, 8, 16, 32, 64):
            try:
                method = stage.method(name, images, stage.size(px, 64), classes)
                row = stage.clock(stage.update(*method, "bf16"), 6, 2)
            except torch.OutOfMemoryError as error:
                found[f"{name}, {images}"] = {"out of memory": str(error)[:200]}
                break
            found[f"{name}, {images}"] = {**row, "images_s": round(images / row["ms"] * 1e3, 1)}
    return found
