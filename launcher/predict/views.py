"""How a network sees a frame: squashed as in training, whole, or through windows at the scale of training.

Shapes: B frames, K classes, h x w grid of the maps, H x W pixels of a frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.config.sections import CamConfig
from launcher.errors import RunError
from launcher.jobs.infer import inferred_rule, view_of
from launcher.predict.model import Model
from launcher.processes.precision import in_precision
from shards.batches.augment import resize as resize_image
from wsss.maps.cam import PROBABILITIES, Raw
from wsss.maps.fusion import multi_scale_cam
from wsss.methods.base import Method

NEAR = 1.25  # frames up to this times the size of a training image are seen like those
SHORT_SIDE = 2.4  # of a large frame, in sides of the network's view, if the scale of training is not known
BATCH_PX = 32_000_000  # pixels of the frames that are in memory together
SQUASHED_UP_TO = 3.0  # short side in sides of the network's view, if the scale of training is not known
ONE_AT_A_TIME = Lock()  # for networks: threads share torch's flags of precision, and the hooks that read layers (D-190)


class HasImage(Protocol):
    @property
    def image(self) -> np.ndarray | None: ...


Frame = TypeVar("Frame", bound=HasImage)


class Scale(NamedTuple):
    """How much of a frame the network sees at once, and at what scale.

    Attributes:
        image_size: side of the network's view in pixels.
        train_size: (height, width) of the training images in pixels; None = not known.
        scale: pixels of the network's input per pixel of a frame; None = that of training.
        how: `auto`, `squash`, `windows` or `whole`.
        from_crops: the network learned from crops of the training images, not from squashed ones.
    """

    image_size: int
    train_size: tuple[int, int] | None
    scale: float | None = None
    how: str = "auto"
    from_crops: bool = False

    @property
    def through_windows(self) -> bool:
        """Whether frames that are not squashed are seen through windows instead of whole."""
        return self.how == "windows" or (self.how == "auto" and not self.from_crops)

    def of(self, size: tuple[int, int]) -> float | None:
        """The scale of a frame of this (height, width); None = it is squashed."""
        if self.how == "squash":
            return None
        if self.scale is not None:
            return self.scale
        if self.from_crops:  # training images were cropped at their own scale
            return min(self.train_side / float(np.sqrt(size[0] * size[1])), 1.0)
        if self.how == "auto" and self.is_near(size):
            return None
        if self.train_size is not None:
            return self.image_size / self.train_side
        return min(SHORT_SIDE * self.image_size / min(size), 1.0)

    @property
    def train_side(self) -> float:
        """Side in pixels of a square with the area of a training image."""
        height, width = self.train_size or (self.image_size, self.image_size)
        return float(np.sqrt(height * width))

    def is_near(self, size: tuple[int, int]) -> bool:
        if self.train_size is not None:
            return all(side <= NEAR * known for side, known in zip(sorted(size), sorted(self.train_size), strict=True))
        return min(size) <= SQUASHED_UP_TO * self.image_size

    def describe(self) -> str:
        """How which frames are seen, in words."""
        view = self.image_size
        if self.how == "squash":
            return f"squashed to {view} px"
        seen = f"through windows of {view} px" if self.through_windows else "whole"
        if self.scale is not None:
            return f"{seen}, at scale {self.scale:g}"
        trained = f"training images are {self.train_size[0]} x {self.train_size[1]} px" if self.train_size else ""
        if self.from_crops:
            why = f", as {trained}" if trained else ", a crop of training"
            return f"{seen}, scaled down to the area of {self.train_side:.0f} x {self.train_side:.0f} px{why}"
        at = f"with a short side of {SHORT_SIDE * view:.0f} px"
        up_to = f"a short side of {SQUASHED_UP_TO * view:.0f}"
        if self.train_size is not None:
            at = f"at scale {view / self.train_side:.2f}, as {trained}"
            up_to = " x ".join(f"{NEAR * side:.0f}" for side in self.train_size)
        large = f"{seen}, {at}"
        return large if self.how != "auto" else f"squashed to {view} px up to {up_to} px, larger frames {large}"


class Looked(NamedTuple):
    """The network's maps and probabilities of one frame.

    Attributes:
        cam: (K, h, w) float32 in [0, 1].
        probs: (K,) class probabilities.
        strength: (K,) range (highest minus lowest value) of the rectified raw maps before normalisation; 1 for maps
            that are probabilities.
    """

    cam: np.ndarray
    probs: np.ndarray
    strength: np.ndarray


def in_batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Frames in lists of at most `size`, shorter if the frames are large."""
    batch: list[Frame] = []
    pixels = 0
    for frame in frames:
        batch.append(frame)
        pixels += 0 if frame.image is None else frame.image.size // 3
        del frame
        if len(batch) == size or pixels >= BATCH_PX:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def look(
    model: Model,
    kind: str,
    scale: Scale,
    images: Sequence[np.ndarray],
    kept_HW: np.ndarray | None = None,
    windows: int = 16,
) -> list[Looked]:
    """Maps and probabilities of frames (H, W, 3) uint8; squashed frames go through the network together.

    Args:
        kept_HW: False in the ignored area; the maps are normalised over the rest.
        windows: number of windows that go through the network together.

    Raises:
        RunError: a score that is not finite.
    """
    cam = model.config.cam.model_copy(update={"kinds": (kind,), "step_px": None, "batch_size": windows})
    squashed = [n for n, image in enumerate(images) if scale.of(image.shape[:2]) is None]
    found: dict[int, Looked] = {}
    if squashed:
        views = [resize_image(images[n], (scale.image_size, scale.image_size)) for n in squashed]
        found.update(zip(squashed, maps_of(model, cam, np.stack(views), None, kept_HW), strict=True))
    for n, image in enumerate(images):
        if (factor := scale.of(image.shape[:2])) is not None:
            stride = model.method.student.stride
            height, width = (max(round(side * factor / stride), 1) * stride for side in image.shape[:2])
            window_px = max(scale.image_size // stride, 1) * stride if scale.through_windows else None
            (found[n],) = maps_of(model, cam, resize_image(image, (height, width))[None], window_px, kept_HW)
    return [found[n] for n in range(len(images))]


def maps_of(
    model: Model, cam: CamConfig, images_BHW3: np.ndarray, window_px: int | None, kept_HW: np.ndarray | None
) -> list[Looked]:
    """The network's maps and probabilities of frames of one size."""
    cam = cam.model_copy(update={"window_px": window_px})
    image_B3HW = torch.from_numpy(np.array(images_BHW3)).to(model.device).permute(0, 3, 1, 2) / 255
    kept = None if kept_HW is None else torch.from_numpy(kept_HW).to(model.device, torch.float32)
    with ONE_AT_A_TIME, in_precision(model.config.train.precision, model.device.type):
        cam_BKhw, probs_BK, strength_BK = read_maps(model.method, image_B3HW, cam, kept)
    values = [x.float().cpu().numpy() for x in (cam_BKhw, probs_BK, strength_BK)]
    if not all(np.isfinite(x).all() for x in values):
        raise RunError(
            f"{model.place}: its scores are NaN or infinite; the network is broken: use an earlier checkpoint, or "
            "train.precision=ieee"
        )
    return [Looked(*of_frame) for of_frame in zip(*values, strict=True)]


def read_maps(
    method: Method, image_B3HW: Tensor, cam: CamConfig, kept_HW: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """CAM (B, K, h, w) of the only kind in `cam`, class probabilities and strengths (B, K)."""
    view, (kind,), rule = view_of(method, cam), cam.kinds, inferred_rule(cam)
    strengths: list[Tensor] = []
    ways = 1 + rule.flip

    def recorded(image: Tensor) -> tuple[dict[str, Raw], Tensor]:
        maps, probs_BK = view(image)
        raw = maps[kind]
        if kept_HW is not None:
            raw = [without(layer, kept_HW, ways) for layer in raw] if isinstance(raw, list) else without(
                raw, kept_HW, ways
            )  # fmt: skip
        spans = torch.stack([span(layer) for layer in (raw if isinstance(raw, list) else [raw])]).mean(0)
        strengths.append(spans.unflatten(0, (ways, -1)).mean(0))
        return {kind: raw}, probs_BK

    cams, probs_BK = multi_scale_cam(recorded, image_B3HW, stride=method.student.stride, rule=rule)
    strength_BK = torch.stack(strengths).mean(0)
    return cams[kind], probs_BK, torch.ones_like(strength_BK) if kind in PROBABILITIES else strength_BK


def span(raw_BKhw: Tensor) -> Tensor:
    """(B, K): highest minus lowest value of the rectified map."""
    x = F.relu(raw_BKhw.float())
    return x.amax(dim=(-2, -1)) - x.amin(dim=(-2, -1))


def without(raw_BKhw: Tensor, kept_HW: Tensor, ways: int) -> Tensor:
    """A raw map whose cells outside `kept` get the lowest value of the others. With two ways, the second half of the
    batch is mirrored."""
    kept_hw = F.adaptive_avg_pool2d(kept_HW[None, None], (raw_BKhw.shape[-2], raw_BKhw.shape[-1]))[0, 0] >= 0.5
    kept_Bhw = torch.stack([kept_hw, kept_hw.flip(-1)][:ways]).repeat_interleave(len(raw_BKhw) // ways, 0)
    dropped = ~kept_Bhw[:, None].expand_as(raw_BKhw)
    lowest = raw_BKhw.masked_fill(dropped, torch.inf).amin(dim=(-2, -1), keepdim=True)
    return torch.where(dropped, torch.where(lowest.isinf(), 0.0, lowest), raw_BKhw)
