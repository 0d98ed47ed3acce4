"""`wsss bench msee-step`: one M-SEE training step as the papers describe it, compared with the shipped one.

`plain_losses` is the reference: each forward pass that the papers name is one call of the network, maps are made for
all classes, and images, thresholds and crops are processed one after another. It must give the same losses and
gradients as MSEE.losses, at a higher cost.

Shapes: B images, K classes, n local crops, h x w patches, H x W pixels.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from launcher.bench.count import count_step
from launcher.bench.plain_step import plain_losses
from launcher.bench.stage import like_photographs
from wsss.methods.looks import Views
from wsss.methods.msee import MSEE
from wsss.models.toco import build_toco

STEP = 0


def make_method(
    timm_name: str, image_px: int, timm_options: Mapping[str, Any] | None = None, classes: int = 20, **options: Any
) -> MSEE:
    """A randomly initialised method with all losses on, in the published proportions."""
    student = build_toco(classes, timm_name=timm_name, timm_options=timm_options)
    return MSEE(student, crop_px=round(image_px * 96 / 448 / 16) * 16, seg_from=0, **options).train()


def make_views(images: int, image_px: int, classes: int = 20) -> Views:
    """Random images, one to three classes each."""
    random = torch.Generator().manual_seed(0)
    main, view2 = like_photographs(images, image_px, random), like_photographs(images, image_px, random)
    box = torch.tensor([[0, image_px, 0, image_px]]).repeat(images, 1)
    box[1::2, 3] = image_px * 3 // 4
    mirrored = torch.arange(images) % 2 == 1
    local = torch.where(mirrored[:, None, None, None], main.flip(-1), main)
    present = torch.stack([torch.randperm(classes, generator=random)[:3].sort().values for _ in range(images)])
    present[::2, 1:] = -1
    label = torch.zeros(images, classes + 1).scatter_(1, present % (classes + 1), 1.0)[:, :classes]
    return Views(main, view2, local, main, box, mirrored, torch.arange(images), label, present)


def compare(
    *,
    timm_name: str,
    image_px: int,
    images: int,
    repeats: int,
    classes: int = 20,
    energy_scale: float = 0.5,
    energy_grid: float = 1.0,
    timm_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run both steps on the same weights and inputs, check that they agree, and measure them.

    Args:
        energy_scale, energy_grid: of the dense energy, which both steps compute in the same way. With a grid of 0, its
            sum over all pairs of pixels takes half of a small network's step on a CPU and hides the comparison.

    Returns:
        flops_ratio, time_ratio, memory_ratio (shipped over plain), and per step: flops, seconds, peak_bytes.

    Raises:
        RuntimeError: losses or gradients differ.
    """
    options = {"energy_scale": energy_scale, "energy_grid": energy_grid}
    method = make_method(timm_name, image_px, timm_options, classes, **options)
    views = make_views(images, image_px, classes)
    start = {name: value.clone() for name, value in method.state_dict().items()}
    steps: dict[str, Callable[[], dict[str, Tensor]]] = {
        "plain": lambda: plain_losses(method, views),
        "shipped": lambda: method.losses(views, STEP),
    }

    def run(step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        method.load_state_dict(start)  # both steps change the teacher's head
        method.followed = None
        method.zero_grad(set_to_none=True)
        losses = step()
        losses["loss"].backward()
        return losses

    found = {name: measured(lambda step=step: run(step)) for name, step in steps.items()}  # type: ignore[misc]
    results = {name: (run(step), gradients(method)) for name, step in steps.items()}
    check_equal(*results["plain"], *results["shipped"])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):  # in turns, so that other load of the machine affects both
        for name, step in steps.items():
            begin = time.perf_counter()
            run(step)
            seconds[name].append(time.perf_counter() - begin)
    for name, times in seconds.items():
        found[name]["seconds"] = statistics.median(times)
    ratios = {
        f"{ratio}_ratio": found["shipped"][key] / found["plain"][key]
        for ratio, key in (("flops", "flops"), ("time", "seconds"), ("memory", "peak_bytes"))
    }
    about: dict[str, Any] = {"classes": classes, **options}
    about |= {"network": timm_name, "image_px": image_px, "images": images, "threads": torch.get_num_threads()}
    return {**about, **ratios, **found}


def measured(run: Callable[[], Any]) -> dict[str, float]:
    """Counted FLOPs, and the peak of memory above that at the start; one run for each."""
    with FlopCounterMode(display=False) as counter:
        run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    changes = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return {"flops": counter.get_total_flops(), "peak_bytes": peak}


def gradients(method: MSEE) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def check_equal(
    plain: dict[str, Tensor],
    plain_gradients: dict[str, Tensor],
    ours: dict[str, Tensor],
    our_gradients: dict[str, Tensor],
) -> None:
    """Raise RuntimeError if losses differ by more than 1e-4 of their value or gradients by 1e-3 of their length."""
    if plain.keys() - ours.keys() or plain_gradients.keys() != our_gradients.keys():
        raise RuntimeError(f"the two steps give other parts: {sorted(plain)} and {sorted(ours)}")
    for name in sorted(plain, key=lambda name: name == "loss"):  # the parts first, since they say more
        value = plain[name]
        if not torch.allclose(value, ours[name], rtol=1e-4, atol=1e-6):
            raise RuntimeError(f"{name}: plain {value.item()}, shipped {ours[name].item()}")
    for name, gradient in plain_gradients.items():
        distance = (gradient - our_gradients[name]).norm() / gradient.norm().clamp(min=1e-12)
        if distance > 1e-3:
            raise RuntimeError(f"gradient of {name}: differs by {distance:.2e} of its length")


def counted_on_meta(timm_name: str = "vit_base_patch16_224", image_px: int = 448) -> dict[str, Any]:
    """FLOPs per image of the shipped step, forward and backward, counted without computing; no energy term."""
    with torch.device("meta"):
        method = make_method(timm_name, image_px, energy_weight=0.0, group_size=None)
    views = make_views(1, image_px)
    on_meta = replace(views, **{name: getattr(views, name).to("meta") for name in views.__dataclass_fields__})
    counted = count_step(lambda: method.losses(on_meta, STEP)["loss"], set())
    return {"network": timm_name, "image_px": image_px, "flops_per_image": counted.flops}


def as_text(found: dict[str, Any]) -> str:
    """The result of `compare`, with that of `counted_on_meta` under vit_base_448, as lines of text."""
    lines = [
        f"{found['network']}, {found['image_px']} px, {found['images']} images, {found['classes']} classes, "
        f"energy at {found['energy_scale']} on a grid of {found['energy_grid']:g}, "
        f"{found['threads']} threads: all losses and gradients agree",
        f"{'':8s} {'GFLOP':>10s} {'seconds':>9s} {'peak MB':>9s}",
    ]
    for name in ("plain", "shipped"):
        of = found[name]
        lines.append(f"{name:8s} {of['flops'] / 1e9:10.1f} {of['seconds']:9.2f} {of['peak_bytes'] / 1e6:9.0f}")
    ratios = (found["flops_ratio"], found["time_ratio"], found["memory_ratio"])
    lines.append(f"{'ratio':8s} {ratios[0]:10.3f} {ratios[1]:9.3f} {ratios[2]:9.3f}   shipped / plain")
    count = found["vit_base_448"]["flops_per_image"] / 1e9
    return "\n".join([*lines, f"ViT-B/16 at 448 px: {count:.0f} GFLOP per image and step, counted, not run"])
