"""The inputs of a step of ToCo and M-SEE: views of an image, and the main view at several scales.

`Views` are the images of a step, a `Look` is what the network gives for the main view at one scale, and `Seen` is
everything that the losses read. An example with one image of 2 x 2 patches that shows class 1 of K = 3 (present =
[[1]]), and a single scale:

    raw map    of the mirror image    fused: ReLU of the larger,    certainty, thresholds    seed label
                                      the mirror turned round       0.25 and 0.7
     2  -1           0   4                  4  0  ->  1    0                2  0                2    0
     2  -3           1  -2                  2  1      0.5  0.25             1  0                255  0

    looks[1.0].maps["aux"] = (raw map, of the mirror image), each (1, 1, 2, 2)
    cams["aux"]            = the fused map, resized to the pixels of the view

Shapes: B images, K classes, P classes of an image (packed: the channels of `present`, padded with -1), D channels,
h x w patches, H x W pixels.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from wsss.losses.regions import scale_cams
from wsss.maps.boxes import valid_tokens, whole_box
from wsss.maps.cam import maps_of_present, packed_rows
from wsss.maps.fusion import fuse_cams
from wsss.maps.scales import scale_image
from wsss.methods.base import Batch
from wsss.models.toco import ToCoNet, Tokens
from wsss.photometric import photometric

Reads = Literal["aux_cam", "label", "segmentation", "view2"]
"""What a loss may read beyond the main view's tokens: the fused cam of the auxiliary classifier, the pseudo label, the
decoder's logits, the second view's tokens."""


@dataclass(frozen=True)
class Views:
    """What a step looks at; all images (B, 3, H, W) in [0, 1].

    Attributes:
        main: the view that is used for everything except the contrast of class tokens.
        view2: a second global view of the same photograph.
        local: the image from which local crops are cut: `main` with other colours, sometimes mirrored.
        guide: the image whose edges the pseudo label follows.
        box: (B, 4) valid rectangle of `main`.
        mirrored: (B) bool, where `local` is mirrored relative to `main`.
        seed: (B) int64, for drawing the local crops.
        image_label_BK: multi-hot.
        present_BP: the same as channels, padded with -1.
    """

    main: Tensor
    view2: Tensor
    local: Tensor
    guide: Tensor
    box: Tensor
    mirrored: Tensor
    seed: Tensor
    image_label_BK: Tensor
    present_BP: Tensor


@dataclass(frozen=True)
class Look:
    """One scale of the main view.

    Attributes:
        features: the patch tokens (B, D, h, w) that each classifier reads: `aux`, and `final` if needed.
        maps: packed raw maps (B, P, h, w) by classifier, of the view and of its mirror image; {} if this scale is not
            fused.
    """

    features: dict[str, Tensor]
    maps: dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Seen:
    """Results of the forward passes of one step, for the losses and for pictures.

    Attributes:
        views: of the photographs, with their labels.
        step: of training, 0-based.
        main, view2: tokens of the global views, with their graph; `view2` is None if no loss reads it.
        valid_Bhw: which tokens of the main view lie in its box.
        looks: by scale.
        rows: see rows_of_present.
        cams: fused CAMs (B, P, H, W) in [0, 1] by classifier, those that the step needs.
        seg_logits_BChw: of the decoder, with their graph; None where no loss reads them.
        cls_logits_BK, aux_logits_BK: of the final and of the auxiliary classifier, with their graph.
        label_BHW: pseudo label; None where no loss reads it.
        watched: detached scalars that losses add for logging.
    """

    views: Views
    step: int
    main: Tokens
    view2: Tokens | None
    valid_Bhw: Tensor
    looks: dict[float, Look]
    rows: dict[str, Tensor]
    cams: dict[str, Tensor]
    seg_logits_BChw: Tensor | None
    cls_logits_BK: Tensor
    aux_logits_BK: Tensor
    label_BHW: Tensor | None = None
    watched: dict[str, Tensor] = field(default_factory=dict)


def make_views(batch: Batch, *, toco_compat: bool = False) -> Views:
    """The loader's views, already cropped and flipped, with the colour changes that it drew (see photometric)."""
    image, view2 = batch["image"], batch["view2"].to(batch["image"].dtype) / 255
    sources, colours = torch.stack([image, view2, image], dim=1), batch["photometric"]
    main, view2, local = photometric(sources.flatten(0, 1), colours.flatten(0, 1)).unflatten(0, (-1, 3)).unbind(1)
    box = batch["box"]
    if toco_compat:  # the box as it was before the main view's own flip
        box = torch.where(batch["main_flip"][:, None], mirrored_box(box, image.shape[-1]), box)
    mirrored, labels = colours[:, 2, -1] > 0, (batch["image_label"], batch["present"])
    return Views(main, view2, local, main, box, mirrored, batch["seed"], *labels)


def make_plain_views(batch: Batch) -> Views:
    """The unchanged images in place of all views."""
    image = batch["image"]
    seed_B = torch.zeros(len(image), dtype=torch.int64, device=image.device)
    labels = batch["image_label"], batch["present"]
    return Views(image, image, image, image, whole_box(image), seed_B > 0, seed_B, *labels)


