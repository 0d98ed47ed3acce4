"""`wsss bench msee-step`: one M-SEE training step as the papers describe it, against the one that ships.

`plain_losses` is the executable specification: each forward pass that the papers name is one call of the network, maps
are of all classes, and images, thresholds and crops are taken one after the other. It must give the same losses and
gradients as MSEE.losses, and costs more.

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

from wsss.contrast import class_token_contrast, crop_flags, draw_crops, pair_mask, patch_token_contrast, take_crops
from wsss.energy import dense_energy
from wsss.fusion import fuse_cams
from wsss.methods.base import balanced_segmentation_loss, classification_loss
from wsss.methods.looks import Views
from wsss.methods.msee import MSEE
from wsss.methods.toco import PUBLISHED_ENERGY
from wsss.metrics import IGNORE_INDEX
from wsss.models.heads import move_towards
from wsss.models.toco import build_toco
from wsss.pseudo_label import certainty, refined_label, seed_label, valid_tokens
from wsss.regions import feature_distance, fires, region_loss, reliable_regions, scale_cams, segmented_class, thresholds
from wsss.resize import resize

NUM_CLASSES = 20
STEP = 0


def plain_losses(method: MSEE, views: Views, image_label_BK: Tensor) -> dict[str, Tensor]:
    """The losses of one step with all of its terms, teachers without gradient. Arguments as in MSEE.losses."""
    student, size, num_classes = method.student, len(views.main), image_label_BK.shape[1]
    everything_BK = torch.arange(num_classes).expand(size, -1)
    every_label_B1K = image_label_BK[:, :, None, None]

    # maps of both classifiers at every scale, of the view and of its mirror image
    with torch.no_grad():
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {"aux": [], "final": []}
        for scale in method.cam_scales:
            view = resized(views.main, scale)
            out, mirrored = student(view), student(view.flip(-1))
            seen["aux"].append((out.maps["aux_map"], mirrored.maps["aux_map"]))
            seen["final"].append((out.class_map_BKhw, mirrored.class_map_BKhw))
        cams = {name: fuse_cams(maps, views.main.shape[-2:]) * every_label_B1K for name, maps in seen.items()}

    # the training pass
    out = student(views.main)
    losses = {"cls_loss": classification_loss(out.cls_logits_BK, image_label_BK)}
    losses["cls_aux_loss"] = classification_loss(out.further_logits[0], image_label_BK)

    # contrast of patch tokens
    grid = out.patches_BDhw.shape[-2:]
    label_Bhw = seed_label(
        resize(cams["aux"], grid), everything_BK, bg_threshold=method.bg_threshold, fg_threshold=method.fg_threshold
    )
    valid_Bhw = valid_tokens(views.box, grid, student.stride)
    pairs = pair_mask(label_Bhw.masked_fill(~valid_Bhw, IGNORE_INDEX))
    losses["ptc_loss"] = patch_token_contrast(out.patches_BDhw, pairs, group_size=method.group_size)

    # contrast of class tokens
    rated_BHW = certainty(cams["aux"], bg_threshold=method.bg_threshold, fg_threshold=method.fg_threshold)
    rated_BHW = torch.where(views.mirrored[:, None, None], rated_BHW.flip(-1), rated_BHW)
    corners = draw_crops(rated_BHW, views.seed, crop_size=method.crop_px, crop_num=method.crop_num)
    flags_Bn = crop_flags(rated_BHW, corners, crop_size=method.crop_px)
    crops = take_crops(views.local, corners, method.crop_px)
    move_towards(method.project_teacher, method.project, method.momentum)
    with torch.no_grad():
        teacher = [method.project_teacher(student.encode(view).cls_BD) for view in (views.main, views.view2)]
    parts = [student.encode(view).cls_BD for view in (views.main, views.view2)]
    parts += [student.encode(crops[:, number]).cls_BD for number in range(method.crop_num)]
    projected = [method.project(cls_BD) for cls_BD in parts]
    losses["ctc_loss"] = class_token_contrast(
        torch.stack(projected, dim=1),
        torch.stack(teacher, dim=1),
        torch.cat([torch.ones(size, 2), flags_Bn], dim=1),
        temperature=method.temperature,
    )

    # segmentation
    with torch.no_grad():
        label_BHW = torch.cat([plain_label(method, views, cams["final"], image_label_BK, i) for i in range(size)])
    assert out.seg_logits_BChw is not None
    losses["seg_loss"] = balanced_segmentation_loss(out.seg_logits_BChw, label_BHW, method.group_size)
    if method.weights["energy"]:
        energy = dense_energy(views.guide, out.seg_logits_BChw, label_BHW, views.box, scale=method.energy_scale)
        losses["energy_loss"] = PUBLISHED_ENERGY * method.energy_gain * energy

    # M-SEE
    with torch.no_grad():
        teachers = [student(resized(views.main, scale)).patches_BDhw for scale in method.scales]
        present_BK = torch.where(image_label_BK > 0, everything_BK, -1)
        weight_BKD = student.head.weight.flatten(1) * image_label_BK[:, :, None]
        segmented_Bhw = segmented_class(out.seg_logits_BChw, present_BK, valid_Bhw)
        fired = []
        for patches_BDhw in teachers:
            cam_BKhw = scale_cams(patches_BDhw, weight_BKD, grid)
            fired.append(fires(cam_BKhw, thresholds(cam_BKhw, segmented_Bhw, present_BK, classes=method.classes)))
        regions = reliable_regions(fired, valid_Bhw)
    losses["msee_loss"] = torch.stack(
        [
            region_loss(
                feature_distance(out.patches_BDhw, patches_BDhw, form=method.distance, beta=method.beta),
                region_Bhw,
                group_size=method.group_size,
            )
            for patches_BDhw, region_Bhw in zip(teachers, regions, strict=True)
        ]
    ).sum()
    total = losses["cls_loss"] + losses["cls_aux_loss"]
    for name, weight in method.weights.items():
        total = total + weight * losses[f"{name}_loss"] if weight else total
    return {"loss": total, **losses}


def resized(image: Tensor, scale: float) -> Tensor:
    return resize(image, [int(scale * side) for side in image.shape[-2:]])


def plain_label(method: MSEE, views: Views, cam_BKHW: Tensor, image_label_BK: Tensor, i: int) -> Tensor:
    """(1, H, W) pseudo label of one image, its thresholds one after the other."""
    present = torch.nonzero(image_label_BK[i]).flatten()[None]
    one = slice(i, i + 1)
    high, low = (
        refined_label(
            views.guide[one],
            cam_BKHW[one, present[0]],
            present,
            views.box[one],
            bg_threshold=threshold,
            fg_threshold=threshold,
            num_iter=method.par_iterations,
            dilations=method.par_dilations,
        )
        for threshold in (method.fg_threshold, method.bg_threshold)
    )
    uncertain = torch.where(low == 0, 0, IGNORE_INDEX)
    return torch.where(high == IGNORE_INDEX, IGNORE_INDEX, torch.where(high > 0, high, uncertain))


def make_method(timm_name: str, image_px: int, timm_options: Mapping[str, Any] | None = None, **options: Any) -> MSEE:
    """A randomly initialised method with all losses on, in the published proportions."""
    student = build_toco(NUM_CLASSES, timm_name=timm_name, timm_options=timm_options)
    return MSEE(student, crop_px=round(image_px * 96 / 448 / 16) * 16, seg_from=0, **options).train()


def make_views(images: int, image_px: int, seed: int = 0) -> tuple[Views, Tensor, Tensor]:
    """Random smooth images, one to three classes each: views, multi-hot labels, present channels."""
    random = torch.Generator().manual_seed(seed)

    def picture() -> Tensor:
        return resize(torch.rand(images, 3, image_px // 16, image_px // 16, generator=random), (image_px, image_px))

    main, view2 = picture(), picture()
    box = torch.tensor([[0, image_px, 0, image_px]]).repeat(images, 1)
    box[1::2, 3] = image_px * 3 // 4
    mirrored = torch.arange(images) % 2 == 1
    local = torch.where(mirrored[:, None, None, None], main.flip(-1), main)
    present = torch.stack([torch.randperm(NUM_CLASSES, generator=random)[:3].sort().values for _ in range(images)])
    present[::2, 1:] = -1
    label = torch.zeros(images, NUM_CLASSES + 1).scatter_(1, present % (NUM_CLASSES + 1), 1.0)[:, :NUM_CLASSES]
    return Views(main, view2, local, main, box, mirrored, torch.arange(images)), label, present


def compare(
    *,
    timm_name: str,
    image_px: int,
    images: int,
    repeats: int,
    energy_scale: float = 0.25,
    timm_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run both steps on the same weights and inputs, check that they agree, and measure them.

    Args:
        energy_scale: of the dense energy, which both steps compute alike. At the published 0.5 of 448 px its sum over
            all pairs of pixels takes half of a small network's step on a CPU, and hides what is compared.

    Returns:
        flops_ratio, time_ratio, memory_ratio (shipped over plain), and per step: flops, seconds, peak_bytes.

    Raises:
        RuntimeError: losses or gradients that differ.
    """
    method = make_method(timm_name, image_px, timm_options, energy_scale=energy_scale)
    views, label, present = make_views(images, image_px)
    start = {name: value.clone() for name, value in method.state_dict().items()}
    steps: dict[str, Callable[[], dict[str, Tensor]]] = {
        "plain": lambda: plain_losses(method, views, label),
        "shipped": lambda: method.losses(views, label, present, STEP),
    }

    def run(step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        method.load_state_dict(start)  # both move the teacher's head
        method.followed = None
        method.zero_grad(set_to_none=True)
        losses = step()
        losses["loss"].backward()
        return losses

    found = {name: measured(lambda step=step: run(step)) for name, step in steps.items()}  # type: ignore[misc]
    results = {name: (run(step), gradients(method)) for name, step in steps.items()}
    check_equal(*results["plain"], *results["shipped"])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):  # one after the other, so that whatever else the machine does meets both
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
    about: dict[str, Any] = {"energy_scale": energy_scale}
    about |= {"network": timm_name, "image_px": image_px, "images": images, "threads": torch.get_num_threads()}
    return {**about, **ratios, **found}


