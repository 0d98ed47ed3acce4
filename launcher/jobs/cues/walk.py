"""The cue of the refiner `walk`: AffinityNet's affinities (O, P), stored in float16, their grid (h, w) and radius."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import RunError
from launcher.files import place_run
from launcher.jobs.cues.cue import Cue

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class WalkCue(Cue):
    """AffinityNet's affinities for every image, for the refiner `walk`."""

    extension = "walk.npz"
    examples = ("--run runs/smoke/affinity",)
    option_of_run = "--run"

    run: Annotated[
        Path, typer.Option(help="Folder of a run that was trained with the method `affinity`.", callback=place_run)
    ]
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images at a time.")] = 8

    @property
    def images_at_a_time(self) -> int:
        return self.batch_size

    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        from launcher.run.folder import Run
        from launcher.run.steps import MODEL
        from shards.tars import sha256_of

        run = Run(self.run)
        config = run.config
        if config.method.name != "affinity":
            raise RunError(f"{self.run}: trained by method '{config.method.name}'; affinities need method 'affinity'")
        return {"weights": sha256_of(run.checkpoint() / MODEL), "image_size": config.data.image_size}

    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        import numpy as np
        import torch

        from launcher.run.build import load_trained
        from launcher.run.folder import Run
        from shards.batches.augment import Squash
        from wsss.methods.affinity import Affinity
        from wsss.refine.walk import AffinityCue

        trained = load_trained(Run(self.run))
        method = trained.method
        method.to(device)
        squash = Squash(size=trained.run.config.data.image_size)

        def make(images: Sequence[np.ndarray]) -> list[Any]:
            views = np.stack([squash(image).image_SS3 for image in images]).transpose(0, 3, 1, 2)
            image_B3SS = torch.from_numpy(views).to(device).float() / 255
            assert isinstance(method, Affinity)  # identify has looked
            affinity_BOP, size = method.affinities(image_B3SS)
            return [AffinityCue(affinity_OP, size, method.radius) for affinity_OP in affinity_BOP.cpu().numpy()]

        return make

    @staticmethod
    def encode(cue: Any) -> bytes:
        import numpy as np

        buffer = io.BytesIO()
        affinity_OP = cue.affinity_OP.astype(np.float16)
        np.savez(buffer, affinity=affinity_OP, size=np.array(cue.size), radius=cue.radius)
        return buffer.getvalue()

    @staticmethod
    def decode(data: bytes) -> Any:
        import numpy as np

        from wsss.refine.walk import AffinityCue

        found = np.load(io.BytesIO(data), allow_pickle=False)
        height, width = found["size"].tolist()
        return AffinityCue(found["affinity"], (height, width), int(found["radius"]))
