"""Proposals of SAM, SAM 2 or SAM 3 through transformers; for segment-anything see proposals.py.

Shapes: M proposals, H x W pixels of the image, P points, S side of the network's square input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import nms  # type: ignore[import-untyped]

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD
from wsss.models.pretrained import WEIGHTS, check_files, import_transformers, load_folder
from wsss.refine.proposals import ProposalOptions, check_image, drop_small_regions

KINDS = {  # the networks of transformers by the model_type of a folder; the published SAM 2 and 3 are those of videos
    "sam": "SamModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_video": "Sam3TrackerModel",
}
WHAT, EXAMPLE = "a SAM, SAM 2 or SAM 3", "facebook/sam-vit-huge or facebook/sam2.1-hiera-large"
HALF = (0.5, 0.5, 0.5)  # mean and deviation of SAM 3's input
OVERLAP = 512 / 1500  # of neighbouring crops, as a part of the shorter side
CROP_NMS = 0.7  # segment_anything's own between crops
EDGE_PX = 20.0  # a mask this near to its crop's edge was cut off by it


@dataclass(frozen=True)
class Prompted:
    """A network that takes points, in eval mode.

    Attributes:
        keeps_aspect: the longer side becomes S and the rest is padded, as for SAM; else the image is squashed to S x S.
        norm: mean and deviation of its input.
    """

    model: Any
    keeps_aspect: bool
    norm: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def side(self) -> int:
        """S."""
        size = self.model.config.prompt_encoder_config.image_size
        return int(size if isinstance(size, int) else size[0])


def check_prompted(folder: str | Path) -> None:
    """Raise ValueError unless the folder has the files of such a network."""
    check_files(folder, WEIGHTS, WHAT, EXAMPLE)


def load_prompted(folder: str | Path, device: str | torch.device = "cpu") -> Prompted:
    """SAM, SAM 2 or SAM 3 from a folder in Hugging Face format.

    Raises:
        MissingPackage: transformers is not installed.
        ValueError: a file is missing or unreadable, or of another network.
    """
    import_transformers()
    check_prompted(folder)
    model = load_folder(folder, KINDS, WHAT).to(device)
    name = type(model).__name__
    norm = (HALF, HALF) if name == "Sam3TrackerModel" else (IMAGENET_MEAN, IMAGENET_STD)
    return Prompted(model, keeps_aspect=name == "SamModel", norm=norm)


@torch.no_grad()
def prompted_proposals(sam: Prompted, image_HW3: np.ndarray, options: ProposalOptions) -> np.ndarray:
    """Proposals as from `sam_proposals`, (M, H, W) bool; with the same weights of SAM, the masks are the same.

    It does not use the mask-generation pipeline of transformers. That scales the points of SAM 2 and SAM 3 as if the
    image kept its aspect ratio, so that they miss the lower part of a wide image, and it removes duplicates only once,
    over all crops.

    Raises:
        ValueError: no (H, W, 3) uint8 image.

    Source: Kirillov et al. 2023, section 5.1.
    """
    check_image(image_HW3)
    height, width = image_HW3.shape[:2]
    masks, boxes, sizes = [], [], []
    for layer, (left, top, right, bottom) in crops(height, width, options.crop_layers):
        side = options.points_per_side // options.crop_points_downscale**layer
        masks_MHW, ious_M = masks_of_points(sam, image_HW3[top:bottom, left:right], side, options)
        offset = torch.tensor([left, top, left, top], device=masks_MHW.device)
        boxes_M4 = boxes_of(masks_MHW) + offset
        inside = ~cut_off(boxes_M4, (left, top, right, bottom), height, width)
        masks_MHW, boxes_M4, ious_M = masks_MHW[inside], boxes_M4[inside], ious_M[inside]
        kept = nms(boxes_M4.float(), ious_M.float(), options.box_nms)
        masks.append(F.pad(masks_MHW[kept], (left, width - right, top, height - bottom)).cpu())
        boxes.append(boxes_M4[kept].cpu())
        sizes.append(torch.full((len(kept),), float((right - left) * (bottom - top))))
    kept = nms(torch.cat(boxes).float(), 1 / torch.cat(sizes), CROP_NMS) if len(masks) > 1 else slice(None)
    found = torch.cat(masks)[kept].numpy()
    kept_masks = [drop_small_regions(mask_HW, options.min_area_px) for mask_HW in found]
    return np.stack(kept_masks) if kept_masks else np.zeros((0, height, width), dtype=bool)


def masks_of_points(
    sam: Prompted, crop_HW3: np.ndarray, points_per_side: int, options: ProposalOptions
) -> tuple[Tensor, Tensor]:
    """Three masks per point of a grid, of which those are kept that the network rates well and that a shifted threshold
    hardly changes.

    Args:
        points_per_side: of this crop's grid.

    Returns:
        (M, H, W) bool at the size of the crop, and the IoU (M,) that the network predicts for each.
    """
    device, size = sam.model.device, crop_HW3.shape[:2]
    image_13SS, (height, width) = prepare(sam, crop_HW3)
    embeddings = sam.model.get_image_embeddings(image_13SS.to(device))
    centres = (torch.arange(points_per_side) + 0.5) / points_per_side
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).reshape(-1, 2)
    masks, ious = [], []
    for points_P2 in (grid * torch.tensor([width, height])).split(options.points_per_batch):
        out = sam.model(
            image_embeddings=embeddings,
            input_points=points_P2.to(device)[None, :, None],
            input_labels=torch.ones(1, len(points_P2), 1, dtype=torch.int64, device=device),
            multimask_output=True,
        )
        ious_M = out.iou_scores[0].flatten(0, 1)
        logits_MHW = at_crop_size(sam, out.pred_masks[0], (height, width), size).flatten(0, 1)
        good = ious_M > options.pred_iou if options.pred_iou > 0 else torch.ones_like(ious_M, dtype=torch.bool)
        if options.stability > 0:
            stability_M = (logits_MHW > 1).sum((1, 2)) / (logits_MHW > -1).sum((1, 2))
            good &= stability_M >= options.stability  # 0 / 0 is not
        masks.append(logits_MHW[good] > 0)
        ious.append(ious_M[good])
    return torch.cat(masks), torch.cat(ious)


def prepare(sam: Prompted, crop_HW3: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """A crop as input of the network, (1, 3, S, S), and its height and width without the padding."""
    height, width = sam.side, sam.side
    if sam.keeps_aspect:
        scale = sam.side / max(crop_HW3.shape[:2])
        height, width = (max(int(side * scale + 0.5), 1) for side in crop_HW3.shape[:2])
    resized = Image.fromarray(crop_HW3).resize((width, height), Image.Resampling.BILINEAR)
    image_13HW = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in sam.norm)
    return F.pad((image_13HW - mean) / std, (0, sam.side - width, 0, sam.side - height)), (height, width)


def at_crop_size(sam: Prompted, logits_P3hw: Tensor, inside: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits of the network's grid at the size of the crop, the padding cut off."""
    if sam.keeps_aspect:
        square = (sam.side, sam.side)
        logits_P3hw = F.interpolate(logits_P3hw, square, mode="bilinear", align_corners=False)
        logits_P3hw = logits_P3hw[..., : inside[0], : inside[1]]
    return F.interpolate(logits_P3hw, size, mode="bilinear", align_corners=False)


