"""Cross-architecture consistency: the distance between a student's and a teacher's feature map.

    distance(S, T),   S (B, D, N) and T (B, D', N): B images, D and D' channels, N = h * w positions

A level says what is compared: it turns each map into vectors, (B, D, N) -> (..., n), n entries each. A metric says how
two sets of vectors differ, as a mean over them. DISTANCES holds the pairs that make sense and, under `legacy.`, the
published forms; LOGIT_DISTANCES compares class logits (B, K), K classes. All have gradients with respect to both sides;
the tensors of a frozen teacher have no graph.

Source: smoke paper, Eq. 3.2-3.3 and Tables 4.7, 4.9, in the forms of D-05 and D-21.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.losses.legacy import LEGACY_DISTANCES, softmax_kl
from wsss.tensors import at_least_float32, full_precision

# fmt: off
Level = Literal[
    "global", "pooled", "spatial", "channel", "channel_pairs", "channel_softmax", "inner",
    "map_mean", "map_max", "map_power",
    "legacy.global", "legacy.spatial", "legacy.channel_pairs", "legacy.map_mean", "legacy.inner",
]
# fmt: on
Metric = Literal["cosine", "centred_cosine", "l1", "l2", "mse", "kl"]
LogitLevel = Literal["logits", "legacy.logits"]
Distance = Callable[[Tensor, Tensor], Tensor]

ANY_CHANNELS = {"channel_pairs", "map_mean", "map_max", "map_power", "legacy.channel_pairs", "legacy.map_mean"}
EPS = 1e-6


def alignment_distance(
    student_BDN: Tensor,
    teacher_BDN: Tensor,
    *,
    level: Level = "global",
    metric: Metric = "cosine",
    standardise: bool = False,
    tau: float = 1.0,
) -> Tensor:
    """Distance between two feature maps, in float32 or better also under autocast.

    Args:
        standardise: first give each channel of both maps zero mean and unit variance over its positions, so that the
            metric compares the pattern and not the scale.
        tau: temperature > 0 of channel_softmax: tau^2 distance(S / tau, T / tau).

    Returns:
        Scalar >= 0. Equal maps give 0, except channel_pairs always and the cosines where a vector is 0.

    Raises:
        ValueError: shapes that do not fit; no such level and metric; a tau that the level does not use; standardise
            with pooled.
    """
    if (level, metric) not in DISTANCES:
        raise ValueError(
            f"there is no alignment of level '{level}' and metric '{metric}'; choose one of {name_levels(DISTANCES)}"
        )
    check_shapes(student_BDN, teacher_BDN, level)
    check_takes_temperature(level, tau)
    check_takes_standardise(level, standardise)
    with full_precision(student_BDN):
        student_BDN, teacher_BDN = at_least_float32(student_BDN), at_least_float32(teacher_BDN)
        if standardise:
            student_BDN, teacher_BDN = standardised(student_BDN), standardised(teacher_BDN)
        if tau != 1:
            return tau**2 * DISTANCES[level, metric](student_BDN / tau, teacher_BDN / tau)
        return DISTANCES[level, metric](student_BDN, teacher_BDN)


def bernoulli_kl(student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, tau: float = 1.0) -> Tensor:
    """KL divergence of the student's class probabilities from the teacher's, for each class on its own.

        tau^2 mean_bk [p log(p / q) + (1 - p) log((1 - p) / (1 - q))],   p = sigmoid(t / tau),  q = sigmoid(s / tau)

    Its gradient is tau (q - p) / (B K): not 0 for a single class, unlike that of legacy.softmax_kl.

    Raises:
        ValueError: shapes differ, or tau <= 0.
    """
    if student_logits_BK.shape != teacher_logits_BK.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_BK.shape)} and teacher logits {tuple(teacher_logits_BK.shape)} "
            "must have the same (B, K): train both on the same classes"
        )
    check_temperature(tau)
    s_BK, t_BK = at_least_float32(student_logits_BK) / tau, at_least_float32(teacher_logits_BK) / tau
    positive_BK = torch.sigmoid(t_BK) * (F.logsigmoid(t_BK) - F.logsigmoid(s_BK))
    negative_BK = torch.sigmoid(-t_BK) * (F.logsigmoid(-t_BK) - F.logsigmoid(-s_BK))
    return tau**2 * (positive_BK + negative_BK).mean()


def check_shapes(student_BDN: Tensor, teacher_BDN: Tensor, level: str) -> None:
    """Raise ValueError unless both maps have the same shape (B, D, N); at the levels of ANY_CHANNELS their D may
    differ."""
    student, teacher = tuple(student_BDN.shape), tuple(teacher_BDN.shape)
    if level in ANY_CHANNELS:
        fits, wanted = student[::2] == teacher[::2], "B and N: resize the grid first"
    else:
        fits, wanted = student == teacher, "(B, D, N): project the channels and resize the grid first"
    if not fits or len(student) != 3 or len(teacher) != 3:
        raise ValueError(f"student {student} and teacher {teacher} must have the same {wanted}")


def check_temperature(tau: float) -> None:
    """Raise ValueError unless tau > 0."""
    if not tau > 0:
        raise ValueError(f"tau is {tau}; wanted > 0")


def check_takes_temperature(level: str, tau: float) -> None:
    """Raise ValueError unless tau is 1 or the level has a temperature."""
    check_temperature(tau)
    if tau != 1 and level not in TEMPERED:
        raise ValueError(
            f"tau is {tau} at the level '{level}'; only {', '.join(TEMPERED)} have a temperature: leave it at 1"
        )


def check_takes_standardise(level: str, standardise: bool) -> None:
    """Raise ValueError if standardise removes what a level compares."""
    if standardise and level == "pooled":
        raise ValueError(
            "standardise makes every spatial mean 0, and level 'pooled' compares these means: choose another level"
        )


def name_levels(pairs: dict[tuple[str, str], Distance]) -> str:
    """Name the levels with their metrics: 'channel (cosine, l1, l2), global (...)'."""
    metrics_of: dict[str, list[str]] = {}
    for level, metric in sorted(pairs):
        metrics_of.setdefault(level, []).append(metric)
    return ", ".join(f"{level} ({', '.join(metrics)})" for level, metrics in metrics_of.items())


def standardised(x_BDN: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-6) of each channel over its positions."""
    variance, mean = torch.var_mean(x_BDN, dim=-1, keepdim=True, correction=0)
    return (x_BDN - mean) / torch.sqrt(variance + EPS)


