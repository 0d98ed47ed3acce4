"""ToCo: one ViT learns to classify, to separate its tokens by what its confident maps say, and to segment.

Shapes: B images, K foreground classes, P classes of an image (packed: the channels of `present`, padded with -1),
D channels, N = h * w patches, H x W pixels, n local crops.
"""

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wsss.losses.contrast import (
    check_contrast,
    check_crops,
    class_token_contrast,
    crop_flags,
    draw_crops,
    pair_mask,
    patch_token_contrast,
    take_crops,
)
from wsss.losses.energy import check_energy, core_size, dense_energy
from wsss.losses.labels import balanced_segmentation_loss, classification_loss
from wsss.maps.par import DILATIONS, check_refinement
from wsss.maps.pseudo_label import certainty, check_thresholds, refined_label, seed_label
from wsss.maps.scales import check_scales
from wsss.methods.base import Batch, Method, left_out
from wsss.methods.looks import Reads, Seen, Views, draw_scales, make_plain_views, make_views, see
from wsss.methods.terms import Schedule, Term
from wsss.models.heads import ProjectionHead, follower_of, move_towards
from wsss.models.toco import ToCoNet
from wsss.tensors import IGNORE_INDEX, check_groups, resize

LATE = 2**62  # a step at which every loss has begun
PUBLISHED_ENERGY = 1e-7  # factor inside the published loss


