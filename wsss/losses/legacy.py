"""The alignment terms in the form in which the smoke paper's code has them. For reproducing its tables only.

    B images, D and D' channels, N positions, K classes; S (B, D, N) of the student, T (B, D', N) of the teacher

Nothing here is a default, and each is worse than its counterpart in align.py:

- legacy.global, legacy.map_mean, l2: the length is not divided by the square root of the number of entries, so it
  grows with the grid and drowns the classification loss.
- legacy.channel_pairs: compares every channel with every other, so it cannot reach 0 and makes all student channels
  alike; use channel.
- legacy.inner: angles of the single columns of X X^T, not of the whole matrix; use inner.
- legacy.map_mean, cosine: not centred, so the mean level of a map counts as agreement; use centred_cosine.
- legacy.logits: softmax over classes that do not exclude each other, and always 0 for one class; use
  align.bernoulli_kl.
- legacy.global, legacy.spatial, cosine: the same formulas as in align.py with eps 1e-8 in place of 1e-6; here so that a
  study names one family. legacy.global and legacy.map_mean, l1, equal their counterparts.

If the numbers of channels differ, the published code inserts a new random layer at every step; this is not reproduced
(D-03). For the second channel of the published target see D-02.

Source: smoke paper's code (D-21); checked against the golden vectors `align` (legacy_*) and `bkl`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32

EPS = 1e-8


def global_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_b cos(vec S_b, vec T_b)."""
    return 1 - F.cosine_similarity(student_BDN.flatten(1), teacher_BDN.flatten(1), dim=1, eps=EPS).mean()


def global_l1(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean |S - T|."""
    return (student_BDN - teacher_BDN).abs().mean()


def global_l2(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_b |vec S_b - vec T_b|_2, not divided by sqrt(D N)."""
    return torch.linalg.vector_norm(student_BDN - teacher_BDN, dim=(1, 2)).mean()


def spatial_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bn cos(S_b:n, T_b:n)."""
    return 1 - F.cosine_similarity(student_BDN, teacher_BDN, dim=1, eps=EPS).mean()


def channel_pairs_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bij cos(S_bi:, T_bj:); the mean over pairs is taken as the product of two means."""
    student_BN, teacher_BN = (F.normalize(x, dim=2, eps=EPS).mean(dim=1) for x in (student_BDN, teacher_BDN))
    return 1 - (student_BN * teacher_BN).sum(dim=1).mean()


def map_mean_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_b cos(mean_d S_bd:, mean_d T_bd:)."""
    return 1 - F.cosine_similarity(student_BDN.mean(dim=1), teacher_BDN.mean(dim=1), dim=1, eps=EPS).mean()


def map_mean_l1(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_bn |mean_d S - mean_d T|."""
    return (student_BDN.mean(dim=1) - teacher_BDN.mean(dim=1)).abs().mean()


def map_mean_l2(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """mean_b |mean_d S_bd: - mean_d T_bd:|_2, not divided by sqrt(N)."""
    return torch.linalg.vector_norm(student_BDN.mean(dim=1) - teacher_BDN.mean(dim=1), dim=1).mean()


def inner_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bj cos(column j of S_b S_b^T, column j of T_b T_b^T)."""
    student_BDD, teacher_BDD = (x_BDN @ x_BDN.transpose(1, 2) for x_BDN in (student_BDN, teacher_BDN))
    return 1 - F.cosine_similarity(student_BDD, teacher_BDD, dim=1, eps=EPS).mean()


def softmax_kl(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """mean_b KL(softmax_k(t) || softmax_k(s)), in float32 or better, without a temperature, as published.

    Value and gradient are 0 if K = 1.

    Raises:
        ValueError: shapes differ.
    """
    student, teacher = tuple(student_logits_BK.shape), tuple(teacher_logits_BK.shape)
    if student != teacher:
        raise ValueError(f"softmax_kl: student {student}, teacher {teacher}; wanted equal (B, K)")
    log_student_BK = F.log_softmax(at_least_float32(student_logits_BK), dim=1)
    log_teacher_BK = F.log_softmax(at_least_float32(teacher_logits_BK), dim=1)
    return (log_teacher_BK.exp() * (log_teacher_BK - log_student_BK)).sum(dim=1).mean()


LEGACY_DISTANCES: dict[tuple[str, str], Callable[[Tensor, Tensor], Tensor]] = {
    ("legacy.global", "cosine"): global_cosine,
    ("legacy.global", "l1"): global_l1,
    ("legacy.global", "l2"): global_l2,
    ("legacy.spatial", "cosine"): spatial_cosine,
    ("legacy.channel_pairs", "cosine"): channel_pairs_cosine,
    ("legacy.map_mean", "cosine"): map_mean_cosine,
    ("legacy.map_mean", "l1"): map_mean_l1,
    ("legacy.map_mean", "l2"): map_mean_l2,
    ("legacy.inner", "cosine"): inner_cosine,
}