# Levels: (B, D, N) -> vectors (..., n).


def whole_map(x_BDN: Tensor) -> Tensor:
    """vec X_b, (B, D N): one vector per image. Eq. 3.2-3.3 as published, on the flattened map."""
    return x_BDN.flatten(1)


def spatial_mean(x_BDN: Tensor) -> Tensor:
    """mean_n X_bdn, (B, D). Eq. 3.2-3.3 as written; wants D >= 64: at D = 2, random vectors have mean |cos| 0.63."""
    return x_BDN.mean(dim=2)


def positions(x_BDN: Tensor) -> Tensor:
    """X_b:n, (B, N, D): one vector per position."""
    return x_BDN.transpose(1, 2)


def channels(x_BDN: Tensor) -> Tensor:
    """X_bd:, (B, D, N): one vector per channel, compared with its own counterpart."""
    return x_BDN


def channel_log_softmax(x_BDN: Tensor) -> Tensor:
    """log softmax_n X_bdn, (B, D, N): each channel as a distribution over positions. Shu et al. 2021 (CWD)."""
    return F.log_softmax(x_BDN, dim=2)


def gram(x_BDN: Tensor) -> Tensor:
    """vec(X_b X_b^T / N), (B, D D): how the channels vary together."""
    return (x_BDN @ x_BDN.transpose(1, 2) / x_BDN.shape[2]).flatten(1)


def channel_mean(x_BDN: Tensor) -> Tensor:
    """mean_d X_bdn, (B, N)."""
    return x_BDN.mean(dim=1)


def channel_max(x_BDN: Tensor) -> Tensor:
    """max_d X_bdn, (B, N)."""
    return x_BDN.amax(dim=1)


