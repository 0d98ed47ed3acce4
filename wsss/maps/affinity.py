"""AffinityNet: pairs of neighbouring positions, their affinities, and CAMs propagated by a random walk.

Shapes: B images, K classes, n of them in one image, D channels, h x w grid of N = h * w positions, O offsets,
P positions that have all O neighbours inside the grid; a pair is (from, to) with to = from + offset.

Source: Ahn & Kwak 2018 (AffinityNet) as the smoke paper uses it (D-31); golden `affinity`.
"""

import torch
from torch import Tensor

from wsss.tensors import at_least_float32

EPS = 1e-5


def pair_offsets(radius: int) -> list[tuple[int, int]]:
    """(dy, dx) of the neighbours closer than the radius, one of each two opposite ones: 34 for radius 5, 22 for 4.

    Raises:
        ValueError: radius below 2, which has no neighbours.
    """
    if radius < 2:
        raise ValueError(f"radius is {radius}; wanted 2 or more, so that a position has a neighbour")
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2]
    return right + below


def window(height: int, width: int, radius: int) -> tuple[int, int]:
    """Number of rows and columns of the `from` positions, which begin at row 0 and column radius - 1.

    Raises:
        ValueError: the grid has no position with all its neighbours inside.
    """
    rows, columns = height - radius + 1, width - 2 * (radius - 1)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a {height} x {width} grid has no pairs of radius {radius}: wanted at least {radius} x {2 * radius - 1}; "
            "take a larger image or a smaller radius"
        )
    return rows, columns


def pair_indices(height: int, width: int, radius: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row-major positions of all pairs: from (P), to (O, P), int64.

    As published, `from` keeps radius - 1 cells from the left, the right and the lower border, so that all its
    neighbours exist. The pairs along these borders are therefore incomplete, and the outermost corner cells at the
    bottom (10 cells for radius 5) are in no pair: a walk leaves them as they are.

    Raises:
        ValueError: see window.
    """
    rows, columns = window(height, width, radius)
    row_R, column_S = torch.arange(rows, device=device), torch.arange(columns, device=device)
    from_P = (row_R[:, None] * width + column_S + radius - 1).flatten()
    steps_O = torch.tensor([dy * width + dx for dy, dx in pair_offsets(radius)], device=device)
    return from_P, from_P + steps_O[:, None]


def pair_affinity(features_BDhw: Tensor, radius: int) -> Tensor:
    """exp(-mean_c |f_from - f_to|) of every pair, in float32 or better.

    It uses shifted views instead of indices, since the backward pass of indexing adds in no fixed order on a GPU.

    Returns:
        (B, O, P) in (0, 1].

    Raises:
        ValueError: see window.
    """
    origin, *neighbours = pair_views(at_least_float32(features_BDhw), radius)
    distances = [(neighbour - origin).abs().mean(dim=1).flatten(1) for neighbour in neighbours]
    return torch.exp(-torch.stack(distances, dim=1))


def pair_views(x: Tensor, radius: int) -> list[Tensor]:
    """(..., h, w) -> views of the P `from` and of the P neighbours at each of the O offsets, each (..., rows, columns).

    Raises:
        ValueError: see window.
    """
    rows, columns = window(x.shape[-2], x.shape[-1], radius)
    return [
        x[..., dy : dy + rows, radius - 1 + dx : radius - 1 + dx + columns]
        for dy, dx in [(0, 0), *pair_offsets(radius)]
    ]


def transition_matrix(affinity_OP: Tensor, size: tuple[int, int], *, radius: int = 5, beta: float = 16.0) -> Tensor:
    """T_ij, the share of position i in position j after one step, in float32 or better.

        W = affinity of each pair both ways, 1 on the diagonal, 0 elsewhere;   T = W^beta / column sums

    with beta elementwise.

    Args:
        affinity_OP: (O, P) or (B, O, P).
        size: (h, w) of the grid.

    Returns:
        (N, N) or (B, N, N), columns sum to 1.

    Raises:
        ValueError: the affinities do not belong to this grid and radius.

    Source: Ahn & Kwak 2018, Eq. 10-11; smoke paper's beta 16 (D-31).
    """
    from_P, to_OP = pair_indices(*size, radius, affinity_OP.device)
    if affinity_OP.shape[-2:] != to_OP.shape:
        raise ValueError(
            f"affinities {tuple(affinity_OP.shape)} for a grid of {size[0]} x {size[1]} and radius {radius}: wanted "
            f"{tuple(to_OP.shape)} offsets and positions; use the radius and the grid that they were computed with"
        )
    strength = at_least_float32(affinity_OP) ** beta
    walk = torch.eye(size[0] * size[1], dtype=strength.dtype, device=strength.device)
    walk = walk.repeat(*affinity_OP.shape[:-2], 1, 1)
    walk[..., from_P.expand_as(to_OP), to_OP] = strength
    walk[..., to_OP, from_P.expand_as(to_OP)] = strength
    return walk / walk.sum(dim=-2, keepdim=True)


def random_walk(cam_nhw: Tensor, walk_NN: Tensor) -> Tensor:
    """cam' = cam T, with the CAM as a row vector: every position becomes a weighted mean of the positions similar to
    it.

    Args:
        cam_nhw: (n, h, w) or (B, n, h, w); walk_NN: (N, N) or (B, N, N) from transition_matrix.
    """
    return (cam_nhw.flatten(-2).to(walk_NN.dtype) @ walk_NN).unflatten(-1, cam_nhw.shape[-2:])
