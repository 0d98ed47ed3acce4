"""Machine-made masks that lie next to image shards: tars of the same names, written by a refinement job.

Label-only shards hold no mask, and these do not change that: a config that trains on them names their folder.
"""

from pathlib import Path

import numpy as np

from shards.folder import ShardFolder
from shards.members import read_span, spans_next_to
from shards.schema import DataError, check_class_ids, decode_mask
from shards.tars import Span


class MaskFolder:
    """The mask of each sample of `shards`, from FOLDER/SHARDNAME.tar, member KEY.png.

    Raises:
        DataError: a tar is missing; when read: damaged, of other samples, or with ids that are no class.
    """

    def __init__(self, folder: Path, shards: ShardFolder) -> None:
        self.folder, self.shards = Path(folder), shards
        self.names = [shard.name for shard in shards.index.shards]
        missing = [name for name in self.names if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(self.names)} mask shards are missing, first {missing[0]}; write "
                "them with `wsss infer RUN --split train` and `wsss refine RUN --split train`"
            )
        self._spans: dict[str, dict[int, dict[str, Span]]] = {}  # of the shards that were read so far

    def __call__(self, number: int) -> np.ndarray:
        """(H, W) uint8 class ids of a sample, 255 = ignore."""
        name = self.names[self.shards.shard_of[number]]
        path = self.folder / name
        if name not in self._spans:
            self._spans[name] = spans_next_to(self.shards, self.folder, name, ("png",))
        data = read_span(path, self._spans[name][number]["png"])
        where = f"{path}: sample '{self.shards.keys[number]}'"
        mask_HW = decode_mask(data, where)
        check_class_ids(mask_HW, self.shards.index.as_class_set(), where)
        return mask_HW
