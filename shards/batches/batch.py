"""A batch: the dict into which samples are collated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shards.batches.augment import View

Batch = dict[str, Any]


Transform = Callable[[np.ndarray, np.random.Generator, np.ndarray | None], View]


MaskOf = Callable[[int], np.ndarray]  # sample number -> (H, W) class ids


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors, also those of a nested batch; uint8 images become float RGB in [0, 1] on the device."""
    moved: Batch = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = to_device(value, device)
        else:
            moved[name] = value.to(device, non_blocking=True) if torch.is_tensor(value) else value
    return {**moved, "image": moved["image"].float() / 255}


def collate(samples: list[Batch]) -> Batch:
    """Stack tensors, list the rest, and add `present` (see present_classes)."""
    first = samples[0]
    batch: Batch = {
        name: torch.stack([s[name] for s in samples]) if torch.is_tensor(value) else [s[name] for s in samples]
        for name, value in first.items()
    }
    return {**batch, "present": present_classes(batch["image_label"])}


def present_classes(image_label_BK: torch.Tensor) -> torch.Tensor:
    """(B, P) int64: the channels 0..K-1 of the classes in each image label, ascending, then -1 up to P.

    P is the largest number of classes of an image in the batch, at least 1.
    """
    width = max(1, int(image_label_BK.sum(dim=1).max()))
    present_BP = torch.full((len(image_label_BK), width), -1)
    image_N, channel_N = image_label_BK.nonzero(as_tuple=True)
    place_BK = image_label_BK.long().cumsum(dim=1) - 1
    present_BP[image_N, place_BK[image_N, channel_N]] = channel_N
    return present_BP
