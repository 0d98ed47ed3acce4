"""Pixel-adaptive refinement as two Triton kernels for GPUs: one makes the weights, one is an iteration.

Shapes: see par.py.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 64
MAPS = 4  # that one program carries along: more spill its registers


@torch.library.custom_op("wsss::par_weights", mutates_args=())
def triton_weights(
    image_B3hw: Tensor, position_N: Tensor, dilations: Sequence[int], sharpness: float, eps: float
) -> Tensor:
    """par.neighbour_weights of (B, 3, h, w) float32: softmax_n of the colours + `position_N`, (B, N, h, w)."""
    batch, _, height, width = image_B3hw.shape
    weight_BNhw = image_B3hw.new_empty(batch, 8 * len(dilations), height, width)
    weights_kernel[(triton.cdiv(height * width, PIXELS), batch)](
        image_B3hw.contiguous(),
        position_N.contiguous(),
        weight_BNhw,
        height,
        width,
        sharpness,
        eps,
        DILATIONS=tuple(dilations),
        LANES=triton.next_power_of_2(8 * len(dilations)),
        PIXELS=PIXELS,
    )
    return weight_BNhw


@triton_weights.register_fake
def _(image_B3hw: Tensor, position_N: Tensor, dilations: Sequence[int], sharpness: float, eps: float) -> Tensor:
    batch, _, height, width = image_B3hw.shape
    return image_B3hw.new_empty(batch, 8 * len(dilations), height, width)


@torch.library.custom_op("wsss::par_propagate", mutates_args=())
def triton_propagate(masks_BChw: Tensor, weight_BNhw: Tensor, dilations: Sequence[int], num_iter: int) -> Tensor:
    """par.propagate of float32 maps, without a gradient."""
    batch, maps, height, width = masks_BChw.shape
    here_BChw, weight_BNhw = masks_BChw.contiguous().clone(), weight_BNhw.contiguous()
    there_BChw = torch.empty_like(here_BChw)
    for _ in range(num_iter):
        propagate_kernel[(triton.cdiv(height * width, PIXELS), batch, triton.cdiv(maps, MAPS))](
            here_BChw,
            weight_BNhw,
            there_BChw,
            maps,
            height,
            width,
            DILATIONS=tuple(dilations),
            MAPS=MAPS,
            PIXELS=PIXELS,
        )
        here_BChw, there_BChw = there_BChw, here_BChw
    return here_BChw


@triton_propagate.register_fake
def _(masks_BChw: Tensor, weight_BNhw: Tensor, dilations: Sequence[int], num_iter: int) -> Tensor:
    return torch.empty_like(masks_BChw, memory_format=torch.contiguous_format)


def bytes_of_iteration(masks_BChw: Tensor, weight_BNhw: Tensor) -> int:
    """What an iteration reads and writes: the weights again for every MAPS maps."""
    passes = triton.cdiv(masks_BChw.shape[1], MAPS)
    return 4 * (passes * weight_BNhw.numel() + 2 * masks_BChw.numel())


@triton.jit
def weights_kernel(
    image_ptr,
    position_ptr,
    weight_ptr,
    height,
    width,
    sharpness,
    eps,
    DILATIONS: tl.constexpr,
    LANES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """All N neighbours of PIXELS pixels in registers, padded to LANES."""
    image = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    y, x = pixel // width, pixel % width
    lane = tl.arange(0, LANES)
    neighbours: tl.constexpr = 8 * len(DILATIONS)
    dilation = tl.zeros((LANES,), dtype=tl.int32)
    for d in tl.static_range(len(DILATIONS)):
        dilation = tl.where(lane // 8 == d, DILATIONS[d], dilation)
    cell = lane % 8 + (lane % 8 >= 4).to(tl.int32)  # of the 3 x 3 cells, the middle one left out
    row = tl.minimum(tl.maximum(y[None, :] + (dilation * (cell // 3 - 1))[:, None], 0), height - 1)
    column = tl.minimum(tl.maximum(x[None, :] + (dilation * (cell % 3 - 1))[:, None], 0), width - 1)
    real = (lane < neighbours)[:, None]
    at = row * width + column
    cost = tl.zeros((LANES, PIXELS), dtype=tl.float32)
    for colour in tl.static_range(3):
        plane = image_ptr + (image * 3 + colour) * height * width
        here = tl.load(plane + pixel, mask=inside, other=0.0)
        difference = tl.load(plane + at, mask=real & inside[None, :], other=0.0) - here[None, :]
        difference = tl.where(real, difference, 0.0)
        mean = tl.sum(difference, axis=0) / neighbours
        centred = tl.where(real, difference - mean[None, :], 0.0)
        std = tl.sqrt(tl.sum(centred * centred, axis=0) / (neighbours - 1))
        scaled = difference / ((std + eps) * sharpness)[None, :]
        cost += scaled * scaled
    cost = tl.where(real, -cost / 3, -float("inf"))
    share = tl.exp(cost - tl.max(cost, axis=0)[None, :])
    share = share / tl.sum(share, axis=0)[None, :]
    position = tl.load(position_ptr + lane, mask=lane < neighbours, other=0.0)
    out = weight_ptr + (image * neighbours + lane[:, None]) * height * width + pixel[None, :]
    tl.store(out, share + position[:, None], mask=real & inside[None, :])


@triton.jit
def propagate_kernel(
    masks_ptr,
    weight_ptr,
    out_ptr,
    maps,
    height,
    width,
    DILATIONS: tl.constexpr,
    MAPS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One iteration of MAPS maps of PIXELS pixels."""
    image = tl.program_id(1)
    size = height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    y, x = pixel // width, pixel % width
    channel = tl.program_id(2) * MAPS + tl.arange(0, MAPS)
    there = (channel < maps)[:, None] & inside[None, :]
    masks = masks_ptr + (image * maps + channel) * size
    weights = weight_ptr + image * 8 * len(DILATIONS) * size + pixel
    total = tl.zeros((MAPS, PIXELS), dtype=tl.float32)
    for d in tl.static_range(len(DILATIONS)):
        for n in tl.static_range(8):
            row = tl.minimum(tl.maximum(y + DILATIONS[d] * ((n + n // 4) // 3 - 1), 0), height - 1)
            column = tl.minimum(tl.maximum(x + DILATIONS[d] * ((n + n // 4) % 3 - 1), 0), width - 1)
            weight = tl.load(weights + (8 * d + n) * size, mask=inside, other=0.0)
            value = tl.load(masks[:, None] + (row * width + column)[None, :], mask=there, other=0.0)
            total += weight[None, :] * value
    tl.store(out_ptr + (image * maps + channel[:, None]) * size + pixel[None, :], total, mask=there)
