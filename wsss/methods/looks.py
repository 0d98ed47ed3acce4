"""What a step of ToCo and M-SEE looks at: views of a photograph, and the main view at several scales.

Shapes: B images, K classes, P classes of an image (packed: the channels of `present`, padded with -1), D channels,
h x w patches, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss.maps.cam import maps_of_present
from wsss.models.toco import ToCoNet, Tokens
from wsss.tensors import resize


@dataclass(frozen=True)
class Views:
    """What a step looks at; all images (B, 3, H, W) in [0, 1].

    Attributes:
        main: the view that everything but the contrast of class tokens is made of.
        view2: a second global view of the same photograph.
        local: what local crops are cut from: the pixels of `main` under other colours, perhaps mirrored.
        guide: what the pseudo label's edges follow.
        box: (B, 4) valid rectangle of `main`.
        mirrored: (B) bool, where `local` is mirrored relative to `main`.
        seed: (B) int64, of the draw of local crops.
    """

    main: Tensor
    view2: Tensor
    local: Tensor
    guide: Tensor
    box: Tensor
    mirrored: Tensor
    seed: Tensor


@dataclass(frozen=True)
class Look:
    """One scale of the main view.

    Attributes:
        features: patch tokens (B, D, h, w) that the classifiers read, by classifier: `aux`, and `final` where needed.
        maps: packed raw maps (B, P, h, w) by classifier, of the view and of its mirror image; {} where none are fused.
    """

    features: dict[str, Tensor]
    maps: dict[str, tuple[Tensor, ...]]


def looks_at_scales(
    student: ToCoNet,
    image: Tensor,
    main: Tokens,
    present_BP: Tensor,
    *,
    classifiers: Sequence[str],
    cam_scales: Sequence[float],
    teachers: Sequence[float] = (),
    teacher_grad: bool = False,
) -> dict[float, Look]:
    """The main view at every scale of the fused maps and of the teachers, each in as few passes as it needs.

    Args:
        image: (B, 3, H, W) RGB in [0, 1], the main view.
        main: its tokens at scale 1, which are not computed again.
        classifiers: `aux`, `final` or both: whose maps are needed; () = only the teachers are looked at.
        cam_scales: scales of the maps, each also seen in the mirror.
        teachers: scales whose final tokens are needed.
        teacher_grad: with their graph, in a pass of their own.
    """
    found = {}
    for scale in dict.fromkeys([*(cam_scales if classifiers else ()), *teachers]):
        view = image if scale == 1 else resize(image, [int(scale * side) for side in image.shape[-2:]])
        known = None
        if scale == 1:
            known = {"aux": main.aux_BDhw.detach(), "final": main.patches_BDhw.detach()}
        elif teacher_grad and scale in teachers:
            known = features_of(student, view, ("aux", "final"))
        names = [*classifiers, "final"] if scale in teachers else classifiers
        mirror = bool(classifiers) and scale in cam_scales
        found[scale] = look_at(student, view, known, present_BP, names, mirror)
    return found


@torch.no_grad()
def look_at(
    student: ToCoNet,
    view: Tensor,
    known: dict[str, Tensor] | None,
    present_BP: Tensor,
    names: Sequence[str],
    mirror: bool,
) -> Look:
    """One scale, in one pass of what is not known yet."""
    images = [*([view] if known is None else []), *([view.flip(-1)] if mirror else [])]
    read = features_of(student, torch.cat(images), names) if images else {}
    features = known or {name: of_images[: len(view)] for name, of_images in read.items()}
    maps: dict[str, tuple[Tensor, ...]] = {}
    if mirror:
        heads = {"aux": student.aux_head, "final": student.head}
        for name, of_images in read.items():
            pair = (features[name], of_images[-len(view) :])
            weight_KD = heads[name].weight.flatten(1)
            maps[name] = tuple(maps_of_present(x_BDhw, weight_KD, present_BP) for x_BDhw in pair)
    return Look(features, maps)


def features_of(student: ToCoNet, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """{classifier: patch tokens that it reads}, without the last blocks where only the auxiliary one is wanted."""
    if "final" not in names:
        return {"aux": student.encode_aux(image)}
    tokens = student.encode(image)
    return {"aux": tokens.aux_BDhw, "final": tokens.patches_BDhw}


def channels_of(image_label_BK: Tensor) -> Tensor:
    """Multi-hot labels -> the channels of the classes of each image (B, P), padded with -1; waits for the device."""
    counts_B = (image_label_BK > 0).sum(dim=1)
    width = max(int(counts_B.max()), 1)
    channel_BP = (image_label_BK > 0).int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return channel_BP.where(torch.arange(width, device=counts_B.device) < counts_B[:, None], -1)


def mirrored_box(box_B4: Tensor, width: int) -> Tensor:
    """Boxes (y0, y1, x0, x1) of the mirrored images."""
    y0, y1, x0, x1 = box_B4.unbind(-1)
    return torch.stack([y0, y1, width - x1, width - x0], dim=-1)
