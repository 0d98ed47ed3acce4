"""M-SEE's step written plainly, one image and one term after another, as a reference for the shipped step."""

import torch
from torch import Tensor

from wsss.losses.contrast import (
    class_token_contrast,
    crop_flags,
    draw_crops,
    pair_mask,
    patch_token_contrast,
    take_crops,
)
from wsss.losses.energy import dense_energy
from wsss.losses.labels import balanced_segmentation_loss, classification_loss
from wsss.losses.regions import (
    feature_distance,
    fires,
    region_loss,
    reliable_regions,
    scale_cams,
    segmented_class,
    thresholds,
)
from wsss.maps.boxes import valid_tokens
from wsss.maps.fusion import fuse_cams
from wsss.maps.pseudo_label import certainty, refined_label, seed_label
from wsss.methods.looks import Views
from wsss.methods.msee import MSEE
from wsss.methods.toco import PUBLISHED_ENERGY
from wsss.models.heads import move_towards
from wsss.tensors import IGNORE_INDEX, resize


def plain_losses(method: MSEE, views: Views) -> dict[str, Tensor]:
    """The losses of one step with all terms; teachers without gradient. Arguments as in MSEE.losses."""
    student, image_label_BK = method.student, views.image_label_BK
    size, num_classes = image_label_BK.shape
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
        label_BHW = torch.cat([plain_label(method, views, cams["final"], i) for i in range(size)])
    assert out.seg_logits_BChw is not None
    losses["seg_loss"] = balanced_segmentation_loss(out.seg_logits_BChw, label_BHW, method.group_size)
    if method.schedule.terms["energy"].weight:
        energy = dense_energy(
            views.guide, out.seg_logits_BChw, label_BHW, views.box, scale=method.energy_scale, grid=method.energy_grid
        )
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
    weighed = [term.weight * losses[f"{name}_loss"] for name, term in method.schedule.terms.items() if term.weight]
    return {"loss": torch.stack(weighed).sum(), **losses}


def resized(image: Tensor, scale: float) -> Tensor:
    return resize(image, [int(scale * side) for side in image.shape[-2:]])


def plain_label(method: MSEE, views: Views, cam_BKHW: Tensor, i: int) -> Tensor:
    """(1, H, W) pseudo label of one image, one threshold after another."""
    present = torch.nonzero(views.image_label_BK[i]).flatten()[None]
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
