"""Cross-architecture consistency: how far a student's feature map is from a teacher's.

    distance(S, T) for S, T of shape (B, D, N): B images, D channels, N = h * w positions,

at a level (what is compared: the whole map, each position, each channel) by a metric (cosine, L1, L2). All are
0 for equal maps and carry gradient to the student only, since the teacher comes in detached.

Source: smoke paper, Eq. 3.2-3.3 and Table 4.7; forms as in spec 2.3, "recommended".
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Level = Literal["global", "spatial", "channel"]
Metric = Literal["cosine", "l1", "l2"]

EPS = 1e-6


def alignment_distance(
    student_BDN: Tensor,
    teacher_BDN: Tensor,
    *,
    level: Level = "global",
    metric: Metric = "cosine",
    standardise: bool = False,
) -> Tensor:
    """Distance between two feature maps of equal shape, in float32 or better.

    Args:
        standardise: first give each channel of both maps zero mean and unit variance over its positions, so
            that the metric sees the pattern and not the scale.

    Returns:
        Scalar >= 0.

    Raises:
        ValueError: shapes differ (project the channels and resize the grid first), or no such level or metric.
    """
    if student_BDN.shape != teacher_BDN.shape:
        raise ValueError(
            f"student {tuple(student_BDN.shape)} and teacher {tuple(teacher_BDN.shape)} must have the same "
            "(B, D, N): project the channels and resize the grid first"
        )
    if (level, metric) not in DISTANCES:
        raise ValueError(f"no alignment of level '{level}' and metric '{metric}'; there are {sorted(DISTANCES)}")
    student_BDN, teacher_BDN = at_least_float32(student_BDN), at_least_float32(teacher_BDN)
    if standardise:
        student_BDN, teacher_BDN = standardised(student_BDN), standardised(teacher_BDN)
    return DISTANCES[level, metric](student_BDN, teacher_BDN)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def standardised(x_BDN: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-6) of each channel over its positions."""
    variance, mean = torch.var_mean(x_BDN, dim=-1, keepdim=True, correction=0)
    return (x_BDN - mean) / torch.sqrt(variance + EPS)


def cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """a.b / (max(|a|, eps) max(|b|, eps)) along one axis."""
    return (F.normalize(a, dim=dim, eps=EPS) * F.normalize(b, dim=dim, eps=EPS)).sum(dim)


def rms(difference: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Euclidean length over the square root of the number of entries; gradient 0 at length 0."""
    dims = (dim,) if isinstance(dim, int) else dim
    entries = math.prod(difference.shape[d] for d in dims)
    return torch.linalg.vector_norm(difference, dim=dim) / math.sqrt(entries)


def global_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_b cos(vec S_b, vec T_b): one angle per image. Eq. 3.2-3.3 on the flattened map."""
    return 1 - cosine(student_BDN.flatten(1), teacher_BDN.flatten(1), dim=1).mean()


def spatial_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bn cos(S_b:n, T_b:n): one angle per position."""
    return 1 - cosine(student_BDN, teacher_BDN, dim=1).mean()


def channel_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bd cos(S_bd:, T_bd:): one angle per channel, each with its own counterpart."""
    return 1 - cosine(student_BDN, teacher_BDN, dim=2).mean()


def mean_absolute(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean |S - T|: the same at every level."""
    return (student_BDN - teacher_BDN).abs().mean()


def global_l2(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_b |S_b - T_b|_2 / sqrt(D N)."""
    return rms(student_BDN - teacher_BDN, dim=(1, 2)).mean()


def spatial_l2(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_bn |S_b:n - T_b:n|_2 / sqrt(D)."""
    return rms(student_BDN - teacher_BDN, dim=1).mean()


def channel_l2(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_bd |S_bd: - T_bd:|_2 / sqrt(N)."""
    return rms(student_BDN - teacher_BDN, dim=2).mean()


DISTANCES: dict[tuple[str, str], Callable[[Tensor, Tensor], Tensor]] = {
    ("global", "cosine"): global_cosine,
    ("global", "l1"): mean_absolute,
    ("global", "l2"): global_l2,
    ("spatial", "cosine"): spatial_cosine,
    ("spatial", "l1"): mean_absolute,
    ("spatial", "l2"): spatial_l2,
    ("channel", "cosine"): channel_cosine,
    ("channel", "l1"): mean_absolute,
    ("channel", "l2"): channel_l2,
}