def see(
    student: ToCoNet,
    views: Views,
    step: int,
    *,
    reads: Collection[Reads],
    label_from: str,
    cam_scales: Sequence[float],
    teachers: Sequence[float],
    teacher_grad: bool,
) -> Seen:
    """Run all forward passes of the global views: with gradients at scale 1, without at other scales and for mirror
    images.

    Args:
        reads: what the losses of this step read.
        label_from: the classifier whose fused CAM the pseudo label will be made from: `aux` or `final`.
        cam_scales, teachers, teacher_grad: see look_at_scales.
    """
    size, both = len(views.main), "view2" in reads
    fused = {"aux": "aux_cam" in reads}
    fused[label_from] = "label" in reads or fused.get(label_from, False)
    classifiers = [name for name, is_read in fused.items() if is_read]
    tokens = student.encode(torch.cat([views.main, views.view2]) if both else views.main)
    main = tokens[:size]
    rows = rows_of_present(student, views.present_BP)
    looks = look_at_scales(
        student,
        views,
        main,
        rows,
        classifiers=classifiers,
        cam_scales=cam_scales,
        teachers=teachers,
        teacher_grad=teacher_grad,
    )
    extent = views.main.shape[-2:]
    cams = {name: fuse_cams([looks[scale].maps[name] for scale in cam_scales], extent) for name in classifiers}
    seg_logits_BChw = student.decoder(main.patches_BDhw) if "segmentation" in reads else None
    scores = student.classify(main.patches_BDhw, main.aux_BDhw)
    view2 = tokens[size:] if both else None
    valid_Bhw = valid_tokens(views.box, main.grid, student.stride)
    return Seen(views, step, main, view2, valid_Bhw, looks, rows, cams, seg_logits_BChw, *scores)


def draw_scales(seen: Seen) -> dict[str, Tensor]:
    """Draw the strongest class at every scale whose final tokens were seen: {name: (B, h, w) in [0, 1]}."""
    return {
        f"cam at scale {scale:g}": scale_cams(look.features["final"], seen.rows["final"], seen.main.grid).amax(dim=1)
        for scale, look in sorted(seen.looks.items())
        if "final" in look.features
    }


@torch.no_grad()
def rows_of_present(student: ToCoNet, present_BP: Tensor) -> dict[str, Tensor]:
    """{classifier: its weight rows for the classes that each image shows, (B, P, D)}."""
    heads = {"aux": student.aux_head, "final": student.head}
    return {name: packed_rows(head.weight.flatten(1), present_BP) for name, head in heads.items()}


def look_at_scales(
    student: ToCoNet,
    views: Views,
    main: Tokens,
    rows: Mapping[str, Tensor],
    *,
    classifiers: Sequence[str],
    cam_scales: Sequence[float],
    teachers: Sequence[float],
    teacher_grad: bool,
) -> dict[float, Look]:
    """Run the main view at every scale of the fused maps and of the teachers, in as few passes as possible.

    Args:
        main: tokens of the main view at scale 1, which are not computed again.
        rows: see rows_of_present.
        classifiers: those whose maps are needed, `aux`, `final` or both; () = only the teachers' scales are run.
        cam_scales: scales of the maps, each also seen in the mirror.
        teachers: scales whose final tokens are needed.
        teacher_grad: with their graph, in a pass of their own.
    """
    found, fused = {}, {name: rows[name] for name in classifiers}
    for scale in dict.fromkeys([*(cam_scales if classifiers else ()), *teachers]):
        view = scale_image(views.main, scale, student.stride, "pad")
        known = None
        if scale == 1:
            known = {"aux": main.aux_BDhw.detach(), "final": main.patches_BDhw.detach()}
        elif teacher_grad and scale in teachers:
            known = features_of(student, view, ("aux", "final"))
        names = [*classifiers, "final"] if scale in teachers else classifiers
        mirror = bool(classifiers) and scale in cam_scales
        found[scale] = look_at(student, view, known, fused, names, mirror)
    return found


@torch.no_grad()
def look_at(
    student: ToCoNet,
    view: Tensor,
    known: dict[str, Tensor] | None,
    rows: Mapping[str, Tensor],
    names: Sequence[str],
    mirror: bool,
) -> Look:
    """Run one scale, in one pass for what is not computed yet; maps are computed with `rows`."""
    images = [*([view] if known is None else []), *([view.flip(-1)] if mirror else [])]
    read = features_of(student, torch.cat(images), names) if images else {}
    features = known or {name: of_images[: len(view)] for name, of_images in read.items()}
    maps: dict[str, tuple[Tensor, ...]] = {}
    if mirror:
        for name, weight_BPD in rows.items():
            pair = (features[name], read[name][-len(view) :])
            maps[name] = tuple(maps_of_present(x_BDhw, weight_BPD) for x_BDhw in pair)
    return Look(features, maps)


def features_of(student: ToCoNet, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """{classifier: patch tokens that it reads}, without the last blocks where only the auxiliary one is wanted."""
    if "final" not in names:
        return {"aux": student.encode_aux(image)}
    tokens = student.encode(image)
    return {"aux": tokens.aux_BDhw, "final": tokens.patches_BDhw}


def mirrored_box(box_B4: Tensor, width: int) -> Tensor:
    """Boxes (y0, y1, x0, x1) of the mirrored images."""
    y0, y1, x0, x1 = box_B4.unbind(-1)
    return torch.stack([y0, y1, width - x1, width - x0], dim=-1)
