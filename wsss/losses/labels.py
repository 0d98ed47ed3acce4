"""Losses of image labels and of masks: classification and (balanced) segmentation."""

import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import IGNORE_INDEX, at_least_float32, mean_where, resize


def classification_loss(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each class, averaged over images and classes, in float32.

        L_cls = -mean_bk [ y log sigmoid(z) + (1 - y) log sigmoid(-z) ]

    Source: smoke paper, section 4.2; multi-label form, so that K = 1, 20 and 80 share it.
    """
    logits_BK = at_least_float32(cls_logits_BK)
    return F.binary_cross_entropy_with_logits(logits_BK, image_label_BK.to(logits_BK.dtype))


def segmentation_loss(
    seg_logits_BChw: Tensor, mask_BHW: Tensor, *, labelled: Tensor | None = None, shares: int = 1
) -> Tensor:
    """Cross-entropy of the scores resized to the mask, averaged over its pixels that are not 255, in float32.

        L = shares * sum_labelled -log p / labelled

    0 without such a pixel.

    Args:
        labelled: number of labelled pixels in the whole batch, of which this is one of `shares` parts; the mean of L
            over the parts is then the loss of the whole batch, however its labelled pixels are distributed. None = this
            is the whole batch.
    """
    seg_logits_BCHW = resize(seg_logits_BChw.float(), mask_BHW.shape[-2:])
    total = F.cross_entropy(seg_logits_BCHW, mask_BHW.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (count_labelled(mask_BHW) if labelled is None else labelled).clamp(min=1) * shares


def count_labelled(mask: Tensor) -> Tensor:
    """Pixels that are not 255, a scalar int64."""
    return (mask != IGNORE_INDEX).sum()


def balanced_segmentation_loss(seg_logits_BChw: Tensor, label_BHW: Tensor, group_size: int | None = None) -> Tensor:
    """Cross-entropy in which background and foreground have equal weight, however large they are.

        L = 1/2 mean over pixels of label 0 + 1/2 mean over pixels of labels 1..K

    The scores are resized to the label; 255 does not count. A half without pixels is 0 (published: NaN).

    Args:
        group_size: number of images whose pixels are averaged together; the loss is the mean over such groups. null =
            all images.

    Source: ToCo (D-76, 6; golden segloss).
    """
    seg_logits_BCHW = resize(at_least_float32(seg_logits_BChw), label_BHW.shape[-2:])
    nll_BHW = F.cross_entropy(seg_logits_BCHW, label_BHW.long(), ignore_index=IGNORE_INDEX, reduction="none")
    background = mean_where(nll_BHW, label_BHW == 0, group_size).mean()
    foreground = mean_where(nll_BHW, (label_BHW != 0) & (label_BHW != IGNORE_INDEX), group_size).mean()
    return 0.5 * (background + foreground)
