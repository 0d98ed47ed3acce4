"""Dense CRF: masks that follow the image's edges.

Shapes: n score maps, C = n + 1 with background first, H x W pixels.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wsss.extras import MissingPackage, is_installed
from wsss.refine.exact_crf import exact_mean_field

By = Literal["lattice", "exact"]

PROPOSED_FROM = 0.1  # see proposed_classes
PROBABLE = 1e-5  # what no class is less likely than
MOST_ITERATIONS = 1000  # see check_mean_field
NARROWEST = 0.01
HEAVIEST = 1e6
NEEDS_NEWER_CYTHON = (3, 13)  # first Python that the Cython which pydensecrf asks for does not know


def add_background(scores_nHW: np.ndarray, gamma: float) -> np.ndarray:
    """Scores -> class probabilities with background first.

        b = (1 - max_k c_k) ** gamma,   p = [b, c_1 .. c_n] / (b + sum_k c_k)

    For one class this is p_fg = c / (c + (1 - c)^gamma). A larger gamma makes weak scores foreground.

    Returns:
        (n + 1, H, W) float64, summing to 1.

    Raises:
        ValueError: gamma <= 0, with which a class with score 0 everywhere would not be less likely than the background.

    Source: smoke paper, Table 4.11c (its "scaling factor"; D-80).
    """
    check_gamma(gamma)
    background_HW = (1.0 - scores_nHW.max(0).astype(np.float64)).clip(0, 1) ** gamma  # a root of less than 0 is NaN
    stacked = np.concatenate([background_HW[None], scores_nHW])
    return stacked / stacked.sum(0)


def check_gamma(gamma: float) -> None:
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; wanted above 0")


def check_crf(*, gamma: float, by: By | None, **field: Any) -> None:
    """Raise ValueError for invalid options of dense_crf."""
    check_gamma(gamma)
    check_mean_field(**field)


def choose_sum(by: By | None, device: str = "cpu") -> By:
    """The default way in which `mean_field` sums over pixels: exactly on GPUs; on CPUs with the lattice of pydensecrf,
    or exactly if that is not installed.

    Args:
        device: type of the device that does the work.

    Raises:
        MissingPackage: the lattice is wanted, and pydensecrf is not installed.
    """
    installed = is_installed("pydensecrf")
    if by == "lattice" and not installed:
        raise MissingPackage(
            f"by: lattice needs the package 'pydensecrf', which is not installed: {remedy()}; or take by: exact"
        )
    return by or ("lattice" if installed and device == "cpu" else "exact")


def remedy() -> str:
    """How a user can get the lattice."""
    if sys.version_info >= NEEDS_NEWER_CYTHON:
        return "pip install cython setuptools wheel && pip install --no-build-isolation pydensecrf2"
    return "pip install 'wsss[crf]'"


def check_mean_field(*, iterations: int, **kernels: float) -> None:
    """Raise ValueError for options with which the mean field cannot be computed sensibly.

    Iterations are limited to 1,000: the field converges within tens of them. Kernel widths are at least 0.01: a
    narrower kernel reaches no neighbour anyway, but overflows the integers of pydensecrf, which ends the process. A
    weight below 0 would separate similar pixels; one above 1e6 overflows float32, and long before that the unary term,
    at most 12, has no influence.

    Args:
        kernels: of mean_field, by name: widths (..._sxy, ..._srgb) and weights (..._weight).
    """
    if not 1 <= iterations <= MOST_ITERATIONS:
        raise ValueError(f"iterations is {iterations}; wanted 1 to {MOST_ITERATIONS} (5 to 10 are usual)")
    for name, value in kernels.items():
        if name.endswith("_weight"):
            if not 0 <= value <= HEAVIEST:
                raise ValueError(f"{name} is {value}; wanted 0 to {HEAVIEST:g}, where 0 leaves its kernel out")
        elif not value >= NARROWEST:
            raise ValueError(f"{name} is {value}; wanted {NARROWEST} or more (1 to 150 are usual)")


def mean_field(
    image_HW3: np.ndarray,
    probs_CHW: np.ndarray,
    *,
    iterations: int,
    gaussian_sxy: float,
    gaussian_weight: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_weight: float,
    by: By | None = None,
) -> np.ndarray:
    """Marginals of a fully connected CRF with unary -log p, a smoothness and an appearance kernel.

    Args:
        image_HW3: uint8 RGB.
        probs_CHW: class probabilities; clipped to [1e-5, 1].
        iterations, gaussian_weight, bilateral_weight: see check_mean_field for what fits.
        gaussian_sxy, bilateral_sxy: kernel widths in pixels, >= 0.01.
        bilateral_srgb: width in grey levels, >= 0.01.
        by: lattice: pydensecrf's approximation; exact: all pairs of pixels, on a GPU if there is one; None: see
            choose_sum. Labels of frames and photographs differ at fewer than 0.5 % of the pixels (D-121).

    Returns:
        (C, H, W) float32, summing to 1.

    Raises:
        ValueError: image and probabilities of different size or type, a value that is not finite; and see
            check_mean_field.
        MissingPackage: as choose_sum.

    Source: Krähenbühl & Koltun 2011.
    """
    _, height, width = probs_CHW.shape
    if image_HW3.shape != (height, width, 3) or image_HW3.dtype != np.uint8:
        raise ValueError(
            f"image {image_HW3.shape} {image_HW3.dtype} and probabilities {probs_CHW.shape}: wanted a (H, W, 3) uint8 "
            "image and (C, H, W) of the same size"
        )
    widths = {"gaussian_sxy": gaussian_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
    weights = {"gaussian_weight": gaussian_weight, "bilateral_weight": bilateral_weight}
    check_mean_field(iterations=iterations, **widths, **weights)
    if not np.isfinite(probs_CHW).all():
        raise ValueError(f"{int((~np.isfinite(probs_CHW)).sum())} probabilities are not finite")
    clipped_CHW = probs_CHW.astype(np.float32).clip(PROBABLE, 1)
    if choose_sum(by) == "lattice":
        return lattice_mean_field(image_HW3, clipped_CHW, iterations=iterations, **widths, **weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image, probs = (torch.tensor(np.ascontiguousarray(x), device=device) for x in (image_HW3, clipped_CHW))
    return exact_mean_field(image, probs, iterations=iterations, **widths, **weights).cpu().numpy()


def lattice_mean_field(
    image_HW3: np.ndarray,
    probs_CHW: np.ndarray,
    *,
    iterations: int,
    gaussian_sxy: float,
    gaussian_weight: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_weight: float,
) -> np.ndarray:
    """mean_field by pydensecrf, which sums over a permutohedral lattice; for probabilities of at least PROBABLE."""
    import pydensecrf.densecrf as crf
    from pydensecrf.utils import unary_from_softmax

    num_classes, height, width = probs_CHW.shape
    field = crf.DenseCRF2D(width, height, num_classes)
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs_CHW, clip=PROBABLE)))
    field.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_weight)
    field.addPairwiseBilateral(
        sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=np.array(image_HW3, order="C"), compat=bilateral_weight
    )
    return np.asarray(field.inference(iterations), dtype=np.float32).reshape(num_classes, height, width)


def lattice_bytes(height: int, width: int, classes: int) -> int:
    """The most memory that pydensecrf takes for an image; the background counts as a class. If it gets no memory, the
    library ends the process. Measured on 1 and 4 million pixels: 216 to 641 bytes a pixel for two classes, the most on
    noise, and 80 for each further class (D-171)."""
    return height * width * (600 + 80 * classes)


def proposed_classes(probs_CHW: Tensor | np.ndarray, *, floor: float = PROPOSED_FROM) -> list[int]:
    """Classes that a CRF has to consider: the background, and those that are probable somewhere in the image.

    A class is proposed where it is the likeliest of any pixel or where its probability reaches `floor` anywhere.

    Args:
        probs_CHW: class probabilities, background first; a tensor is read where it lies.
        floor: in [0, 1]; 0 proposes all.

    Returns:
        Channels in ascending order, 0 always among them.
    """
    probs_CHW = torch.as_tensor(probs_CHW)
    flat_CN = probs_CHW.flatten(1)
    wanted_C = flat_CN.amax(dim=1) >= floor
    wanted_C[flat_CN.argmax(dim=0)] = True
    wanted_C[0] = True
    return wanted_C.nonzero().flatten().tolist()


def left_out_mass(probs_CHW: Tensor | np.ndarray, class_ids: Sequence[int]) -> float:
    """R, the probability of all other classes, averaged over the pixels, in [0, 1]."""
    kept_HW = torch.as_tensor(probs_CHW)[list(class_ids)].sum(dim=0)
    return max(0.0, float(1 - kept_HW.mean()))


def mean_field_of_proposed(
    image_HW3: np.ndarray, probs_CHW: np.ndarray, *, floor: float = PROPOSED_FROM, **options: Any
) -> np.ndarray:
    """`mean_field` on the proposed classes alone; the others keep the probability that the model gave them.

        Q_c = (1 - r) Q'_c for proposed c, with r the mass of the others at the pixel;   Q_c = p_c for the others

    The difference from a CRF of all classes depends on the mass that is left out, R = the mean of r over the pixels. On
    random soft scenes of up to 21 classes the labels (argmax) differed at fewer than R / 2 + 0.002 of the pixels (4.1 %
    at R = 0.10), and the marginals by sum_c |dQ_c| / 2 < 2 R + 0.01 on the mean: measured, not proven. So R should be
    reported with every metric of such masks; see left_out_mass.

    Building the lattice is a fixed cost, so 3 of 21 classes are 2.2 to 2.6 times as fast, 3 of 81 7 times (`wsss bench
    crf`).

    Args:
        options: of mean_field.

    Returns:
        (C, H, W) float32, summing to 1.

    Raises:
        ValueError: as mean_field.
    """
    chosen = proposed_classes(probs_CHW, floor=floor)
    if len(chosen) == len(probs_CHW):
        return mean_field(image_HW3, probs_CHW, **options)
    marginals_CHW = probs_CHW.astype(np.float32)
    kept_HW = probs_CHW[chosen].sum(0)
    found_nHW = mean_field(image_HW3, probs_CHW[chosen], **options) if len(chosen) > 1 else np.ones_like(kept_HW)[None]
    marginals_CHW[chosen] = found_nHW * kept_HW
    return marginals_CHW


def dense_crf(
    image_HW3: np.ndarray,
    scores_nHW: np.ndarray,
    *,
    gamma: float = 16.0,
    iterations: int = 5,
    gaussian_sxy: float = 3.0,
    gaussian_weight: float = 5.0,
    bilateral_sxy: float = 60.0,
    bilateral_srgb: float = 5.0,
    bilateral_weight: float = 15.0,
    by: By | None = None,
) -> np.ndarray:
    """Scores -> foreground marginals of the CRF, (n, H, W) float32. Defaults are the smoke paper's (D-80).

    Raises:
        ValueError, MissingPackage: as add_background and mean_field.
    """
    if len(scores_nHW) == 0:
        return scores_nHW
    marginals_CHW = mean_field(
        image_HW3,
        add_background(scores_nHW, gamma),
        iterations=iterations,
        gaussian_sxy=gaussian_sxy,
        gaussian_weight=gaussian_weight,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_weight=bilateral_weight,
        by=by,
    )
    return marginals_CHW[1:]
