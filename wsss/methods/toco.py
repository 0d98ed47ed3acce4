"""ToCo: one ViT learns to classify, to see in its tokens what its maps are sure of, and to segment.

Shapes: B images, K foreground classes, P classes of an image (packed: the channels of `present`, padded with -1),
D channels, N = h * w patches, H x W pixels, n local crops.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsss.losses.contrast import (
    class_token_contrast,
    crop_flags,
    draw_crops,
    pair_mask,
    patch_token_contrast,
    take_crops,
)
from wsss.losses.energy import dense_energy
from wsss.losses.labels import balanced_segmentation_loss, classification_loss
from wsss.losses.regions import scale_cams
from wsss.maps.boxes import valid_tokens
from wsss.maps.cam import packed_rows
from wsss.maps.fusion import fuse_cams
from wsss.maps.par import DILATIONS
from wsss.maps.pseudo_label import certainty, refined_label, seed_label
from wsss.methods.base import Batch, Method
from wsss.methods.looks import Look, Views, channels_of, looks_at_scales, mirrored_box
from wsss.models.heads import ProjectionHead, follower_of, move_towards
from wsss.models.toco import ToCoNet, Tokens
from wsss.photometric import photometric
from wsss.tensors import IGNORE_INDEX, resize

LATE = 2**62  # a step at which every loss has begun
PUBLISHED_ENERGY = 1e-7  # factor inside the published loss


@dataclass(frozen=True)
class Seen:
    """What the passes of one step gave, for the losses and for those who look on.

    Attributes:
        main, view2: tokens of the global views, with their graph.
        looks: by scale.
        cams: fused cams (B, P, H, W) in [0, 1] by classifier, as far as the step needs them.
        seg_logits_BChw: of the decoder, with their graph; None in steps without it.
    """

    main: Tokens
    view2: Tokens | None
    looks: dict[float, Look]
    cams: dict[str, Tensor]
    seg_logits_BChw: Tensor | None


class ToCo(Method):
    """Token contrast, end to end.

        loss = cls + cls_aux + w_ptc ptc + w_ctc ctc + w_seg seg + w_energy energy

    A step encodes the main and the second view once with gradients, and the local crops; all else that ToCo
    describes (the teacher's view of class tokens, the map at scale 1, the segmentation) is read from these tokens,
    which is the same mathematics since the encoder is deterministic. Maps are computed for the classes that an image
    shows. What a phase does not weigh is not computed.

    Args:
        student: see ToCoNet.
        cam_scales: of the fused maps; each is seen mirrored as well. 1.0 is among them.
        bg_threshold, fg_threshold: a map's values up to the one are background, above the other foreground.
        ptc_weight, ctc_weight, seg_weight, energy_weight: of the losses.
        contrast_from: first step (0-based) with ptc and ctc.
        seg_from: first step with seg and energy.
        aux_labels_before: first step whose pseudo labels come from the final classifier; before, from the auxiliary.
        crop_num, crop_px: local crops.
        temperature: of class token contrast.
        momentum: of the teacher's projection head, which follows the student's.
        projection_dim, bottleneck, projection_out: widths of these heads.
        group_size: images over which a loss counts its pixels and pairs (the published two of one GPU): the batch of a
            process must be a multiple of it. null = the whole batch of the process.
        energy_scale: resolution of the energy relative to the view.
        energy_gain: strength of the exact kernel that equals the published lattice (spec/golden 11).
        par_iterations: of the pixel-adaptive refinement.
        toco_compat: the published handling of boxes: of the main view before its own flip, in pixels on the patch
            grid, and local crops rated by the unmirrored map.

    Raises:
        ValueError: options that contradict each other.

    Source: ToCo (Ru et al., CVPR 2023); spec/msee 1 and 6.
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
        energy_gain: float = 0.6,
        par_iterations: int = 10,
        par_dilations: tuple[int, ...] = DILATIONS,
        toco_compat: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(student, ToCoNet):
            raise ValueError(
                f"model: methods toco and msee train a network of model 'toco', not {type(student).__name__}"
            )
        if 1.0 not in cam_scales:
            raise ValueError(
                f"method.cam_scales is {cam_scales}; 1.0 must be among them: its pass is the training pass"
            )
        if not 0 <= bg_threshold <= fg_threshold <= 1:
            raise ValueError(f"method: wanted 0 <= bg_threshold ({bg_threshold}) <= fg_threshold ({fg_threshold}) <= 1")
        self.student = student
        self.project = ProjectionHead(
            student.feature_dim, dim=projection_dim, bottleneck=bottleneck, out_dim=projection_out
        )
        self.project_teacher = follower_of(self.project)
        self.followed: int | None = None  # step at which the teacher's head was moved last
        self.cam_scales = cam_scales
        self.bg_threshold, self.fg_threshold = bg_threshold, fg_threshold
        self.weights = {"ptc": ptc_weight, "ctc": ctc_weight, "seg": seg_weight, "energy": energy_weight}
        self.starts = {"ptc": contrast_from, "ctc": contrast_from, "seg": seg_from, "energy": seg_from}
        self.aux_labels_before = aux_labels_before
        self.crop_num, self.crop_px = crop_num, crop_px
        self.temperature, self.momentum = temperature, momentum
        self.group_size = group_size
        self.energy_scale, self.energy_gain = energy_scale, energy_gain
        self.par_iterations, self.par_dilations = par_iterations, par_dilations
        self.toco_compat = toco_compat

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.losses(self.views_of(batch), batch["image_label"], batch["present"], step)

    def views_of(self, batch: Batch) -> Views:
        """The loader's geometry under the colours that it drew (see photometric)."""
        image, view2 = batch["image"], batch["view2"].to(batch["image"].dtype) / 255
        sources, colours = torch.stack([image, view2, image], dim=1), batch["photometric"]
        main, view2, local = photometric(sources.flatten(0, 1), colours.flatten(0, 1)).unflatten(0, (-1, 3)).unbind(1)
        box = batch["box"]
        if self.toco_compat:  # the box as it was before the main view's own flip
            box = torch.where(batch["main_flip"][:, None], mirrored_box(box, image.shape[-1]), box)
        return Views(main, view2, local, main, box, colours[:, 2, -1] > 0, batch["seed"])

    def losses(self, views: Views, image_label_BK: Tensor, present_BP: Tensor, step: int) -> dict[str, Tensor]:
        """The losses of one step.

        Args:
            image_label_BK: multi-hot.
            present_BP: the same as channels, padded with -1.
        """
        seen = self.see(views, present_BP, step)
        final_BK, aux_BK = self.student.classify(seen.main.patches_BDhw, seen.main.aux_BDhw)
        losses = {
            "cls_loss": classification_loss(final_BK, image_label_BK),
            "cls_aux_loss": classification_loss(aux_BK, image_label_BK),
        }
        weighed = self.weighed_losses(views, seen, image_label_BK, present_BP, step)
        losses |= {f"{name}_loss": part for name, part in weighed.items()}
        total = losses["cls_loss"] + losses["cls_aux_loss"] + self.unused(weighed, seen)
        return {"loss": sum((self.weights[name] * part for name, part in weighed.items()), start=total), **losses}

    def weighed_losses(
        self, views: Views, seen: Seen, image_label_BK: Tensor, present_BP: Tensor, step: int
    ) -> dict[str, Tensor]:
        """{name: loss} of all that has a weight in this step; names as in `self.weights`."""
        losses = {}
        if self.uses("ptc", step):
            losses["ptc"] = self.patch_contrast_loss(views, seen, present_BP)
        if self.uses("ctc", step):
            losses["ctc"] = self.class_contrast_loss(views, seen, step)
        if self.uses("seg", step) or self.uses("energy", step):
            assert seen.seg_logits_BChw is not None
            label_BHW = self.pseudo_label(views, seen, present_BP, step)
            if self.uses("seg", step):
                losses["seg"] = balanced_segmentation_loss(seen.seg_logits_BChw, label_BHW, self.group_size)
            if self.uses("energy", step):
                losses["energy"] = self.energy_loss(views, seen.seg_logits_BChw, label_BHW)
        return losses

    def uses(self, name: str, step: int) -> bool:
        """Does this step compute the loss of this name?"""
        return self.weights[name] > 0 and step >= self.starts[name]

    def see(self, views: Views, present_BP: Tensor, step: int) -> Seen:
        """All passes of the global views: with gradients at scale 1, without at the others and in the mirror."""
        size, extent = len(views.main), views.main.shape[-2:]
        both = self.uses("ctc", step)
        tokens = self.student.encode(torch.cat([views.main, views.view2]) if both else views.main)
        main = tokens[:size]
        segments = self.uses("seg", step) or self.uses("energy", step)
        wanted = ["aux"] if any(self.uses(name, step) for name in ("ptc", "ctc")) else []
        if segments:
            wanted = [*wanted, "final"] if step >= self.aux_labels_before else ["aux"]
        looks = looks_at_scales(
            self.student,
            views.main,
            main,
            present_BP,
            classifiers=wanted,
            cam_scales=self.cam_scales,
            teachers=self.teacher_scales(step),
            teacher_grad=self.teacher_grad,
        )
        cams = {
            classifier: fuse_cams([looks[scale].maps[classifier] for scale in self.cam_scales], extent)
            for classifier in wanted
        }
        seg_logits_BChw = self.student.decoder(main.patches_BDhw) if self.decodes(step) else None
        return Seen(main, tokens[size:] if both else None, looks, cams, seg_logits_BChw)

    def decodes(self, step: int) -> bool:
        """Does this step need the decoder?"""
        return self.uses("seg", step) or self.uses("energy", step)

    def teacher_scales(self, step: int) -> tuple[float, ...]:
        """Scales whose final tokens this step needs beside its maps."""
        return ()

    def patch_contrast_loss(self, views: Views, seen: Seen, present_BP: Tensor) -> Tensor:
        """Tokens of one class alike, of different ones not, where the auxiliary map is sure of them."""
        grid = seen.main.grid
        cam_BPhw = resize(seen.cams["aux"], grid)
        label_Bhw = seed_label(
            cam_BPhw,
            present_BP,
            bg_threshold=self.bg_threshold,
            fg_threshold=self.fg_threshold,
            box_B4=views.box if self.toco_compat else None,
        )
        if not self.toco_compat:
            inside_Bhw = valid_tokens(views.box, grid, self.student.stride)
            label_Bhw = label_Bhw.masked_fill(~inside_Bhw, IGNORE_INDEX)
        return patch_token_contrast(seen.main.patches_BDhw, pair_mask(label_Bhw), group_size=self.group_size)

    def class_contrast_loss(self, views: Views, seen: Seen, step: int) -> Tensor:
        """Class tokens of local crops near those of the global views, unless the map calls the crop background."""
        assert seen.view2 is not None
        rated_BHW = certainty(seen.cams["aux"], bg_threshold=self.bg_threshold, fg_threshold=self.fg_threshold)
        if not self.toco_compat:
            rated_BHW = torch.where(views.mirrored[:, None, None], rated_BHW.flip(-1), rated_BHW)
        topleft_Bn2 = draw_crops(rated_BHW, views.seed, crop_size=self.crop_px, crop_num=self.crop_num)
        flags_Bn = crop_flags(rated_BHW, topleft_Bn2, crop_size=self.crop_px)
        crops = take_crops(views.local, topleft_Bn2, self.crop_px)
        local_BnD = self.student.encode(crops.flatten(0, 1)).cls_BD.unflatten(0, crops.shape[:2])
        global_B2D = torch.stack([seen.main.cls_BD, seen.view2.cls_BD], dim=1)
        self.follow(step)
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
    def pseudo_label(self, views: Views, seen: Seen, present_BP: Tensor, step: int) -> Tensor:
        """(B, H, W) target of the decoder: refined maps of the classes that the image shows."""
        cam_BPHW = seen.cams["final" if step >= self.aux_labels_before else "aux"]
        return refined_label(
            views.guide,
            cam_BPHW,
            present_BP,
            views.box,
            bg_threshold=self.bg_threshold,
            fg_threshold=self.fg_threshold,
            dilations=self.par_dilations,
            num_iter=self.par_iterations,
        )

    def energy_loss(self, views: Views, seg_logits_BChw: Tensor, label_BHW: Tensor) -> Tensor:
        """Neighbours of one colour in one class; in the units of the published loss."""
        energy = dense_energy(views.guide, seg_logits_BChw, label_BHW, views.box, scale=self.energy_scale)
        return PUBLISHED_ENERGY * self.energy_gain * energy

    @torch.no_grad()
    def pictures(self, image: Tensor, image_label_BK: Tensor) -> dict[str, Tensor]:
        """Maps of every scale and the pseudo label, as a step with all losses sees them."""
        box_B4 = torch.tensor([0, image.shape[-2], 0, image.shape[-1]], device=image.device).expand(len(image), -1)
        seed_B = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        views = Views(image, image, image, image, box_B4, seed_B > 0, seed_B)
        present_BP = channels_of(image_label_BK)
        return self.drawn(views, self.see(views, present_BP, LATE), present_BP)

    def drawn(self, views: Views, seen: Seen, present_BP: Tensor) -> dict[str, Tensor]:
        """The pictures of what was seen."""
        weight_BPD = packed_rows(self.student.head.weight.flatten(1), present_BP)
        maps = {
            f"cam at scale {scale:g}": scale_cams(look.features["final"], weight_BPD, seen.main.grid).amax(dim=1)
            for scale, look in sorted(seen.looks.items())
        }
        if "final" in seen.cams:
            maps["pseudo label"] = self.pseudo_label(views, seen, present_BP, LATE)
        return maps

    def unused(self, weighed: dict[str, Tensor], seen: Seen) -> Tensor:
        """0 times every trained parameter that this step left out."""
        modules: list[nn.Module] = [] if "ctc" in weighed else [self.project]
        modules += [] if {"seg", "energy"} & set(weighed) else [self.student.decoder]
        parameters = [p for module in modules for p in module.parameters()]
        return 0.0 * sum((p.sum() for p in parameters), seen.main.cls_BD.new_zeros(()))
