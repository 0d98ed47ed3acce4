"""What both forms of cross-architecture consistency share: the student's projection, and the loss that trains it.

Shapes: B images, K classes, D channels of the student, T of the target, h x w patch grid, N = h * w.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from wsss.losses.align import (
    ANY_CHANNELS,
    DISTANCES,
    LOGIT_DISTANCES,
    TEMPERED,
    Level,
    LogitLevel,
    Metric,
    alignment_distance,
    check_takes_standardise,
    check_takes_temperature,
    name_levels,
)
from wsss.methods.base import Method, left_out
from wsss.models.base import Network, Outputs
from wsss.tensors import resize

AnyLevel = Literal[Level, LogitLevel]
Target = Literal["class_map", "features", "no_pcm", "background", "class_map+background"]


class Consistency(Method):
    """The alignment of a student's patches with a teacher's map, and its options.

        align_loss = distance(project(patches), target)                                          (Eq. 3.1-3.3)
        project(F) = W_p F + b_p at every position

    CAM kind `project`: the projected features, which the loss trains to equal the teacher's class map. It exists if the
    projected features can be read as class maps.

    Args:
        align_weight: lambda of Eq. 3.4, >= 0. At 0 the term is not computed: the control at an equal schedule.
        target: the teacher tensor: its `class_map` (T = K) or last `features`; of a PCM teacher also its map without
            the module, `no_pcm`, and its random channel `background`, alone or behind the class map as published.
        level, metric, standardise, tau: see align.alignment_distance. The level `logits` compares class logits.
        project: `student`: a trained projection of the student into the target's channels; `both`: a trained projection
            on either side, as in the paper's text, with which both sides can reduce the loss by collapsing; `none`: no
            projection, for levels that can compare maps with different numbers of channels.
        project_dim: number of channels to which both sides are brought; null = that of the target. With project
            `student`, a fixed random orthonormal map brings the target to it, so that nothing trained changes the
            target.
        shuffle_teacher: a control: align each image with the teacher's map of the next image in the batch, so that the
            student can only learn what all maps have in common. A batch of one image is refused, since it would get its
            own map.

    Raises:
        ValueError: options that do not go together, or a target that this teacher does not have.

    Source: smoke paper, section 3.2; Tables 4.7 to 4.10.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network,
        *,
        align_weight: float = 1.0,
        target: Target = "class_map",
        level: AnyLevel = "global",
        metric: Metric = "cosine",
        standardise: bool = False,
        tau: float = 1.0,
        project: Literal["student", "both", "none"] = "student",
        project_dim: int | None = None,
        shuffle_teacher: bool = False,
    ) -> None:
        super().__init__()
        if align_weight < 0:
            raise ValueError(f"method.align_weight is {align_weight}; wanted >= 0")
        self.align_weight = align_weight
        self.target: Target = target
        self.level = level
        self.metric: Metric = metric
        self.standardise = standardise
        self.tau = tau
        self.shuffle_teacher = shuffle_teacher
        self.student = student
        self.check_level(project)
        if project_dim is not None and project_dim < 1:
            raise ValueError(f"method.project_dim is {project_dim}; wanted 1 or more, or null")
        check_target(target, teacher)
        dim = count_channels(target, teacher)
        width = project_dim or dim
        projected = project != "none" and level not in LOGIT_DISTANCES
        self.project = nn.Conv2d(student.feature_dim, width, kernel_size=1) if projected else None
        self.project_target: nn.Module | None = None
        if projected and project == "both":
            self.project_target = nn.Conv2d(dim, width, kernel_size=1)
        elif projected and width != dim:
            self.project_target = orthonormal(dim, width)
        linear = isinstance(teacher.head, nn.Conv2d) and teacher.head.out_channels == teacher.num_classes
        as_classes = target != "background" and (target != "features" or linear)
        self.readable = projected and self.project_target is None and as_classes

    def check_level(self, project: str) -> None:
        """Raise ValueError unless level, metric, tau and projection go together."""
        check_takes_temperature(self.level, self.tau)
        if self.level in LOGIT_DISTANCES:
            return
        if (self.level, self.metric) not in DISTANCES:
            raise ValueError(
                f"method.level '{self.level}' has no metric '{self.metric}'; choose one of {name_levels(DISTANCES)}"
            )
        if project == "none" and self.level not in ANY_CHANNELS:
            raise ValueError(
                f"method.project is none, but level '{self.level}' compares channel with channel; "
                f"without a projection choose one of {', '.join(sorted(ANY_CHANNELS))}"
            )
        check_takes_standardise(self.level, self.standardise)

    def align_loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        """The alignment loss of one batch. The teacher's side is not detached here."""
        if self.level in LOGIT_DISTANCES:
            logits = self.shuffled(teacher.cls_logits_BK)
            tempered = {"tau": self.tau} if self.level in TEMPERED else {}
            return LOGIT_DISTANCES[self.level](student.cls_logits_BK, logits, **tempered)
        target_BThw = self.shuffled(target_map(self.target, teacher))
        target_BThw = resize(target_BThw, student.patches_BDhw.shape[-2:])
        if self.project_target is not None:
            target_BThw = self.project_target(target_BThw)
        return alignment_distance(
            self.student_map(student).flatten(2),
            target_BThw.flatten(2),
            level=self.level,  # type: ignore[arg-type]  # the levels of logits have returned above
            metric=self.metric,
            standardise=self.standardise,
            tau=self.tau,
        )

    def student_map(self, out: Outputs) -> Tensor:
        """The student's side of the alignment, (B, T, h, w)."""
        return out.patches_BDhw if self.project is None else self.project(out.patches_BDhw)

    def check_images(self, images: int) -> None:
        if self.shuffle_teacher and images < 2:
            raise ValueError(
                "method.shuffle_teacher: a process has one image at a time, which would be aligned with its own map; "
                "wanted two or more: raise data.global_batch_size, or lower launch.processes or train.accumulate"
            )

    def shuffled(self, of_images: Tensor) -> Tensor:
        """The teacher's tensors, shifted by one image if shuffle_teacher is set."""
        self.check_images(len(of_images))
        return of_images.roll(1, dims=0) if self.shuffle_teacher else of_images

    def without_alignment(self) -> Tensor:
        """The alignment's part in the loss of a step that does not compute it: 0, see left_out."""
        return left_out(module for module in (self.project, self.project_target) if module is not None)

    def projected_maps(self, out: Outputs, teacher: Network) -> dict[str, Tensor]:
        """{`project`: (B, K, h, w)} where the projection can be read as class maps, else nothing."""
        if not self.readable:
            return {}
        projected_BThw = self.student_map(out)
        if self.target == "features":
            return {"project": teacher.head(projected_BThw)}
        return {"project": projected_BThw[:, : teacher.num_classes]}


