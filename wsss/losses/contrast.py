"""ToCo's contrastive losses: of patch tokens that belong together, and of class tokens of crops that show an object.

Shapes: B images, D channels, h x w token grid of N = h * w positions, H x W pixels, G global views, M crops (the
global views among them), n local crops of s x s pixels.

Source: ToCo (CVPR 2023), section 3, in the form of its code (D-76: 2, 3 and 8); golden `ptc`, `ctc` and `roicrops`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.pseudo_label import CERTAIN_FOREGROUND
from wsss.tensors import IGNORE_INDEX, at_least_float32, full_precision, keyed_draws, mean_in_groups

EPS = 1e-4  # joins the negatives and the number of positives of class_token_contrast


def pair_mask(label_Bhw: Tensor) -> Tensor:
    """Which pairs of positions (row-major) have the same label: (B, N, N) uint8, 1 same label, 0 different, 255
    ignored.

    Two background positions are a positive pair; a position with itself, or with an ignored one, is ignored.
    """
    label_BN = label_Bhw.flatten(1)
    known_BN = label_BN != IGNORE_INDEX
    known_BNN = known_BN[:, :, None] & known_BN[:, None, :]
    known_BNN &= ~torch.eye(label_BN.shape[1], dtype=torch.bool, device=label_BN.device)
    same_BNN = (label_BN[:, :, None] == label_BN[:, None, :]).to(torch.uint8)
    return same_BNN.masked_fill(~known_BNN, IGNORE_INDEX)


def patch_token_contrast(features_BDhw: Tensor, pairs_BNN: Tensor, *, group_size: int | None = None) -> Tensor:
    """Pulls tokens of positive pairs together and pushes those of negative pairs apart, in float32 or better.

        L = 1/2 (1 - sum_pos c / (n_pos + 1)) + 1/2 sum_neg c / (n_neg + 1),   c_ij = |cos(f_i, f_j)|

    Args:
        pairs_BNN: see pair_mask.
        group_size: consecutive images whose pairs are counted together; L is the mean over the groups. None = the whole
            batch. With a group size, L does not depend on how the images are distributed over processes.

    Returns:
        Scalar in [0, 1]; 0.5 where no pair is known.

    Raises:
        ValueError: the batch does not divide into groups.
    """
    with full_precision(features_BDhw):
        unit_BDN = F.normalize(at_least_float32(features_BDhw).flatten(2), dim=1, eps=1e-8)
        cosine_BNN = (unit_BDN.transpose(1, 2) @ unit_BDN).abs()
    positive_BNN, negative_BNN = pairs_BNN == 1, pairs_BNN == 0
    positive = mean_in_groups(cosine_BNN, positive_BNN, group_size)
    negative = mean_in_groups(cosine_BNN, negative_BNN, group_size)
    return (0.5 * (1 - positive) + 0.5 * negative).mean()


def class_token_contrast(student_BMD: Tensor, teacher_BGD: Tensor, flags_BM: Tensor, *, temperature: float) -> Tensor:
    """Pulls the class tokens of positive crops towards those of the global views, and pushes those of negative crops
    away.

        a_gm = t_g . s_m / temperature,   n_g = log(sum_neg e^a_gm + 1e-4)
        L = mean_images mean_g [ -sum_pos log sigmoid(a_gm - n_g) - log sigmoid(-n_g) ] / (|pos| + 1e-4)

    The logarithms keep it finite at any logit. Tokens are not normalised here and the teacher is not detached.

    Args:
        student_BMD: projected class tokens of all crops of an image, global views and local crops.
        teacher_BGD: those of its global views.
        flags_BM: 1 positive, 0 negative. An image without a positive crop has a loss of the order of 1e4.

    Returns:
        Scalar > 0, in float32 or better.

    Raises:
        ValueError: temperature <= 0.
    """
    check_contrast(temperature)
    with full_precision(student_BMD):
        student_BMD, teacher_BGD = at_least_float32(student_BMD), at_least_float32(teacher_BGD)
        logit_BGM = teacher_BGD @ student_BMD.transpose(1, 2) / temperature
    positive_BM = flags_BM.to(logit_BGM.dtype)
    negative_BGM = logit_BGM.masked_fill(positive_BM[:, None] > 0, -torch.inf)
    floor_BG1 = torch.full_like(logit_BGM[..., :1], EPS).log()
    negative_BG1 = torch.logsumexp(torch.cat([negative_BGM, floor_BG1], dim=2), dim=2, keepdim=True)
    pulled_BG = (positive_BM[:, None] * F.logsigmoid(logit_BGM - negative_BG1)).sum(dim=2)
    pushed_BG = F.logsigmoid(-negative_BG1).squeeze(2)
    return (-(pulled_BG + pushed_BG).mean(dim=1) / (positive_BM.sum(dim=1) + EPS)).mean()


def check_contrast(temperature: float, momentum: float = 0.0) -> None:
    """Raise ValueError unless the temperature is above 0 and the momentum of the teacher's head in [0, 1]."""
    if not temperature > 0:
        raise ValueError(f"method.temperature is {temperature}; wanted > 0")
    if not 0 <= momentum <= 1:
        raise ValueError(f"method.momentum is {momentum}; wanted one in [0, 1]")


