"""Machine-made masks that lie next to image shards: tars of the same names, written by a refinement job.

Label-only shards hold no mask, and these do not change that: a config that trains on them names their folder.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from shards.folder import ShardFolder
from shards.schema import DataError, decode_mask
from shards.tars import tar_spans, unreadable


class MaskFolder:
    """The mask of each sample of `shards`, from FOLDER/SHARDNAME.tar, member KEY.png.

    Raises:
        DataError: a tar is missing; when read: damaged, or without a sample's mask.
    """

    def __init__(self, folder: Path, shards: ShardFolder) -> None:
        self.folder = Path(folder)
        self.names = [shard.name for shard in shards.index.shards]
        self.keys, self.shard_of = shards.keys, shards.shard_of
        missing = [name for name in self.names if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(self.names)} mask shards are missing, first {missing[0]}; write "
                "them with `wsss infer RUN --split train` and `wsss refine RUN --split train`"
            )

    def __call__(self, number: int) -> np.ndarray:
        """(H, W) uint8 class ids of a sample, 255 = ignore."""
        path = self.folder / self.names[self.shard_of[number]]
        key = self.keys[number]
        spans = mask_spans(path)
        if key not in spans:
            raise DataError(f"{path}: has no mask of '{key}'; it belongs to other image shards: write it again")
        offset, size = spans[key]
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise unreadable(path, error) from error
        return decode_mask(data, f"{path}: sample '{key}'")


@lru_cache(maxsize=64)
def mask_spans(path: Path) -> dict[str, tuple[int, int]]:
    """{key: (offset, size)} of the masks of one tar; only its headers are read."""
    return {name.removesuffix(".png"): span for name, span in tar_spans(path).items() if name.endswith(".png")}