class ToCo(Method):
    """Token contrast, end to end.

        loss = cls + cls_aux + w_ptc ptc + w_ctc ctc + w_seg seg + w_energy energy

    A step encodes the main view, the second view and the local crops once each, with gradients. Everything else that
    ToCo describes (the teacher's view of class tokens, the map at scale 1, the segmentation) is computed from these
    tokens, with the same result, since the encoder is deterministic. Maps are computed only for the classes that an
    image shows. Losses that have no weight at a step are not computed.

    Args:
        student: see ToCoNet.
        cam_scales: of the fused maps; the mirror image is used at each, too. 1.0 must be among them.
        bg_threshold, fg_threshold: map values up to the first are background, above the second foreground.
        ptc_weight, ctc_weight, seg_weight, energy_weight: of the losses.
        contrast_from: first step (0-based) with ptc and ctc.
        seg_from: first step with seg and energy.
        aux_labels_before: before this step, pseudo labels come from the auxiliary classifier; from it on, from the
            final one.
        crop_num, crop_px: local crops.
        temperature: of class token contrast.
        momentum: of the teacher's projection head, which follows the student's.
        projection_dim, bottleneck, projection_out: widths of these heads.
        group_size: number of images over which a loss averages its pixels and pairs (in the published code two, the
            batch of one GPU); the batch of a process must be a multiple of it. null = the whole batch of the process.
        energy_scale: resolution of the energy relative to the view.
        energy_grid: on CPUs the energy treats pixels as equal if their colours differ by less than this many sigmas; 1
            takes a tenth of the time, with a gradient whose cosine with the exact one (0, every pixel) is over 0.999
            (D-106).
        energy_gain: strength of the exact kernel that equals the published lattice (D-52).
        par_iterations: of the pixel-adaptive refinement.
        toco_compat: handle boxes as the published code does: those of the main view before its flip, in pixels but used
            on the patch grid; and rate local crops by the unmirrored map.

    Raises:
        ValueError: options that contradict each other.

    Source: ToCo (Ru et al., CVPR 2023), section 3, in the form of its code (D-76), corrected (D-48).
    """

    student: ToCoNet
    segments: ClassVar[bool] = True
    views: ClassVar[Literal["plain", "two"]] = "two"
    equal_on_ranks: ClassVar[tuple[str, ...]] = ("project_teacher",)  # it follows weights
    teacher_grad = False

    def __init__(
        self,
        student: ToCoNet,
        *,
        cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5),
        bg_threshold: float = 0.25,
        fg_threshold: float = 0.7,
        ptc_weight: float = 0.2,
        ctc_weight: float = 0.5,
        seg_weight: float = 0.1,
        energy_weight: float = 0.05,
        contrast_from: int = 0,
        seg_from: int = 2001,
        aux_labels_before: int = 0,
        crop_num: int = 8,
        crop_px: int = 96,
        temperature: float = 0.5,
        momentum: float = 0.9,
        projection_dim: int = 2048,
        bottleneck: int = 256,
        projection_out: int = 1024,
        group_size: int | None = 2,
        energy_scale: float = 0.5,
        energy_grid: float = 0.0,
        energy_gain: float = 0.6,
        par_iterations: int = 10,
        par_dilations: tuple[int, ...] = DILATIONS,
        toco_compat: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(student, ToCoNet):
            raise ValueError(
                "model: methods toco and msee train a network of model 'toco', a plain ViT with two classifiers and a "
                f"decoder, not {type(student).__name__}"
            )
        if 1.0 not in cam_scales:
            raise ValueError(
                f"method.cam_scales is {cam_scales}; 1.0 must be among them: the pass at this scale is the one that is "
                "trained"
            )
        check_contrast(temperature, momentum)
        check_energy(energy_scale, energy_grid)
        check_thresholds(bg_threshold, fg_threshold)
        check_refinement(par_iterations, par_dilations)
        self.student = student
        self.project = ProjectionHead(
            student.feature_dim, dim=projection_dim, bottleneck=bottleneck, out_dim=projection_out
        )
        self.project_teacher = follower_of(self.project)
        self.followed: int | None = None  # step at which the teacher's head was moved last
        self.cam_scales = cam_scales
        self.bg_threshold, self.fg_threshold = bg_threshold, fg_threshold
        self.aux_labels_before = aux_labels_before
        self.crop_num, self.crop_px = crop_num, crop_px
        self.temperature, self.momentum = temperature, momentum
        self.group_size = group_size
        self.energy_scale, self.energy_grid, self.energy_gain = energy_scale, energy_grid, energy_gain
        self.par_iterations, self.par_dilations = par_iterations, par_dilations
        self.toco_compat = toco_compat
        maps: frozenset[Reads] = frozenset({"aux_cam"})
        segments: frozenset[Reads] = frozenset({"label", "segmentation"})
        decoder = ("student.decoder",)
        self.schedule = Schedule(
            [
                Term("cls", 1.0, 0, self.cls_loss),
                Term("cls_aux", 1.0, 0, self.cls_aux_loss),
                Term("ptc", ptc_weight, contrast_from, self.patch_contrast_loss, maps),
                Term("ctc", ctc_weight, contrast_from, self.class_contrast_loss, maps | {"view2"}, trains=("project",)),
                Term("seg", seg_weight, seg_from, self.segmentation_loss, segments, trains=decoder),
                Term("energy", energy_weight, seg_from, self.energy_loss, segments, trains=decoder),
            ]
        )

    def check_images(self, images: int) -> None:
        check_groups(images, self.group_size)

    def check_size(self, side: int) -> None:
        check_scales("method.cam_scales", self.cam_scales, side, self.student.stride)
        if self.schedule.terms["energy"].weight > 0:
            core_size(side, side, self.energy_scale)
        if self.schedule.terms["ctc"].weight > 0:
            stride = self.student.stride
            check_crops(side, side, crop_size=self.crop_px, crop_num=self.crop_num, stride=stride)

    def as_on_gpus(self) -> None:
        self.energy_grid = 0.0  # its cells depend on values; GPUs take every pixel

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.losses(make_views(batch, toco_compat=self.toco_compat), step)

    def phase(self, step: int) -> Hashable:
        return tuple(term.name for term in self.schedule.at(step)), step >= self.aux_labels_before

    def losses(self, views: Views, step: int) -> dict[str, Tensor]:
        """The losses of one step."""
        seen = self.see(views, step)
        untrained = [self.get_submodule(name) for name in self.schedule.untrained_at(step)]
        total, parts = left_out(untrained), {}
        for term in self.schedule.at(step):
            parts[f"{term.name}_loss"] = part = term.compute(seen)
            total = total + term.weight * part
        return {"loss": total, **parts, **seen.watched}

    def see(self, views: Views, step: int) -> Seen:
        """Everything that the terms of this step read."""
        reads = self.schedule.reads_at(step)
        label_from = "final" if step >= self.aux_labels_before else "aux"
        seen = see(
            self.student,
            views,
            step,
            reads=reads,
            label_from=label_from,
            cam_scales=self.cam_scales,
            teachers=self.schedule.teachers_at(step),
            teacher_grad=self.teacher_grad,
        )
        return replace(seen, label_BHW=self.pseudo_label(seen, label_from)) if "label" in reads else seen

    def cls_loss(self, seen: Seen) -> Tensor:
        """Image labels at the final tokens."""
        return classification_loss(seen.cls_logits_BK, seen.views.image_label_BK)

    def cls_aux_loss(self, seen: Seen) -> Tensor:
        """Image labels at the tokens of an earlier block."""
        return classification_loss(seen.aux_logits_BK, seen.views.image_label_BK)

    def patch_contrast_loss(self, seen: Seen) -> Tensor:
        """Pulls tokens of one class together and tokens of different classes apart, where the auxiliary map is
        confident."""
        cam_BPhw = resize(seen.cams["aux"], seen.main.grid)
        label_Bhw = seed_label(
            cam_BPhw,
            seen.views.present_BP,
            bg_threshold=self.bg_threshold,
            fg_threshold=self.fg_threshold,
            box_B4=seen.views.box if self.toco_compat else None,
        )
        if not self.toco_compat:
            label_Bhw = label_Bhw.masked_fill(~seen.valid_Bhw, IGNORE_INDEX)
        return patch_token_contrast(seen.main.patches_BDhw, pair_mask(label_Bhw), group_size=self.group_size)

    def class_contrast_loss(self, seen: Seen) -> Tensor:
        """Pulls class tokens of local crops to those of the global views, unless the map calls the crop background."""
        assert seen.view2 is not None
        views = seen.views
        rated_BHW = certainty(seen.cams["aux"], bg_threshold=self.bg_threshold, fg_threshold=self.fg_threshold)
        if not self.toco_compat:
            rated_BHW = torch.where(views.mirrored[:, None, None], rated_BHW.flip(-1), rated_BHW)
        topleft_Bn2 = draw_crops(rated_BHW, views.seed, crop_size=self.crop_px, crop_num=self.crop_num)
        flags_Bn = crop_flags(rated_BHW, topleft_Bn2, crop_size=self.crop_px)
        crops = take_crops(views.local, topleft_Bn2, self.crop_px)
        local_BnD = self.student.encode(crops.flatten(0, 1)).cls_BD.unflatten(0, crops.shape[:2])
        global_B2D = torch.stack([seen.main.cls_BD, seen.view2.cls_BD], dim=1)
        self.follow(seen.step)
        student_BND = self.project(torch.cat([global_B2D, local_BnD], dim=1))
        with torch.no_grad():
            teacher_B2D = self.project_teacher(global_B2D)
        flags_BN = torch.cat([flags_Bn.new_ones(len(flags_Bn), 2), flags_Bn], dim=1)
        return class_token_contrast(student_BND, teacher_B2D, flags_BN, temperature=self.temperature)

    def follow(self, step: int) -> None:
        """Move the teacher's head towards the student's, once per step however many micro-batches it has."""
        if self.training and self.followed != step:
            move_towards(self.project_teacher, self.project, self.momentum)
            self.followed = step

    @torch.no_grad()
    def pseudo_label(self, seen: Seen, classifier: str) -> Tensor:
        """(B, H, W) target of the decoder: refined maps of the classes that the image shows."""
        return refined_label(
            seen.views.guide,
            seen.cams[classifier],
            seen.views.present_BP,
            seen.views.box,
            bg_threshold=self.bg_threshold,
            fg_threshold=self.fg_threshold,
            dilations=self.par_dilations,
            num_iter=self.par_iterations,
        )

    def segmentation_loss(self, seen: Seen) -> Tensor:
        """Cross-entropy with the pseudo label; background and foreground have equal weight."""
        assert seen.seg_logits_BChw is not None and seen.label_BHW is not None
        return balanced_segmentation_loss(seen.seg_logits_BChw, seen.label_BHW, self.group_size)

    def energy_loss(self, seen: Seen) -> Tensor:
        """Keeps neighbouring pixels of one colour in one class; scaled like the published loss."""
        assert seen.seg_logits_BChw is not None and seen.label_BHW is not None
        views = seen.views
        energy = dense_energy(
            views.guide,
            seen.seg_logits_BChw,
            seen.label_BHW,
            views.box,
            scale=self.energy_scale,
            grid=self.energy_grid,
        )
        return PUBLISHED_ENERGY * self.energy_gain * energy

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Draw maps of every scale and the pseudo label, as a step with all losses sees them."""
        return self.draw(self.see(make_plain_views(batch), LATE))

    def draw(self, seen: Seen) -> dict[str, Tensor]:
        """Draw what was seen."""
        label = {} if seen.label_BHW is None else {"pseudo label": seen.label_BHW}
        return {**draw_scales(seen), **label}