def check_crops(height: int, width: int, *, crop_size: int, crop_num: int, stride: int = 1) -> tuple[int, int]:
    """Number of rows and columns in which the corner of a crop may be.

    Args:
        stride: pixels per patch, the least side of a crop.

    Raises:
        ValueError: fewer places than wanted crops, or a crop smaller than one patch.
    """
    if crop_num < 0 or crop_size < stride:
        raise ValueError(
            f"method.crop_px is {crop_size}, method.crop_num {crop_num}; wanted a crop_px of {stride} (one patch) or "
            "more and a crop_num of 0 or more"
        )
    margin = crop_size // 2
    rows, columns = (max(side - 2 * margin, 0) for side in (height, width))
    if rows * columns < max(crop_num, 1):
        raise ValueError(
            f"method.crop_px is {crop_size}: an image of {height} x {width} px has {rows * columns} places for crops "
            f"of this size, but method.crop_num is {crop_num}: use a larger data.image_size or smaller crops"
        )
    return rows, columns


def draw_crops(certainty_BHW: Tensor, seed_B: Tensor, *, crop_size: int, crop_num: int) -> Tensor:
    """Corners of crops whose centres are not certain foreground, drawn uniformly and without replacement.

    An image with fewer than `crop_num` such centres draws from all of its corners. The draw of an image depends only on
    its own seed and certainty, and is the same on CPU and GPU.

    Args:
        certainty_BHW: 0 certain background, 1 uncertain, 2 certain foreground.
        seed_B: int64, any value.

    Returns:
        (B, n, 2) int64 (y, x) of the top left pixel. The centre is (y + m, x + m) with m = crop_size // 2, and corners
        lie in [0, H - 2m) x [0, W - 2m).

    Raises:
        ValueError: the image has fewer places than wanted crops.
    """
    margin = crop_size // 2
    rows, columns = check_crops(*certainty_BHW.shape[1:], crop_size=crop_size, crop_num=crop_num)
    centre_Bhw = certainty_BHW[:, margin : margin + rows, margin : margin + columns]
    candidate_BN = (centre_Bhw < CERTAIN_FOREGROUND).flatten(1)
    allowed_BN = candidate_BN | (candidate_BN.sum(dim=1, keepdim=True) < crop_num)
    key_BN = keyed_draws(seed_B, rows * columns)
    lowest = torch.iinfo(torch.int64).min
    place_Bn = key_BN.masked_fill(~allowed_BN, lowest).topk(crop_num, dim=1).indices
    return torch.stack([place_Bn // columns, place_Bn % columns], dim=2)


def crop_flags(certainty_BHW: Tensor, corner_Bn2: Tensor, *, crop_size: int, threshold: float = 0.2) -> Tensor:
    """(B, n) float32: 1 for a crop that may show an object, 0 for one of background.

    A crop is background where its mean certainty (0, 1 or 2 per pixel) is at most `threshold`. Sums come from an
    integral image, exact in int64.
    """
    integral_BHW = F.pad(certainty_BHW.long().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    width = integral_BHW.shape[2]
    y_Bn, x_Bn = corner_Bn2.unbind(dim=2)
    first_Bn = y_Bn * width + x_Bn
    corners_Bn4 = torch.stack([first_Bn + dy * width + dx for dy in (0, crop_size) for dx in (0, crop_size)], dim=2)
    top_left, top_right, low_left, low_right = (
        integral_BHW.flatten(1).gather(1, corners_Bn4.flatten(1)).view(corners_Bn4.shape).unbind(dim=2)
    )
    total_Bn = low_right - low_left - top_right + top_left
    return (total_Bn.double() / crop_size**2 > threshold).float()


def take_crops(image_BCHW: Tensor, corner_Bn2: Tensor, crop_size: int) -> Tensor:
    """The crops at these corners, (B, n, C, s, s). Corners must leave room for the crop inside the image."""
    offset_s = torch.arange(crop_size, device=image_BCHW.device)
    row_Bns1 = (corner_Bn2[..., 0, None] + offset_s)[..., :, None]
    column_Bn1s = (corner_Bn2[..., 1, None] + offset_s)[..., None, :]
    image_B111 = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None, None]
    return image_BCHW.permute(0, 2, 3, 1)[image_B111, row_Bns1, column_Bn1s].permute(0, 1, 4, 2, 3)
