"""What refiners need of an image besides its scores: one file per kind of cue, one line in CUES."""

from launcher.errors import ConfigError
from launcher.jobs.cues.clip import ClipCue
from launcher.jobs.cues.concept import ConceptCue
from launcher.jobs.cues.cue import Cue
from launcher.jobs.cues.sam import SamCue
from launcher.jobs.cues.walk import WalkCue

CUES: dict[str, type[Cue]] = {  # by the refiner that reads them
    "sam": SamCue,
    "clip": ClipCue,
    "concept": ConceptCue,
    "walk": WalkCue,
}


def find_cue(name: str) -> type[Cue]:
    """The cue of a refiner; raises ConfigError if there is none."""
    if name not in CUES:
        raise ConfigError(f"there are no cues for '{name}'; choose one of {', '.join(CUES)}")
    return CUES[name]
