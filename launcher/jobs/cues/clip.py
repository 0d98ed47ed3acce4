"""The cue of the refiner `clip`: what CLIP or SigLIP says of every class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import RunError
from launcher.files import require_here
from launcher.jobs.cues.cue import digests_of
from launcher.jobs.cues.maps import MapsCue

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ClipCue(MapsCue):
    """CLIP or SigLIP maps for every image, for the refiner `clip`."""

    extension = "clip.npy"
    examples = ("--weights clip-vit-base-patch16", "--weights siglip2-base-patch16-512 --size 512")

    weights: Annotated[
        Path,
        typer.Option(help="Folder of a CLIP, SigLIP or SigLIP 2 in Hugging Face format.", callback=require_here),
    ]
    size: Annotated[int, typer.Option(min=1, help="Side of CLIP's square input, a multiple of its patch size.")] = 448
    positive: Annotated[
        list[str] | None, typer.Option(help="Prompt for the class, if there is only one; repeatable.")
    ] = None
    negative: Annotated[
        list[str] | None, typer.Option(help="Prompt for something else; repeatable. Not for SigLIP.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images at a time.")] = 8

    @property
    def images_at_a_time(self) -> int:
        return self.batch_size

    def prompts(self, classes: Sequence[str]) -> tuple[list[Sequence[str]], Sequence[str]]:
        """The prompts of each class, and the negative ones.

        Without --positive those of SMOKE_PROMPTS for smoke, else the classes' names; without --negative what surrounds
        smoke, or common scenery for other classes. Raises RunError for --positive with several classes.
        """
        from wsss.models.clip import SCENE_NEGATIVES, SMOKE_NEGATIVES, SMOKE_PROMPTS

        smoke = tuple(classes) == ("smoke",)
        if self.positive and len(classes) != 1:
            raise RunError(
                f"--positive needs data with one class; with {len(classes)} classes their names are the prompts"
            )
        positive: list[Sequence[str]] = [self.positive or (SMOKE_PROMPTS if smoke else (name,)) for name in classes]
        negative: Sequence[str] = self.negative or (SMOKE_NEGATIVES if smoke else SCENE_NEGATIVES)
        return positive, negative

    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        from wsss.models.clip import TEMPLATES, check_folder

        files = check_folder(self.weights)
        if self.negative and "tokenizer.json" in files:
            raise RunError("--negative is for CLIP; SigLIP judges each prompt alone: leave it out")
        positive, negative = self.prompts(classes)
        if "tokenizer.json" in files:
            negative = []  # SigLIP's maps do not depend on them
        settings = {"size": self.size, "positive": positive, "negative": negative, "templates": TEMPLATES}
        return {"weights": digests_of(self.weights, files), **settings}

    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        from wsss.models.clip import encode_prompts, load_clip
        from wsss.refine.clip import clip_maps

        model = load_clip(self.weights, device)
        model.side(self.size)  # refused before the first image
        prompts = encode_prompts(model, *self.prompts(classes))
        return lambda images: list(clip_maps(model, images, prompts, size=self.size).cpu().numpy())
