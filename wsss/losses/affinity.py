"""AffinityNet's loss: predicted affinities of neighbouring positions compared with the seeds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wsss.maps.affinity import EPS, pair_views
from wsss.tensors import IGNORE_INDEX, at_least_float32


def affinity_loss(
    affinity_BOP: Tensor,
    label_Bhw: Tensor,
    radius: int,
    *,
    totals: Mapping[str, Tensor] | None = None,
    shares: int = 1,
) -> dict[str, Tensor]:
    """Negative log-likelihood of which pairs belong together, over the pairs of the whole batch.

        bg  = -mean log(a + 1e-5)        pairs of two background positions
        fg  = -mean log(a + 1e-5)        pairs of two positions of one class
        neg = -mean log(1 - a + 1e-5)    pairs of two positions of different label
        loss = bg / 4 + fg / 4 + neg / 2

    A pair with a 255 does not count; a mean is a sum divided by (count + 1e-5), so it is 0 without pairs.

    Args:
        affinity_BOP: from pair_affinity, with the same radius.
        label_Bhw: {0, k, 255} on the grid of its features.
        totals: number of pairs of each kind (see count_pairs) in the whole batch, of which this is one of `shares`
            parts; the mean of the loss over the parts is then the loss of the whole batch. None = this is the whole
            batch.

    Returns:
        Scalars `loss`, `bg_loss`, `fg_loss`, `neg_loss`.

    Raises:
        ValueError: affinities and labels of another number of images or pairs.

    Source: Ahn & Kwak 2018, Eq. 5-7; D-31. The smoke paper's code trains on the last image of each batch alone.
    """
    kinds = pair_kinds(label_Bhw, radius)
    if affinity_BOP.shape != kinds["bg"].shape:
        raise ValueError(
            f"affinities {tuple(affinity_BOP.shape)} for labels {tuple(label_Bhw.shape)}: wanted "
            f"{tuple(kinds['bg'].shape)}; resize the labels to the grid of the features, and use the same radius for "
            "both"
        )
    totals = {kind: chosen.sum() for kind, chosen in kinds.items()} if totals is None else totals
    a = at_least_float32(affinity_BOP)
    together, apart = -torch.log(a + EPS), -torch.log(1 - a + EPS)

    def mean_of(x: Tensor, kind: str) -> Tensor:
        return (x * kinds[kind]).sum() / (totals[kind].to(x.dtype) + EPS) * shares

    bg, fg, neg = mean_of(together, "bg"), mean_of(together, "fg"), mean_of(apart, "neg")
    return {"loss": bg / 4 + fg / 4 + neg / 2, "bg_loss": bg, "fg_loss": fg, "neg_loss": neg}


def pair_kinds(label_Bhw: Tensor, radius: int) -> dict[str, Tensor]:
    """Masks (B, O, P) bool of the pairs of two background positions (`bg`), of two positions of one class (`fg`), and
    of different labels (`neg`). Raises ValueError as pair_views does."""
    origin_B1rc, *neighbours = (view[:, None] for view in pair_views(label_Bhw, radius))
    first, second = origin_B1rc.flatten(2), torch.cat(neighbours, dim=1).flatten(2)
    certain = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    equal, background = certain & (first == second), first == 0
    return {"bg": equal & background, "fg": equal & ~background, "neg": certain & (first != second)}


def count_pairs(label_Bhw: Tensor, radius: int) -> dict[str, Tensor]:
    """How many pairs of each kind these images have, scalar int64. Raises ValueError as pair_views does."""
    return {kind: chosen.sum() for kind, chosen in pair_kinds(label_Bhw, radius).items()}
