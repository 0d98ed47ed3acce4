"""The cue of the refiner `sam`: SAM's proposals, (M, H, W) bool."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import RunError
from launcher.files import require_here
from launcher.jobs.cues.cue import Cue, digests_of

if TYPE_CHECKING:
    import numpy as np

    from wsss.models.sam import Variant

PACKAGES = ("segment_anything", "transformers")


@dataclass(frozen=True, kw_only=True)
class SamCue(Cue):
    """SAM proposals for every image, for the refiner `sam`."""

    extension = "masks"
    examples = ("--weights sam_vit_b_01ec64.pth --variant vit_b", "--by transformers --weights sam2.1-hiera-large")

    weights: Annotated[
        Path,
        typer.Option(
            help="A checkpoint such as sam_vit_h_4b8939.pth; with --by transformers, a folder of SAM, SAM 2 or SAM 3.",
            callback=require_here,
        ),
    ]
    by: Annotated[
        str, typer.Option(help="Package to use, and format of the weights: segment_anything or transformers.")
    ] = "segment_anything"
    variant: Annotated[
        str | None,
        typer.Option(help="Architecture of a segment_anything checkpoint: vit_b, vit_l or vit_h. Default: vit_h."),
    ] = None
    points_per_side: Annotated[int, typer.Option(min=1, max=256, help="Points per side of the grid of prompts.")] = 32
    points_per_batch: Annotated[
        int, typer.Option(min=1, help="Number of prompts decoded together; fewer need less memory.")
    ] = 64
    pred_iou: Annotated[float, typer.Option(help="Drop masks whose IoU SAM predicts to be lower.")] = 0.70
    stability: Annotated[float, typer.Option(help="Drop masks that are less stable when the threshold is shifted.")] = (
        0.85
    )
    crop_layers: Annotated[
        int, typer.Option(min=0, max=5, help="Number of further layers; layer i repeats the prompts on 4^i crops.")
    ] = 0
    min_area_px: Annotated[int, typer.Option(min=0, help="Remove smaller holes and islands.")] = 20

    @property
    def images_at_a_time(self) -> int:
        return 1  # SAM batches the prompts of one image instead

    @property
    def checked_variant(self) -> "Variant":
        """Raises RunError if nobody published it."""
        from wsss.models.sam import PUBLISHED

        variant = self.variant or "vit_h"
        if variant not in PUBLISHED:
            raise RunError(f"--variant {variant}: choose one of {', '.join(PUBLISHED)}")
        return variant  # type: ignore[return-value]

    @property
    def by_transformers(self) -> bool:
        """Raises RunError for another package, and for weights in the other's format."""
        if self.by not in PACKAGES:
            raise RunError(f"--by {self.by}: choose one of {', '.join(PACKAGES)}")
        by_transformers = self.by == "transformers"
        if by_transformers and self.variant is not None:
            raise RunError(
                f"--variant {self.variant} is for segment_anything; a folder for transformers says itself which SAM it "
                "is"
            )
        if by_transformers and self.weights.is_file():
            raise RunError(f"{self.weights}: a file; --by transformers reads a folder (config.json, model.safetensors)")
        if not by_transformers and self.weights.is_dir():
            raise RunError(f"{self.weights}: a folder; segment_anything reads a .pth file, --by transformers a folder")
        return by_transformers

    @property
    def chosen(self) -> dict[str, Any]:
        """Those of ProposalOptions that a user can choose."""
        return {name: value for name, value in vars(self).items() if name not in ("weights", "by", "variant")}

    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.tars import sha256_of
        from wsss.models.sam import check_weights
        from wsss.refine.proposals import ProposalOptions

        ProposalOptions(**self.chosen)  # refused before anything is read
        settings = {name: value for name, value in self.chosen.items() if name != "points_per_batch"}
        if self.by_transformers:
            from wsss.models.pretrained import WEIGHTS
            from wsss.refine.prompted import check_prompted

            check_prompted(self.weights)
            return {"weights": digests_of(self.weights, WEIGHTS), "by": self.by, **settings}
        check_weights(self.weights, self.checked_variant)
        return {"weights": sha256_of(self.weights), "variant": self.checked_variant, **settings}

    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        from wsss.models.sam import load_sam
        from wsss.refine.prompted import load_prompted, prompted_proposals
        from wsss.refine.proposals import ProposalOptions, sam_proposals

        options = ProposalOptions(**self.chosen)
        if self.by_transformers:
            prompted = load_prompted(self.weights, device)
            return lambda images: [prompted_proposals(prompted, image, options) for image in images]
        sam = load_sam(self.weights, self.checked_variant, device)
        return lambda images: [sam_proposals(sam, image, options) for image in images]

    @staticmethod
    def encode(cue: Any) -> bytes:
        from wsss.refine.proposals import pack

        return pack(cue)

    @staticmethod
    def decode(data: bytes) -> Any:
        from wsss.refine.proposals import unpack

        return unpack(data)
