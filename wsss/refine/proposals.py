"""Proposals of SAM for a whole image, through segment_anything; cleaned, and packed to be stored.

Shapes: M proposals, H x W pixels.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss.extras import needs

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

HEADER = struct.Struct("<4sIII")  # magic, M, H, W
MAGIC = b"SAM1"
MOST_POINTS, MOST_LAYERS = 256, 5  # SAM's own are 32 and 0; a prompt of each point takes its time


@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """How masks of a whole image are made from a grid of points, and which of them are kept.

    Attributes:
        points_per_side: the grid has the square of this number of points; 1 to 256.
        points_per_batch: prompts decoded together; memory only (about 9.6 GB at 256 with ViT-B).
        pred_iou, stability: a mask below either is dropped.
        box_nms: masks whose boxes overlap more are duplicates.
        crop_layers: 0 to 5; repeat on 4^i crops for layer i, on a grid that shrinks by crop_points_downscale ** i.
        min_area_px: smaller holes are filled and smaller islands dropped, see `drop_small_regions`.

    Raises:
        ValueError: too many points or layers for a reasonable time, or no point is left for the smallest crops.

    Source: smoke paper's code, with the 32 points of its best row (D-81).
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.70
    stability: float = 0.85
    box_nms: float = 0.7
    crop_layers: int = 0
    crop_points_downscale: int = 2
    min_area_px: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.points_per_side <= MOST_POINTS or not 0 <= self.crop_layers <= MOST_LAYERS:
            raise ValueError(
                f"points_per_side is {self.points_per_side}, crop_layers {self.crop_layers}; wanted 1 to {MOST_POINTS} "
                f"points per side and 0 to {MOST_LAYERS} crop layers (layer i has 4^i crops)"
            )
        wanted = self.crop_points_downscale**self.crop_layers
        if self.points_per_side < wanted:
            raise ValueError(
                f"points_per_side is {self.points_per_side}, which leaves no point for the crops of layer "
                f"{self.crop_layers}; wanted {wanted} or more, or fewer crop_layers"
            )


def sam_proposals(sam: "Sam", image_HW3: np.ndarray, options: ProposalOptions) -> np.ndarray:
    """Class-free masks of a whole image, prompted with a grid of points.

    Args:
        image_HW3: uint8 RGB.

    Returns:
        (M, H, W) bool; M may be 0. An image so thin that one side would vanish at SAM's input size is widened by
        repeating its border.

    Raises:
        ValueError: no (H, W, 3) uint8 image.

    Source: Kirillov et al. 2023, section 5.1, by segment_anything.
    """
    with needs("sam"):
        from segment_anything import SamAutomaticMaskGenerator
        from segment_anything.utils.amg import MaskData

    class Generator(SamAutomaticMaskGenerator):
        """The published generator, corrected: that one fails on crops without a pixel, and if no crop of an image has a
        mask."""

        def _process_crop(self, image: np.ndarray, crop_box: list[int], *more: Any) -> Any:
            size = crop_box[3] - crop_box[1], crop_box[2] - crop_box[0]
            if min(size) < 1 or 0 in self.predictor.transform.get_preprocess_shape(*size, sam.image_encoder.img_size):
                return MaskData()
            data = super()._process_crop(image, crop_box, *more)
            data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
            return data

    check_image(image_HW3)
    height, width = image_HW3.shape[:2]
    least = -(-max(height, width) // sam.image_encoder.img_size)  # px, which become one px of SAM's input
    thin = ((0, max(least - height, 0)), (0, max(least - width, 0)), (0, 0))
    generator = Generator(
        sam,
        points_per_side=options.points_per_side,
        points_per_batch=options.points_per_batch,
        pred_iou_thresh=options.pred_iou,
        stability_score_thresh=options.stability,
        box_nms_thresh=options.box_nms,
        crop_n_layers=options.crop_layers,
        crop_n_points_downscale_factor=options.crop_points_downscale,
    )
    records = generator.generate(np.pad(image_HW3, thin, mode="edge"))
    masks = [drop_small_regions(record["segmentation"][:height, :width], options.min_area_px) for record in records]
    if np.any(thin):
        masks = [mask_HW for mask_HW in masks if mask_HW.any()]
    return np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)


def check_image(image_HW3: np.ndarray) -> None:
    """Raise ValueError unless it is (H, W, 3) uint8."""
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint8:
        raise ValueError(f"image is {image_HW3.shape} {image_HW3.dtype}; wanted (H, W, 3) uint8 RGB")


def drop_small_regions(mask_HW: np.ndarray, min_area_px: int) -> np.ndarray:
    """Fill holes and drop islands below an area; neighbours may touch at a corner, and the largest island stays.

    segment_anything does the same with OpenCV and then removes duplicates again, which a union does not need."""
    from scipy import ndimage  # type: ignore[import-untyped]

    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if min_area_px <= 0 or len(rows) == 0:
        return mask_HW
    box = tuple(slice(max(found[0] - 1, 0), found[-1] + 2) for found in (rows, columns))
    mask = mask_HW[box].copy()
    around = np.zeros_like(mask)  # the background that the box was cut from goes on outside: never a hole
    for axis, found in enumerate((rows, columns)):
        for end, cut in ((0, found[0] > 0), (-1, found[-1] + 1 < mask_HW.shape[axis])):
            np.moveaxis(around, axis, 0)[end] |= cut
    touching = np.ones((3, 3), dtype=bool)
    labels, _ = ndimage.label(~mask, structure=touching)
    small = np.bincount(labels.ravel()) < min_area_px
    small[0] = False
    small[np.unique(labels[around])] = False
    mask |= small[labels]
    labels, _ = ndimage.label(mask, structure=touching)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept = areas >= min_area_px
    kept[areas.argmax()] = True
    whole = np.zeros_like(mask_HW)
    whole[box] = kept[labels]
    return whole


def pack(masks_MHW: np.ndarray) -> bytes:
    """(M, H, W) bool -> bytes: a header, then one bit per pixel, deflated."""
    return HEADER.pack(MAGIC, *masks_MHW.shape) + zlib.compress(np.packbits(masks_MHW).tobytes(), 6)


def unpack(data: bytes) -> np.ndarray:
    """What `pack` was given. Raises ValueError if the bytes are none of its."""
    try:
        magic, *shape = HEADER.unpack_from(data)
        bits = np.frombuffer(zlib.decompress(data[HEADER.size :]), dtype=np.uint8)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"{len(data)} bytes are not packed masks ({error}); write the cues again") from error
    count = int(np.prod(shape, dtype=np.int64))
    if magic != MAGIC or len(bits) != -(-count // 8):
        raise ValueError(f"packed masks: {magic!r}, shape {shape} and {len(bits)} bytes do not fit; write them again")
    return np.unpackbits(bits, count=count).astype(bool).reshape(shape)
