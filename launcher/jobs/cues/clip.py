"""The cue of the refiner `clip`: CLIP maps of all K classes, (K, h, w), stored in float16."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import RunError
from launcher.jobs.cues.cue import Cue

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ClipCue(Cue):
    """CLIP maps of every image, for the refiner `clip`."""

    extension = "clip.npy"
    example = "--weights clip-vit-base-patch16"

    weights: Annotated[Path, typer.Option(help="Folder of a CLIP in Hugging Face format.")]
    size: Annotated[int, typer.Option(min=1, help="Side of CLIP's square input, a multiple of its patch size.")] = 448
    positive: Annotated[list[str] | None, typer.Option(help="Prompt of the one class; repeat for several.")] = None
    negative: Annotated[list[str] | None, typer.Option(help="Prompt of something else; repeat for several.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8

    @property
    def images_at_a_time(self) -> int:
        return self.batch_size

    def prompts(self, classes: Sequence[str]) -> tuple[list[Sequence[str]], Sequence[str]]:
        """The prompts of each class, and the negative ones.

        Without --positive those of SMOKE_PROMPTS for smoke, else the classes' names; without --negative what surrounds
        smoke, or common scenery for other classes.
        """
        from wsss.refine.clip import SCENE_NEGATIVES, SMOKE_NEGATIVES, SMOKE_PROMPTS

        smoke = tuple(classes) == ("smoke",)
        if self.positive and len(classes) != 1:
            raise RunError(
                f"--positive is for data of one class; these have {len(classes)}, which speak for themselves"
            )
        positive: list[Sequence[str]] = [self.positive or (SMOKE_PROMPTS if smoke else (name,)) for name in classes]
        negative: Sequence[str] = self.negative or (SMOKE_NEGATIVES if smoke else SCENE_NEGATIVES)
        return positive, negative

    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.tars import sha256_of
        from wsss.refine.clip import FILES, TEMPLATES, check_folder

        check_folder(self.weights)
        positive, negative = self.prompts(classes)
        digests = {name: sha256_of(self.weights / name) for name in FILES}
        return {"weights": digests, "size": self.size, "positive": positive, "negative": negative,
                "templates": TEMPLATES}  # fmt: skip

    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        from wsss.refine.clip import encode_prompts, load_clip, maps_of_prompts

        model = load_clip(self.weights, device)
        model.side(self.size)  # refused before the first image
        prompts = encode_prompts(model, *self.prompts(classes))
        return lambda images: list(maps_of_prompts(model, images, prompts, size=self.size).cpu().numpy())

    @staticmethod
    def encode(cue: Any) -> bytes:
        import numpy as np

        from launcher.jobs.scores import npy_bytes

        return npy_bytes(cue.astype(np.float16))

    @staticmethod
    def decode(data: bytes) -> Any:
        import numpy as np

        return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)

    @staticmethod
    def select_classes(cue: Any, class_ids: Sequence[int]) -> Any:
        return cue[[class_id - 1 for class_id in class_ids]]
