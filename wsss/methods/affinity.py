"""AffinityNet: learns from confident seeds which neighbouring positions belong to the same class."""

import copy
from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wsss.losses.affinity import affinity_loss, count_pairs
from wsss.maps.affinity import pair_affinity
from wsss.maps.pseudo_label import labels_on_grid
from wsss.methods.base import Batch, Method
from wsss.models.affinity_net import AffinityNet


class Affinity(Method):
    """L = bg / 4 + fg / 4 + neg / 2 over the pairs of positions within a radius; see affinity.affinity_loss.

    batch["mask"] holds the seeds: a class where its CAM is confident, 0 (background) where all CAMs are confidently
    low, and 255 (ignored) in between. These are refined masks made with refine.bg_threshold. Each cell of the grid
    takes the label of its middle pixel.

    Args:
        radius: pairs closer than this many cells, >= 2.

    Raises:
        ValueError: the radius is below 2, or the model is no affinity_net.

    Source: Ahn & Kwak 2018; smoke paper, section 3.3 (D-31).
    """

    supervision: ClassVar[Literal["label", "mask", "mixed"]] = "mask"
    gives_maps: ClassVar[bool] = False
    student: AffinityNet  # type: ignore[assignment]  # an AffinityNet classifies nothing, so it is no Network

    def __init__(self, student: AffinityNet, *, radius: int = 5) -> None:
        super().__init__()
        if radius < 2:
            raise ValueError(
                f"method.radius is {radius}; wanted 2 or more, since a smaller radius has no pairs of positions"
            )
        if not isinstance(student, AffinityNet):
            raise ValueError(f"model: method affinity trains an affinity_net, not a {type(student).__name__}")
        self.student = student
        self.radius = radius
        self.weightless = (copy.deepcopy(student).to("meta"),)  # in a tuple, so that it is no part of the method
        self.grids: dict[tuple[int, int], tuple[int, int]] = {}

    def check_size(self, side: int) -> None:
        height, width = self.grid_of((side, side))
        largest = min(height, (width + 1) // 2)
        if self.radius > largest:
            fits = f"the largest radius is {largest}; take that" if largest >= 2 else "no radius fits; take"
            raise ValueError(
                f"method.radius is {self.radius}; on the {height} x {width} cells of images of {side} px {fits}"
                f"{' or' if largest >= 2 else ''} a larger data.image_size"
            )

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        features_BDhw = self.student(batch["image"])
        label_Bhw = labels_on_grid(batch["mask"], features_BDhw.shape[-2:])
        totals, shares = batch.get("totals"), batch.get("shares", 1)
        affinity_BOP = pair_affinity(features_BDhw, self.radius)
        return affinity_loss(affinity_BOP, label_Bhw, self.radius, totals=totals, shares=shares)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        mask_BHW = batch["mask"]
        return count_pairs(labels_on_grid(mask_BHW, self.grid_of(tuple(mask_BHW.shape[-2:]))), self.radius)

    @torch.no_grad()
    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the features for images of this size; computed on a copy of the network that has no weights."""
        if size not in self.grids:
            (weightless,) = self.weightless
            features_BDhw = weightless(torch.empty(1, 3, *size, device="meta"))
            self.grids[size] = (features_BDhw.shape[-2], features_BDhw.shape[-1])
        return self.grids[size]

    @torch.no_grad()
    def affinities(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Affinities for the random walk, from images in [0, 1]: (B, O, P) in [0, 1], and the grid (h, w)."""
        features_BDhw = self.student(image)
        return pair_affinity(features_BDhw, self.radius), (features_BDhw.shape[-2], features_BDhw.shape[-1])
