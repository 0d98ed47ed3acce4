"""What refiners need of an image besides its scores: one file per kind of cue, one line in CUES."""

from launcher.errors import ConfigError, user_error_as
from launcher.jobs.cues.clip import ClipCue
from launcher.jobs.cues.concept import ConceptCue
from launcher.jobs.cues.cue import Cue
from launcher.jobs.cues.sam import SamCue
from launcher.jobs.cues.walk import WalkCue
from wsss.registry import Registry, not_a

OURS: dict[str, type[Cue]] = {"sam": SamCue, "clip": ClipCue, "concept": ConceptCue, "walk": WalkCue}
CUES = Registry("wsss.cues", OURS, not_a(Cue))  # by the refiner that reads them


def find_cue(name: str) -> type[Cue]:
    """The cue of a refiner; raises ConfigError if there is none, or none that can be imported."""
    if name not in CUES:
        raise ConfigError(f"there are no cues for '{name}'; choose one of {', '.join(CUES)}")
    with user_error_as(ConfigError):
        return CUES[name]