def crops(height: int, width: int, layers: int) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """(layer, (left, top, right, bottom)) of the whole image and of the 4^i overlapping crops of each further layer i;
    those without a pixel are left out."""
    yield 0, (0, 0, width, height)
    for layer in range(1, layers + 1):
        number = 2**layer
        overlap = int(OVERLAP * min(height, width) * (2 / number))
        high, wide = (ceil((overlap * (number - 1) + side) / number) for side in (height, width))
        for column, row in product(range(number), repeat=2):
            left, top = column * (wide - overlap), row * (high - overlap)
            right, bottom = min(left + wide, width), min(top + high, height)
            if left < right and top < bottom:
                yield layer, (left, top, right, bottom)


def boxes_of(masks_MHW: Tensor) -> Tensor:
    """(M, 4) left, top, right, bottom of the first and last pixels of each mask; zeros for an empty one."""
    ends = []
    for line_MN in (masks_MHW.any(1).int(), masks_MHW.any(2).int()):
        ends.append((line_MN.argmax(1), line_MN.shape[1] - 1 - line_MN.flip(1).argmax(1)))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1) * masks_MHW.any(2).any(1)[:, None]


def cut_off(boxes_M4: Tensor, crop: tuple[int, int, int, int], height: int, width: int) -> Tensor:
    """(M,) whether a side of a box is at an edge of its crop that is not an edge of the image."""
    at_crop, at_image = (
        (boxes_M4 - torch.tensor(edges, device=boxes_M4.device)).abs() <= EDGE_PX
        for edges in (crop, (0, 0, width, height))
    )
    return (at_crop & ~at_image).any(1)