def channel_power(x_BDN: Tensor) -> Tensor:
    """mean_d X_bdn^2, (B, N). Zagoruyko and Komodakis 2017, attention transfer, up to the factor D."""
    return x_BDN.square().mean(dim=1)


# Metrics: vectors (..., n) of the student and of the teacher -> scalar, a mean over the vectors.


def cosine(s: Tensor, t: Tensor) -> Tensor:
    """1 - mean s.t / (max(|s|, 1e-6) max(|t|, 1e-6)), in [0, 2]."""
    return 1 - (F.normalize(s, dim=-1, eps=EPS) * F.normalize(t, dim=-1, eps=EPS)).sum(-1).mean()


def centred_cosine(s: Tensor, t: Tensor) -> Tensor:
    """cosine of s - mean s and t - mean t: 1 - Pearson correlation, in [0, 2]."""
    return cosine(s - s.mean(dim=-1, keepdim=True), t - t.mean(dim=-1, keepdim=True))


def l1(s: Tensor, t: Tensor) -> Tensor:
    """mean |s - t| over entries."""
    return (s - t).abs().mean()


def l2(s: Tensor, t: Tensor) -> Tensor:
    """mean |s - t|_2 / sqrt(n): root mean square of each vector's difference; gradient 0 where that is 0."""
    return (torch.linalg.vector_norm(s - t, dim=-1) / math.sqrt(s.shape[-1])).mean()


def mse(s: Tensor, t: Tensor) -> Tensor:
    """mean (s - t)^2 over entries."""
    return (s - t).square().mean()


def kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    """mean sum_n t (log t - log s) of distributions given as logarithms."""
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def channel_pairs_cosine(student_BDN: Tensor, teacher_BDN: Tensor) -> Tensor:
    """1 - mean_bij cos(S_bi:, T_bj:) over all pairs of channels = 1 - mean_b (mean_i S_i / |S_i|).(mean_j T_j / |T_j|).

    It cannot reach 0: at best 1 - |mean_j T_j / |T_j||, which for two teacher channels at cosine rho is
    1 - sqrt((1 + rho) / 2), with all student channels equal (D-22).
    """
    student_BN, teacher_BN = (F.normalize(x, dim=2, eps=EPS).mean(dim=1) for x in (student_BDN, teacher_BDN))
    return 1 - (student_BN * teacher_BN).sum(-1).mean()


METRICS = {"cosine": cosine, "centred_cosine": centred_cosine, "l1": l1, "l2": l2, "mse": mse, "kl": kl}
LEVELS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {  # level -> its vectors, its metrics
    "global": (whole_map, ("cosine", "l1", "l2", "mse")),
    "pooled": (spatial_mean, ("cosine", "l1", "l2")),
    "spatial": (positions, ("cosine", "l1", "l2")),
    "channel": (channels, ("cosine", "l1", "l2")),
    "channel_softmax": (channel_log_softmax, ("kl",)),
    "inner": (gram, ("cosine", "l1", "l2")),
    "map_mean": (channel_mean, ("cosine", "centred_cosine", "l1", "l2")),
    "map_max": (channel_max, ("cosine", "centred_cosine", "l1", "l2")),
    "map_power": (channel_power, ("cosine", "centred_cosine", "l1", "l2")),
}


def compare(vectors_of: Callable[[Tensor], Tensor], metric: Distance) -> Distance:
    """A metric of the vectors of a level."""
    return lambda student_BDN, teacher_BDN: metric(vectors_of(student_BDN), vectors_of(teacher_BDN))


DISTANCES: dict[tuple[str, str], Distance] = {
    **{
        (level, name): compare(vectors_of, METRICS[name])
        for level, (vectors_of, names) in LEVELS.items()
        for name in names
    },
    ("channel_pairs", "cosine"): channel_pairs_cosine,
    **LEGACY_DISTANCES,
}
TEMPERED = ("channel_softmax", "logits")
"""Levels with a temperature."""

LOGIT_DISTANCES: dict[str, Callable[..., Tensor]] = {"logits": bernoulli_kl, "legacy.logits": softmax_kl}
