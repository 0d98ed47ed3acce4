"""CAMs by ToCo's protocol: squashed views, ReLU sums over scales and mirror images, one threshold."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from wsss.maps.fusion import View, fuse_cams, packed
from wsss.maps.pseudo_label import seed_label
from wsss.tensors import resize

CAM_KINDS = ("cam", "aux_cam")


CAM_SCALES = (1.0, 0.5, 1.5)  # of the squashed view, each with its mirror image: ToCo's protocol (D-77)


def fused_cams(views: Sequence[Mapping[str, View]], present_BP: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """{kind: cam (B, P, *size)} of the present classes, from the raw maps of all scales."""
    return {
        kind: fuse_cams([tuple(packed(maps_BKhw, present_BP) for maps_BKhw in view[kind]) for view in views], size)
        for kind in CAM_KINDS
        if kind in views[0]
    }


def cam_label(cam_1PSS: Tensor, present_1P: Tensor, size: Sequence[int], threshold: float) -> Tensor:
    """The CAM of one image at its own size -> (H, W) int64 class ids; background where it is <= threshold."""
    return seed_label(resize(cam_1PSS, size), present_1P, bg_threshold=threshold, fg_threshold=threshold)[0]
