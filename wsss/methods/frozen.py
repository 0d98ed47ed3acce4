"""Frozen features, and a decoder that learns from pseudo labels made in the same step.

Shapes: B images, K classes, P classes of an image (packed, padded with -1), N = h * w patches, H x W pixels.
"""

from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor

from wsss.losses.labels import balanced_segmentation_loss, classification_loss
from wsss.losses.pairs import affinity_logits, dense_pair_loss
from wsss.maps.agreement import agreeing_attention, walk_along
from wsss.maps.boxes import whole_box
from wsss.maps.cam import maps_of_present, normalise_cam, packed_rows
from wsss.maps.gradients import class_maps, recording
from wsss.maps.par import DILATIONS, check_refinement
from wsss.maps.pseudo_label import check_thresholds, labels_on_grid, refined_label
from wsss.methods.base import Batch, Method, left_out
from wsss.models.frozen import Encoded, FrozenNet
from wsss.tensors import check_groups, resize

MOST_STEPS = 100  # of a walk, each of which takes as long as the first


class FrozenFeatures(Method):
    """Decoder, and a classifier where there are no texts, on frozen ViTs.

        loss = cls + seg_weight seg + pair_weight pair

    The pseudo label of a step is made in three stages. (1) Maps of the classes that an image shows, normalised:
    Grad-CAM of CLIP's text scores, or of the learned classifier if there are no texts. (2) These maps are propagated
    along the frozen attention; from step `agree_from` on, only along the blocks whose attention agrees with the
    decoder's affinity. (3) PAR refines them against two constant background scores. seg is the balanced cross-entropy
    of the decoder; pair trains its fused features to tell which patches belong together. With texts there is no cls.

    Args:
        student: see FrozenNet.
        seg_weight, pair_weight: >= 0.
        seg_from: first step (0-based) with seg and pair; before it only the classifier is trained.
        attended: number of last blocks whose attention is used; 0 = no propagation.
        walk_steps: steps of the propagation, 0 to 100.
        agree_from: first step that chooses blocks by the learned affinity.
        bg_threshold, fg_threshold: see refined_label.
        group_size: images over which a loss counts pixels and pairs: the batch of a process must be a multiple of it.
            null = the whole batch of the process, whose loss then depends on the number of processes.
        par_iterations, par_dilations: of the pixel-adaptive refinement.

    Raises:
        ValueError: options that contradict each other, or another network.

    Source: WeCLIP (Zhang et al., CVPR 2024), frozen CLIP CAM refinement module, and WeCLIP+ (TPAMI 2025); in our
    reading (D-148).
    """

    student: FrozenNet
    segments: ClassVar[bool] = True

    def __init__(
        self,
        student: FrozenNet,
        *,
        seg_weight: float = 1.0,
        pair_weight: float = 0.1,
        seg_from: int = 500,
        attended: int = 6,
        walk_steps: int = 2,
        agree_from: int = 2000,
        bg_threshold: float = 0.25,
        fg_threshold: float = 0.7,
        group_size: int | None = 2,
        par_iterations: int = 10,
        par_dilations: tuple[int, ...] = DILATIONS,
    ) -> None:
        super().__init__()
        if not isinstance(student, FrozenNet):
            raise ValueError(f"model: method frozen trains a network of model 'frozen', not {type(student).__name__}")
        check_thresholds(bg_threshold, fg_threshold)
        if seg_weight < 0 or pair_weight < 0:
            raise ValueError(f"method: wanted seg_weight ({seg_weight}) and pair_weight ({pair_weight}) >= 0")
        depth = len(student.first.blocks)
        if not 0 <= attended <= depth or not 0 <= walk_steps <= MOST_STEPS:
            raise ValueError(
                f"method: wanted attended ({attended}) in [0, {depth}] and walk_steps ({walk_steps}) in "
                f"[0, {MOST_STEPS}]"
            )
        check_refinement(par_iterations, par_dilations)
        if student.by_text and seg_from > 0:
            raise ValueError(
                f"method.seg_from is {seg_from}; wanted 0, since with model.texts nothing is trained before that step"
            )
        self.student = student
        self.seg_weight, self.pair_weight, self.seg_from = seg_weight, pair_weight, seg_from
        self.attended, self.walk_steps, self.agree_from = attended, walk_steps, agree_from
        self.bg_threshold, self.fg_threshold, self.group_size = bg_threshold, fg_threshold, group_size
        self.par_iterations, self.par_dilations = par_iterations, par_dilations

    def check_images(self, images: int) -> None:
        check_groups(images, self.group_size)

    def phase(self, step: int) -> Hashable:
        return step >= self.seg_from, step >= self.agree_from

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if step < self.seg_from:
            return self.classifier_alone(batch)
        seen, cam_BPhw = self.look(batch)
        fused_BEhw, seg_logits_BChw = self.student.decode(seen.depths)
        losses = {}
        if not self.student.by_text:
            losses["cls_loss"] = classification_loss(self.student.classify(seen), batch["image_label"])
        affinity_BNN = affinity_logits(fused_BEhw)
        label_BHW = self.pseudo_label(batch, cam_BPhw, seen.attention_LBNN, affinity_BNN, step)
        losses["seg_loss"] = balanced_segmentation_loss(seg_logits_BChw, label_BHW, self.group_size)
        label_Bhw = labels_on_grid(label_BHW, fused_BEhw.shape[-2:])
        losses["pair_loss"] = dense_pair_loss(affinity_BNN, label_Bhw, self.group_size)
        loss = losses.get("cls_loss", 0.0) + self.seg_weight * losses["seg_loss"]
        return {"loss": loss + self.pair_weight * losses["pair_loss"], **losses}

    def classifier_alone(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a step before the decoder is trained."""
        cls_logits_BK = self.student.classify(self.student.encode(batch["image"]))
        cls_loss = classification_loss(cls_logits_BK, batch["image_label"])
        return {"loss": cls_loss + left_out(self.student.decoder), "cls_loss": cls_loss}

    def look(self, batch: Batch) -> tuple[Encoded, Tensor]:
        """The frozen ViTs' features, and the raw maps (B, P, h, w) of the classes that each image shows."""
        image, present_BP = batch["image"], batch["present"]
        student = self.student
        if not student.by_text:
            seen = student.encode(image, self.attended)
            weight_BPD = packed_rows(student.head.weight.detach().flatten(1), present_BP)
            return seen, maps_of_present(seen.patches_BDhw.detach(), weight_BPD)
        with torch.no_grad(), recording([student.grad_cam_layer(-1)]) as activations:
            seen = student.encode(image, self.attended)
            scores_BP = student.classify(seen).gather(1, present_BP.clamp(min=0))
            (raw_BPhw,) = class_maps(student, image, scores_BP, activations, ["grad"])["grad"]
        return seen, raw_BPhw * (present_BP >= 0)[..., None, None]

    @torch.no_grad()
    def pseudo_label(
        self, batch: Batch, raw_BPhw: Tensor, attention_LBNN: Tensor | None, affinity_BNN: Tensor, step: int
    ) -> Tensor:
        """(B, H, W) target of the decoder."""
        image, cam_BPhw = batch["image"], normalise_cam(raw_BPhw)
        if attention_LBNN is not None and self.walk_steps:
            learnt_BNN = affinity_BNN.sigmoid() if step >= self.agree_from else None
            attention_BNN = agreeing_attention(attention_LBNN, learnt_BNN)
            cam_BPhw = normalise_cam(walk_along(cam_BPhw, attention_BNN, self.walk_steps))
        return refined_label(
            image,
            resize(cam_BPhw, image.shape[-2:]),
            batch["present"],
            batch["box"],
            bg_threshold=self.bg_threshold,
            fg_threshold=self.fg_threshold,
            num_iter=self.par_iterations,
            dilations=self.par_dilations,
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The strongest map before refinement and the pseudo label after it, as in the last steps of training."""
        whole = {**batch, "box": whole_box(batch["image"])}
        seen, raw_BPhw = self.look(whole)
        affinity_BNN = affinity_logits(self.student.decode(seen.depths)[0])
        label_BHW = self.pseudo_label(whole, raw_BPhw, seen.attention_LBNN, affinity_BNN, self.agree_from)
        return {"first map": normalise_cam(raw_BPhw).amax(dim=1), "pseudo label": label_BHW}
