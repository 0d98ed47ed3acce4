"""What cues share that are maps of all K classes, (K, h, w) in [0, 1], stored in float16."""

import io
from abc import ABC
from collections.abc import Sequence
from typing import Any

from launcher.jobs.cues.cue import Cue


class MapsCue(Cue, ABC):
    """A cue whose refiner is `clip_aid`. Labels choose among the classes when masks are refined, so that one set of
    cues serves labels and predictions."""

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
