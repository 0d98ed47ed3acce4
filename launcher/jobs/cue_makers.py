"""What makes the cues of each kind: SAM proposals, CLIP maps, AffinityNet's affinities."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from wsss.models.sam import Variant


Kind = Literal["sam", "clip", "walk"]


Make = Callable[[Sequence["np.ndarray"]], list[dict[str, bytes]]]  # images -> their members


EXTENSIONS = {"sam": "masks", "clip": "clip.npy", "walk": "walk.npz"}


@dataclass(frozen=True, kw_only=True)
class SamCues:
    """Settings of wsss.refine.sam.sam_proposals and the weights; points_per_batch is memory and no setting."""

    weights: Path
    variant: "Variant" = "vit_h"
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.70
    stability: float = 0.85
    crop_layers: int = 0
    min_area_px: int = 20
    batch_size: int = 1  # images; SAM batches the prompts of one image instead

    def options(self) -> dict[str, Any]:
        """What sam_proposals takes beside the image."""
        others = ("weights", "variant", "batch_size")
        return {name: value for name, value in vars(self).items() if name not in others}

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.tars import sha256_of
        from wsss.models.sam import check_weights

        check_weights(self.weights, self.variant)
        settings = {name: value for name, value in self.options().items() if name != "points_per_batch"}
        return {"weights": sha256_of(self.weights), "variant": self.variant, **settings}

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        from wsss.models.sam import load_sam
        from wsss.refine.sam import pack, sam_proposals

        model, options = load_sam(self.weights, self.variant, device), self.options()
        return lambda images: [{EXTENSIONS["sam"]: pack(sam_proposals(model, image, **options))} for image in images]


@dataclass(frozen=True, kw_only=True)
class ClipCues:
    """A CLIP folder, its input size, and prompts.

    Attributes:
        positive: prompts of the class, for data of one class; None = SMOKE_PROMPTS for smoke, else the classes' names.
        negative: None = what surrounds smoke, or common scenery for other classes.
        batch_size: images at a time; batches end with their shard, so that its bytes do not depend on its neighbours.
    """

    weights: Path
    size: int = 448
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    batch_size: int = 8

    def prompts(self, classes: Sequence[str]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        """The prompts of each class, and the negative ones."""
        from wsss.refine.clip import SCENE_NEGATIVES, SMOKE_NEGATIVES, SMOKE_PROMPTS

        smoke = tuple(classes) == ("smoke",)
        if self.positive is not None and len(classes) != 1:
            raise RunError(
                f"--positive is for data of one class; these have {len(classes)}, which speak for themselves"
            )
        positive = [self.positive or (SMOKE_PROMPTS if smoke else (name,)) for name in classes]
        return positive, self.negative or (SMOKE_NEGATIVES if smoke else SCENE_NEGATIVES)

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.tars import sha256_of
        from wsss.refine.clip import FILES, TEMPLATES, check_folder

        check_folder(self.weights)
        positive, negative = self.prompts(classes)
        digests = {name: sha256_of(self.weights / name) for name in FILES}
        return {"weights": digests, "size": self.size, "positive": positive, "negative": negative,
                "templates": TEMPLATES}  # fmt: skip

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        import numpy as np

        from launcher.jobs.scores import npy_bytes
        from wsss.refine.clip import encode_prompts, load_clip, maps_of_prompts

        model = load_clip(self.weights, device)
        model.side(self.size)  # refused before the first image
        prompts = encode_prompts(model, *self.prompts(classes))

        def make(images: Sequence[np.ndarray]) -> list[dict[str, bytes]]:
            maps_BKhw = maps_of_prompts(model, images, prompts, size=self.size).cpu().numpy().astype(np.float16)
            return [{EXTENSIONS["clip"]: npy_bytes(maps_Khw)} for maps_Khw in maps_BKhw]

        return make


@dataclass(frozen=True, kw_only=True)
class WalkCues:
    """The run of method `affinity` whose network says which neighbouring positions belong together."""

    run: Path
    batch_size: int = 8

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from launcher.run.folder import Run
        from launcher.run.steps import MODEL, newest_complete
        from shards.tars import sha256_of

        config = Run(self.run).config
        if config.method.name != "affinity":
            raise RunError(f"{self.run}: trained by method '{config.method.name}'; affinities need method 'affinity'")
        return {"weights": sha256_of(newest_complete(self.run) / MODEL), "image_size": config.data.image_size}

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        import numpy as np
        import torch

        from launcher.run.build import load_trained
        from launcher.run.folder import Run
        from shards.batches.augment import Squash
        from wsss.methods.affinity import Affinity

        trained = load_trained(Run(self.run))
        config, method = trained.run.config, trained.method
        method.to(device)
        squash = Squash(size=config.data.image_size)

        def make(images: Sequence[np.ndarray]) -> list[dict[str, bytes]]:
            views = np.stack([squash(image).image_SS3 for image in images]).transpose(0, 3, 1, 2)
            image_B3SS = torch.from_numpy(views).to(device).float() / 255
            assert isinstance(method, Affinity)  # made_of has looked
            affinity_BOP, size = method.affinities(image_B3SS)
            return [{EXTENSIONS["walk"]: packed(a, size, method.radius)} for a in affinity_BOP.cpu().numpy()]

        def packed(affinity_OP: np.ndarray, size: tuple[int, int], radius: int) -> bytes:
            buffer = io.BytesIO()
            np.savez(buffer, affinity=affinity_OP.astype(np.float16), size=np.array(size), radius=radius)
            return buffer.getvalue()

        return make


MAKERS: dict[str, Callable[..., SamCues | ClipCues | WalkCues]] = {"sam": SamCues, "clip": ClipCues, "walk": WalkCues}
