"""Our own kernels compared with what they replace: errors and times."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.bench.stage import Found, Stage
from wsss.gaussian_sum import bilateral_features, cuda_attention, gaussian_sum, gaussian_sum_by
from wsss.losses.energy import dense_energy
from wsss.maps.par import DILATIONS, neighbour_weights, propagate, propagate_by_views
from wsss.tensors import at_least_float32

Sum = Callable[[Tensor, Tensor], Tensor]


def energy(stage: Stage) -> Found:
    """The energy's sum over all pairs at the sizes of VOC and COCO; its largest error on 512 rows in float64."""
    found = Found()
    sums: dict[str, Sum] = {"shipped": gaussian_sum}
    if stage.cuda:
        sums |= {f"stripes of {stripe}": partial(in_stripes, stripe) for stripe in (2, 4)}
        sums["torch"] = lambda features, values: gaussian_sum_by(cuda_attention, features, values)
    for images, full, classes in ((1, 224, 21), (4, 224, 21), (8, 224, 81)):
        side = stage.size(full, 14)
        colours = F.interpolate(torch.rand(images, 3, 32, 32, device=stage.device), (side, side), mode="bicubic")
        features = bilateral_features(colours.clamp(0, 1) * 255, 15.0, side / 224 * 50.0)
        values = torch.rand(images, side * side, classes, device=stage.device).softmax(2)
        rows = slice(None, None, max(side * side // 512, 1))
        exact = exact_rows(features[:1], values[:1], rows)
        for name, of in sums.items():
            row = stage.clock(partial(of, features, values), 5, 2)
            off = (of(features, values)[:1, rows] - exact).abs() / exact.abs().clamp(min=1e-6)
            found[f"{name}, {images} of {side} px, {classes} classes"] = {**row, "error": float(off.max())}
    return found


def in_stripes(stripe: int, features: Tensor, values: Tensor) -> Tensor:
    """gaussian_sum on a GPU, some tiles of rows at a time."""
    from wsss.gaussian_triton import triton_gaussian_sum

    return triton_gaussian_sum(features - features.mean(dim=1, keepdim=True), values, stripe)


def energy_grid(stage: Stage) -> Found:
    """The energy on a bilateral grid (method.energy_grid) compared with all pixels: time, and cosine of the gradients.
    One image at the sizes of VOC and COCO; always on the CPU, since only CPUs have the grid."""
    found, side = Found(), stage.size(448, 32)
    torch.manual_seed(0)
    image = stage.photographs(1, side)
    label = torch.zeros(1, side, side, dtype=torch.int64)
    box = torch.tensor([[0, side, 0, side]])
    for classes in (21, 81):
        logits = (4 * torch.randn(1, classes, side // 16, side // 16)).requires_grad_()
        slopes: list[Tensor] = []
        for grid in (0, 1):

            def slope(grid: float = grid, logits: Tensor = logits, slopes: list[Tensor] = slopes) -> None:
                energy = dense_energy(image, logits, label, box, grid=grid)
                slopes.append(torch.autograd.grad(energy, logits)[0].flatten())

            row = stage.clock(slope, 1, 0)
            found[f"grid {grid}, {classes} classes"] = {
                **row,
                "cosine": round(F.cosine_similarity(slopes[0], slopes[-1], dim=0).item(), 5),
            }
    return found


def exact_rows(features_BND: Tensor, values_BNC: Tensor, rows: slice) -> Tensor:
    """Some rows of the sum in float64, directly from the formula."""
    points_BND = features_BND.double()
    square = (points_BND[:, rows, None] - points_BND[:, None]).square().sum(dim=3)
    return (square / -2).exp() @ values_BNC.double()


def par(stage: Stage) -> Found:
    """PAR's weights and ten iterations, as shipped and with torch's own operators; the largest difference."""
    found = Found()
    for images, maps in ((4, 4), (4, 8), (8, 18)):
        side = stage.size(224, 32)
        image = stage.photographs(images, side).to(stage.device)
        start = torch.rand(images, maps, side, side, device=stage.device)
        what = f"{images} images, {maps} maps"
        weight = neighbour_weights(image)
        found[f"weights, {what}"] = stage.clock(partial(neighbour_weights, image), 10, 2)
        found[f"iterations, {what}"] = stage.clock(partial(propagate, start, weight), 10, 2)
        in_float64 = neighbour_weights(image.double())  # for which we have no kernel
        off = (propagate(start, weight) - propagate(start.double(), in_float64)).abs().max()
        found[f"iterations, {what}"]["error"] = float(off)
        by_torch = at_least_float32(in_float64).float()
        found[f"torch's, {what}"] = stage.clock(partial(propagate_by_views, start, by_torch, DILATIONS, 10), 5, 1)
    return found
