"""M-SEE on ToCo: where another scale of the image shows a class better, the features learn from those of that scale.

Shapes: see toco.py and regions.py.
"""

from typing import Any

import torch
from torch import Tensor

from wsss.losses.labels import classification_loss
from wsss.losses.regions import (
    ClassHandling,
    DistanceForm,
    Reduction,
    feature_distance,
    fires,
    region_loss,
    reliable_regions,
    scale_cams,
    segmented_class,
    thresholds,
)
from wsss.maps.scales import check_scales
from wsss.methods.looks import Reads, Seen
from wsss.methods.terms import Term
from wsss.methods.toco import ToCo
from wsss.models.toco import ToCoNet


class MSEE(ToCo):
    """ToCo, and

        msee = sum over scales of region_loss(distance(F, F_scale), B_scale)                     (Eq. 1-7)

    The tokens of the other scales are the teachers. Those of the scales of ToCo's fused maps (0.5 and 1.5) are computed
    anyway.

    Args:
        scales: of the teachers, in order of priority: a position learns from the first scale whose map is active there.
        msee_weight: of the loss.
        msee_from: first step (0-based) with this loss; null = seg_from, since the thresholds come from regions of the
            segmentation.
        classes: thresholds over all foreground (`agnostic`) or for each class (`per_class`).
        present_only: regions of the segmentation only of classes that the image label names.
        teacher_grad: gradients also through the teachers, in passes of their own.
        distance: see regions.feature_distance; `l2norm` is the literal Eq. 5-6.
        beta: of the smooth L1.
        reduction: see regions.region_loss; `sum` is the literal Eq. 7.
        region_masks: false = everywhere inside the image ("without B" of Table 4).
        scale_cls_weight: of classification losses at the teachers' scales, as one can read the paper's text; only
            together with teacher_grad.
        options: ToCo's.

    Raises:
        ValueError: options that contradict each other.

    Source: M-SEE, section 4; why each default is what it is: D-44, a to l.
    """

    def __init__(
        self,
        student: ToCoNet,
        *,
        scales: tuple[float, ...] = (1.5, 0.5),
        msee_weight: float = 1.0,
        msee_from: int | None = None,
        classes: ClassHandling = "agnostic",
        present_only: bool = True,
        teacher_grad: bool = False,
        distance: DistanceForm = "elements",
        beta: float = 2.0,
        reduction: Reduction = "mean",
        region_masks: bool = True,
        scale_cls_weight: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(student, **options)
        if not scales or 1.0 in scales or len(set(scales)) < len(scales) or min(scales) <= 0:
            raise ValueError(
                f"method.scales is {scales}; wanted different scales other than 1, the one with the highest priority "
                "first"
            )
        if beta <= 0:
            raise ValueError(f"method.beta is {beta}; wanted > 0")
        if scale_cls_weight and not teacher_grad:
            raise ValueError("method.scale_cls_weight trains the teachers' passes; it needs method.teacher_grad: true")
        self.scales = scales
        self.classes, self.present_only = classes, present_only
        self.teacher_grad = teacher_grad
        self.distance, self.beta, self.reduction = distance, beta, reduction
        self.region_masks = region_masks
        start = self.schedule.terms["seg"].start if msee_from is None else msee_from
        segments: frozenset[Reads] = frozenset({"segmentation"})
        self.schedule.add(
            Term("msee", msee_weight, start, self.msee_loss, segments, teachers=scales),
            Term("scale_cls", scale_cls_weight, start, self.scale_cls_loss, teachers=scales),
        )

    def check_size(self, side: int) -> None:
        super().check_size(side)
        if self.schedule.terms["msee"].weight > 0:
            check_scales("method.scales", self.scales, side, self.student.stride)

    def msee_loss(self, seen: Seen) -> Tensor:
        """Eq. 7, summed over the scales. Watched: the share of the grid and the mean distance of each scale."""
        parts = []
        for scale, region_Bhw in zip(self.scales, self.regions(seen), strict=True):
            teacher_BDhw = seen.looks[scale].features["final"]
            distance_Bhw = feature_distance(seen.main.patches_BDhw, teacher_BDhw, form=self.distance, beta=self.beta)
            parts.append(region_loss(distance_Bhw, region_Bhw, reduction=self.reduction, group_size=self.group_size))
            seen.watched[f"region_{scale:g}"] = region_Bhw.float().mean()
            seen.watched[f"distance_{scale:g}"] = distance_Bhw.detach().mean()
        return torch.stack(parts).sum()

    def scale_cls_loss(self, seen: Seen) -> Tensor:
        """The losses of both classifiers at all of the teachers' scales (D-44, h)."""
        return torch.stack([self.cls_loss_at(scale, seen) for scale in self.scales]).sum()

    def cls_loss_at(self, scale: float, seen: Seen) -> Tensor:
        """Both classifiers' losses at one scale."""
        features = seen.looks[scale].features
        scores = self.student.classify(features["final"], features["aux"])
        return torch.stack([classification_loss(logits_BK, seen.views.image_label_BK) for logits_BK in scores]).sum()

    @torch.no_grad()
    def regions(self, seen: Seen) -> Tensor:
        """(J, B, h, w) reliable region of each scale, Eq. 1-4."""
        assert seen.seg_logits_BChw is not None
        grid, present_BP = seen.main.grid, seen.views.present_BP
        segmented_Bhw = segmented_class(
            seen.seg_logits_BChw, present_BP, seen.valid_Bhw, present_only=self.present_only
        )
        fired = []
        for scale in self.scales:
            cam_BPhw = scale_cams(seen.looks[scale].features["final"], seen.rows["final"], grid)
            fired.append(fires(cam_BPhw, thresholds(cam_BPhw, segmented_Bhw, present_BP, classes=self.classes)))
        return reliable_regions(fired, seen.valid_Bhw, region_masks=self.region_masks)

    def draw(self, seen: Seen) -> dict[str, Tensor]:
        """ToCo's pictures, and the region that each scale teaches."""
        if not self.schedule.uses("msee", seen.step):
            return super().draw(seen)
        regions_JBhw = self.regions(seen).float()
        regions = {f"region of scale {s:g}": region for s, region in zip(self.scales, regions_JBhw, strict=True)}
        return {**super().draw(seen), **regions}
