"""The cue of the refiner `concept`: where SAM 3 finds each class by its name."""

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
class ConceptCue(MapsCue):
    """Maps of every class from a segmenter prompted with words (SAM 3), for the refiner `concept`."""

    extension = "concept.npy"
    examples = ("--weights sam3", "--weights sam3 --prompt 'smoke=white smoke' --prompt 'smoke=dark smoke'")

    weights: Annotated[Path, typer.Option(help="Folder of a SAM 3 in Hugging Face format.", callback=require_here)]
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS=WORDS: prompt with these words instead of the class's name; repeatable, also for one class."
        ),
    ] = None
    map_size: Annotated[int, typer.Option(min=1, help="Side of the stored maps; at most SAM 3's 288.")] = 144
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images at a time; fewer need less memory.")] = 1

    @property
    def images_at_a_time(self) -> int:
        return self.batch_size

    def prompts(self, classes: Sequence[str]) -> list[list[str]]:
        """The prompts of each class: those of --prompt, else its name. Raises RunError for one of no class."""
        asked: dict[str, list[str]] = {}
        for text in self.prompt or ():
            name, _, words = text.partition("=")
            if name not in classes or not words.strip():
                raise RunError(f"--prompt '{text}': wanted CLASS=WORDS with one of the classes {', '.join(classes)}")
            asked.setdefault(name, []).append(words.strip())
        return [asked.get(name, [name]) for name in classes]

    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        from wsss.refine.concept import FILES, check_concept

        check_concept(self.weights)
        digests = digests_of(self.weights, FILES)
        return {"weights": digests, "prompts": self.prompts(classes), "map_size": self.map_size}

    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        from wsss.refine.concept import concept_maps, encode_concepts, load_concept

        model = load_concept(self.weights, device)
        prompts = encode_concepts(model, self.prompts(classes))
        return lambda images: list(concept_maps(model, images, prompts, map_size=self.map_size).cpu().numpy())
