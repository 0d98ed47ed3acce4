"""Settings of a prediction, for tests of its parts."""

from launcher.predict.settings import Settings
from launcher.predict.views import Scale


def settings(**further):
    known = {"kind": "class_map", "threshold": 0.5, "gate": 0.5, "scale": Scale(4, None), "chain": (), "smooth_s": 0.0}
    return Settings(**{**known, "normalise": "frame", "every_s": None, "heat": False, "batch_size": 1, **further})