def measured(run: Callable[[], Any]) -> dict[str, float]:
    """Counted FLOPs and the peak of memory above the start, of one run each."""
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
    """Raise RuntimeError where losses differ by more than 1e-4 of themselves or gradients by 1e-3 of their length."""
    if plain.keys() - ours.keys() or plain_gradients.keys() != our_gradients.keys():
        raise RuntimeError(f"the two steps give other parts: {sorted(plain)} and {sorted(ours)}")
    for name in sorted(plain, key=lambda name: name == "loss"):  # the parts first: they say more
        value = plain[name]
        if not torch.allclose(value, ours[name], rtol=1e-4, atol=1e-6):
            raise RuntimeError(f"{name}: plain {value.item()}, shipped {ours[name].item()}")
    for name, gradient in plain_gradients.items():
        distance = (gradient - our_gradients[name]).norm() / gradient.norm().clamp(min=1e-12)
        if distance > 1e-3:
            raise RuntimeError(f"gradient of {name}: differs by {distance:.2e} of its length")


def counted_on_meta(timm_name: str = "vit_base_patch16_224", image_px: int = 448) -> dict[str, float]:
    """FLOPs per image of the shipped step, forward and backward, counted without computing; no energy term."""
    with torch.device("meta"):
        method = make_method(timm_name, image_px, energy_weight=0.0, group_size=None)
    views, label, present = make_views(1, image_px)
    on_meta = replace(views, **{name: getattr(views, name).to("meta") for name in views.__dataclass_fields__})
    with FlopCounterMode(display=False) as counter:
        method.losses(on_meta, label.to("meta"), present.to("meta"), STEP)["loss"].backward()
    return {"network": timm_name, "image_px": image_px, "flops_per_image": counter.get_total_flops()}


def as_text(found: dict[str, Any]) -> str:
    """What `compare` found, and the count of `counted_on_meta` under vit_base_448, as lines."""
    lines = [
        f"{found['network']}, {found['image_px']} px, {found['images']} images, energy at {found['energy_scale']}, "
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
