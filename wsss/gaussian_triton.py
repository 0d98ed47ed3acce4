"""The sum of gaussian_sum as a Triton kernel for GPUs: pairs that are too far apart to matter are left out.

Points are sorted by colour, so that a tile of TILE x TILE pairs is near or far as a whole; a tile whose bounding boxes
are further apart than FAR is not computed. In the others the exponent

    -|f_i - f_j|^2 = 2 f_i.f_j - |f_i|^2 - |f_j|^2

is a product on the matrix units, of features that are split into float16 parts whose sum holds 22 bits.

Shapes: B images, N points, D = 5 features of a point (y, x, r, g, b), C values, W = C and what is added to it, T tiles
of TILE points, M = T * TILE, S stripes of some tiles of rows each.
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

FAR = 24.0
"""exp(-|f_i - f_j|^2 / 2) < 2^-FAR is taken as 0: of 50,000 points less than 0.003 of one of them."""

AT_A_TIME = 1 << 24
"""Pairs of tiles whose distance is looked at together."""

TILE = 64
STRIPE = 1  # tiles of rows that are summed together: with 2 a sum reads half as much of the columns, in fewer programs
WARPS = 4  # of a tile of rows
WIDTH_MULTIPLE = 8  # of float16: what is copied at once
CODE_BITS = 10
SPLIT = 32  # numbers of a point as a row of split_features


@torch.library.custom_op("wsss::gaussian_sum", mutates_args=())
def triton_gaussian_sum(features_BND: Tensor, values_BNC: Tensor, stripe: int = STRIPE) -> Tensor:
    """out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j of centred features, (B, N, C) float32.

    Values and weights are multiplied in float16 and added in float32. `stripe` is 1, 2 or 4 (see STRIPE).
    """
    batch, points, classes = values_BNC.shape
    order_BN1 = torch.empty_like(features_BND[..., 0], dtype=torch.int32)
    low_B3 = features_BND[..., 2:].amin(dim=1)
    span_B = (features_BND[..., 2:].amax(dim=1) - low_B3).amax(dim=1).clamp(min=1e-9)
    colour_code[(triton.cdiv(points, 1024), batch)](
        features_BND.contiguous(), low_B3.contiguous(), span_B, order_BN1, points, BITS=CODE_BITS, BLOCK=1024
    )
    order_BN1 = order_BN1.argsort(dim=1)[..., None]
    stripes = triton.cdiv(points, stripe * TILE)
    tiles = stripes * stripe
    padding = tiles * TILE - points
    scaled_BND = (features_BND * math.sqrt(math.log2(math.e) / 2)).gather(1, order_BN1.expand(-1, -1, 5))
    padded_BMD = torch.cat([scaled_BND, scaled_BND[:, -1:].expand(-1, padding, -1)], dim=1)
    which_BST, count_BS = near_columns(padded_BMD.unflatten(1, (tiles, TILE)), stripe)
    width = triton.cdiv(classes, WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    sorted_BNC = values_BNC.gather(1, order_BN1.expand(-1, -1, classes)).half()
    sorted_BMW = F.pad(sorted_BNC, (0, width - classes, 0, padding))  # what is added has no value
    out_BMW = torch.empty(batch, tiles * TILE, width, dtype=torch.float32, device=features_BND.device)
    left_BMK, right_BMK = split_features(padded_BMD)
    near_sums[(stripes, batch)](
        left_BMK,
        right_BMK,
        sorted_BMW.contiguous(),
        which_BST,
        count_BS,
        out_BMW,
        tiles * TILE,
        tiles,
        WIDTH=width,
        C=padded_classes(classes),
        K=left_BMK.shape[2],
        TILE=TILE,
        STRIPE=stripe,
        num_warps=WARPS * stripe,
    )
    out_BNC = torch.empty(batch, points, classes, dtype=torch.float32, device=features_BND.device)
    return out_BNC.scatter_(1, order_BN1.expand(-1, -1, classes), out_BMW[:, :points, :classes])


@register_flop_formula(torch.ops.wsss.gaussian_sum)
def flops_of(features_BND: torch.Size, values_BNC: torch.Size, *_: object, **__: object) -> int:
    """With every tile near: what is skipped depends on the image."""
    batch, points, classes = values_BNC
    return 2 * batch * points**2 * (SPLIT + padded_classes(classes))


def padded_classes(classes: int) -> int:
    """What a product on the matrix units wants."""
    return max(16, triton.next_power_of_2(classes))


@triton_gaussian_sum.register_fake
def _(features_BND: Tensor, values_BNC: Tensor, stripe: int = STRIPE) -> Tensor:
    return torch.empty(values_BNC.shape, dtype=torch.float32, device=features_BND.device)


def split_features(points_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, M, SPLIT) float16 whose products of rows are -|f_i - f_j|^2."""
    high_BMD, low_BMD = split_half(points_BMD)
    square_BM1 = points_BMD.square().sum(dim=2, keepdim=True)
    first_BM1, rest_BM1 = split_half(-square_BM1)
    norm_BM3 = torch.cat([first_BM1, *split_half(rest_BM1)], dim=2)
    one_BM3 = torch.ones_like(norm_BM3)
    left = [2 * high_BMD, 2 * high_BMD, 2 * low_BMD, 2 * low_BMD, norm_BM3, one_BM3]
    right = [high_BMD, low_BMD, high_BMD, low_BMD, one_BM3, norm_BM3]
    left_BMK, right_BMK = torch.cat(left, dim=2), torch.cat(right, dim=2)
    padding = (0, SPLIT - left_BMK.shape[2])
    return F.pad(left_BMK, padding).half(), F.pad(right_BMK, padding).half()