def count_channels(target: Target, teacher: Network) -> int:
    """T, the number of channels of this teacher tensor."""
    classes = teacher.num_classes
    widths = {"features": teacher.feature_dim, "background": 1, "class_map+background": classes + 1}
    return widths.get(target, classes)


def check_target(target: Target, teacher: Network) -> None:
    """Raise ValueError unless the teacher gives all tensors that the target is made of."""
    known = ("class_map", "features", *teacher.map_names)
    if missing := [part for part in target.split("+") if part not in known]:
        raise ValueError(
            f"method.target: the teacher gives no {missing}, only {sorted(known)}; 'no_pcm' needs a teacher of model "
            "pcm, 'background' one with background: true"
        )


def target_map(target: Target, teacher: Outputs) -> Tensor:
    """The teacher tensor (B, T, h, w) of this name."""
    tensors = {"class_map": teacher.class_map_BKhw, "features": teacher.patches_BDhw, **teacher.maps}
    parts = target.split("+")
    return torch.cat([tensors[part] for part in parts], dim=1) if len(parts) > 1 else tensors[target]


def orthonormal(dim: int, width: int) -> nn.Conv2d:
    """A fixed linear map from `dim` to `width` channels with orthonormal rows or columns, so that it preserves angles
    as far as possible."""
    layer = nn.Conv2d(dim, width, kernel_size=1, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer.requires_grad_(False)
