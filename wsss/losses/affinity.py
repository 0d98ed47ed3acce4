"""AffinityNet's loss: affinities of neighbouring pixels against their seeds."""

import torch
from torch import Tensor

from wsss.maps.affinity import EPS, pair_views
from wsss.tensors import IGNORE_INDEX, at_least_float32


def affinity_loss(affinity_BOP: Tensor, label_Bhw: Tensor, radius: int) -> dict[str, Tensor]:
    """Log-likelihood of which pairs belong together, over the pairs of the whole batch.

        bg  = -mean log(a + 1e-5)        pairs of two background positions
        fg  = -mean log(a + 1e-5)        pairs of two positions of one class
        neg = -mean log(1 - a + 1e-5)    pairs of two positions of different label
        loss = bg / 4 + fg / 4 + neg / 2

    A pair with a 255 counts nowhere; a mean is a sum over (count + 1e-5), so that no pairs give 0.

    Args:
        affinity_BOP: from pair_affinity, with the same radius.
        label_Bhw: {0, k, 255} on the grid of its features.

    Returns:
        Scalars `loss`, `bg_loss`, `fg_loss`, `neg_loss`.

    Raises:
        ValueError: affinities and labels of another number of images or pairs.

    Source: Ahn & Kwak 2018, Eq. 5-7; D-31. The smoke paper's code trains on the last image of each batch alone.
    """
    origin_B1rc, *neighbours = (view[:, None] for view in pair_views(label_Bhw, radius))
    first, second = origin_B1rc.flatten(2), torch.cat(neighbours, dim=1).flatten(2)
    if affinity_BOP.shape != second.shape:
        raise ValueError(
            f"affinities {tuple(affinity_BOP.shape)} for labels {tuple(label_Bhw.shape)}: wanted "
            f"{tuple(second.shape)}; resize the labels to the grid of the features, and use one radius"
        )
    certain = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    equal, background = certain & (first == second), first == 0
    a = at_least_float32(affinity_BOP)
    together, apart = -torch.log(a + EPS), -torch.log(1 - a + EPS)
    bg = mean_where(together, equal & background)
    fg = mean_where(together, equal & ~background)
    neg = mean_where(apart, certain & (first != second))
    return {"loss": bg / 4 + fg / 4 + neg / 2, "bg_loss": bg, "fg_loss": fg, "neg_loss": neg}


def mean_where(x: Tensor, chosen: Tensor) -> Tensor:
    return (x * chosen).sum() / (chosen.sum(dtype=x.dtype) + EPS)