def split_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """What of x float16 can hold, and what is left, both as float32."""
    high = x.half().float()
    return high, x - high


def near_columns(points_BTID: Tensor, stripe: int = 1) -> tuple[Tensor, Tensor]:
    """The columns of the near tiles of each stripe, first in (B, S, T) int32, and how many they are, (B, S) int32.

    So many stripes at a time that what only they need stays below 2 GB; the columns of 1920 x 1080 points are 4 GB.
    """
    batch, tiles = points_BTID.shape[:2]
    stripes = tiles // stripe
    low_BTD, high_BTD = points_BTID.amin(dim=2), points_BTID.amax(dim=2)
    low_BSD = low_BTD.unflatten(1, (stripes, stripe)).amin(dim=2)
    high_BSD = high_BTD.unflatten(1, (stripes, stripe)).amax(dim=2)
    which_BST = torch.empty(batch, stripes, tiles, dtype=torch.int32, device=points_BTID.device)
    count_BS = torch.empty(batch, stripes, dtype=torch.int32, device=points_BTID.device)
    at_a_time = max(1, AT_A_TIME // (batch * tiles))
    for top in range(0, stripes, at_a_time):
        few = slice(top, top + at_a_time)
        near_BtT = near_tiles(low_BSD[:, few], high_BSD[:, few], low_BTD, high_BTD)
        which_BST[:, few], count_BS[:, few] = compacted(near_BtT)
    return which_BST, count_BS


def near_tiles(low_BtD: Tensor, high_BtD: Tensor, low_BTD: Tensor, high_BTD: Tensor) -> Tensor:
    """(B, t, T) bool: which tiles have points that may be near those of some stripes, by the boxes of both; scaled so
    that exponents are powers of 2."""
    gap_BtTD = torch.maximum(low_BtD[:, :, None] - high_BTD[:, None], low_BTD[:, None] - high_BtD[:, :, None])
    return gap_BtTD.clamp_(min=0).square_().sum(dim=3) < FAR


def compacted(near_BtT: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the near tiles of each row, first in (B, t, T) int32, and how many they are, (B, t) int32."""
    place_BtT = near_BtT.cumsum(dim=2, dtype=torch.int32)
    count_Bt = place_BtT[..., -1]
    tiles = near_BtT.shape[2]
    column_BtT = torch.arange(tiles, dtype=torch.int32, device=near_BtT.device).expand_as(near_BtT)
    behind = torch.where(near_BtT, place_BtT - 1, tiles)  # what is far lands in a column that is cut off
    which_BtT = torch.zeros(*near_BtT.shape[:2], tiles + 1, dtype=torch.int32, device=near_BtT.device)
    return which_BtT.scatter_(2, behind.long(), column_BtT)[..., :tiles], count_Bt


@triton.jit
def colour_code(feature_ptr, low_ptr, span_ptr, code_ptr, points, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Interleave the bits of the three colours: what is near in this code is near in colour."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < points
    span = tl.load(span_ptr + image)
    code = tl.zeros((BLOCK,), dtype=tl.int32)
    for colour in tl.static_range(3):
        value = tl.load(feature_ptr + (image * points + row) * 5 + 2 + colour, mask=inside, other=0.0)
        level = ((value - tl.load(low_ptr + image * 3 + colour)) / span * ((1 << BITS) - 1)).to(tl.int32)
        for bit in tl.static_range(BITS):
            code |= ((level >> bit) & 1) << (3 * bit + colour)
    tl.store(code_ptr + image * points + row, code, mask=inside)


@triton.jit
def near_sums(
    left_ptr,
    right_ptr,
    v_ptr,
    which_ptr,
    count_ptr,
    out_ptr,
    points,
    tiles,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    TILE: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """One stripe of rows against all its near tiles of columns.

    left, right: (B, M, K) float16, see split_features; v: (B, M, W) float16; which, count: see near_columns;
    out: (B, M, W) float32; M = `points`, W = WIDTH; C is the power of 2 that a product wants.
    """
    stripe, image = tl.program_id(0), tl.program_id(1)
    row = image * points + stripe * STRIPE * TILE + tl.arange(0, STRIPE * TILE)
    k, c = tl.arange(0, K), tl.arange(0, C)
    is_value = c[None, :] < WIDTH
    left = tl.load(left_ptr + row[:, None] * K + k[None, :])
    total = tl.zeros((STRIPE * TILE, C), dtype=tl.float32)
    place = image * (tiles // STRIPE) + stripe
    for n in range(0, tl.load(count_ptr + place)):
        column = image * points + tl.load(which_ptr + place * tiles + n) * TILE + tl.arange(0, TILE)
        right = tl.load(right_ptr + column[None, :] * K + k[:, None])
        weight = tl.exp2(tl.dot(left, right))
        value = tl.load(v_ptr + column[:, None] * WIDTH + c[None, :], mask=is_value, other=0.0)
        total = tl.dot(weight.to(tl.float16), value, total)
    tl.store(out_ptr + row[:, None] * WIDTH + c[None, :], total, mask=is_value)
