"""What refiners need of an image besides its scores: one file per kind of cue, one line in CUES."""

from launcher.errors import ConfigError
from launcher.jobs.cues.clip import ClipCue
from launcher.jobs.cues.cue import Cue
from launcher.jobs.cues.sam import SamCue
from launcher.jobs.cues.walk import WalkCue

CUES: dict[str, type[Cue]] = {"sam": SamCue, "clip": ClipCue, "walk": WalkCue}  # by the refiner that reads them


def find_cue(name: str) -> type[Cue]:
    """The cue of a refiner; raises ConfigError if there is none."""
    if name not in CUES:
        raise ConfigError(f"there are no cues for '{name}'; choose one of {', '.join(CUES)}")
    return CUES[name]
