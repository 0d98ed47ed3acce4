"""SAM from a published checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from wsss.extras import needs
from wsss.models.weights import load_weights

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

Variant = Literal["vit_b", "vit_l", "vit_h"]
PUBLISHED = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}


def load_sam(weights: str | Path | None, variant: Variant, device: str | torch.device = "cpu") -> "Sam":
    """A published SAM in eval mode.

    Args:
        weights: a checkpoint of segment-anything; None = random weights, for tests.
        variant: the image encoder that the checkpoint has.

    Raises:
        ValueError: file missing or unreadable, or of another variant.
    """
    with needs("sam"):
        from segment_anything import sam_model_registry

    if weights is not None:
        check_weights(weights, variant)
    sam = sam_model_registry[variant](checkpoint=None)
    if weights is not None:
        load_into(sam, weights, variant)
    return sam.to(device).eval()


def load_into(sam: "Sam", weights: str | Path, variant: str) -> None:
    """Load a checkpoint strictly; raises ValueError if it is missing, unreadable or of other sizes."""
    check_weights(weights, variant)
    try:
        load_weights(sam, weights, head=())
    except ValueError as error:
        raise ValueError(f"{error} (read as SAM {variant}; the variants are {', '.join(PUBLISHED)})") from error


def check_weights(weights: str | Path, variant: str) -> None:
    """Raise ValueError unless the file is there."""
    if not Path(weights).is_file():
        raise ValueError(
            f"{weights}: SAM weights are missing; download {PUBLISHED[variant]} (link under 'Model Checkpoints' in the "
            "README of github.com/facebookresearch/segment-anything) and name it; --weights PATH takes any path"
        )
