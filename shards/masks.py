"""Machine-made masks next to image shards: tars with the same names, written by a refinement job.

The image shards remain label-only; a config that trains on these masks names their folder.
"""

from collections.abc import Callable, Sequence

import numpy as np

from shards.cache import Cache
from shards.digests import find_all_written, find_change, held_here, want
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask
from shards.members import AGAIN, read_span, spans_next_to
from shards.places import list_names
from shards.prefetch import Prefetch
from shards.remote import Place, is_url, join
from shards.schema import DataError, check_class_ids
from shards.tars import Span


class MaskFolder:
    """The mask of each sample of `shards`, from FOLDER/SHARDNAME.tar, member KEY.png. From a URL, each shard is fetched
    and compared when it is first read, or earlier.

    Raises:
        DataError: a tar is missing; when read: it is damaged, belongs to other samples, or has unknown class ids.
    """

    def __init__(self, folder: Place, shards: ShardFolder) -> None:
        self.folder, self.shards = folder, shards
        self.names = [shard.name for shard in shards.index.shards]
        there = list_names(folder)
        missing = [name for name in self.names if name not in there]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(self.names)} mask shards are missing, first {missing[0]}; write "
                "them with `wsss infer RUN --split train` and `wsss refine RUN --split train`"
            )
        self._written = find_all_written(folder, self.names) if is_url(folder) else {}
        self.prefetching = Prefetch(Cache.from_environment()) if is_url(folder) else None
        self._spans: dict[str, dict[int, dict[str, Span]]] = {}  # of the shards read so far

    def compare(self, names: Sequence[str]) -> None:
        """Raise DataError if any of these shards has other bytes than were written; lists all that do."""
        changes = {} if is_url(self.folder) else {name: find_change(join(self.folder, name)) for name in names}
        told = [f"{join(self.folder, name)}: {change}" for name, change in changes.items() if change]
        if told:
            listed = "\n  ".join(told)
            raise DataError(
                f"{len(told)} of {len(self.names)} mask shards have changed since they were written:\n  {listed}\nrun "
                "the command that made them again: it writes these again"
            )

    def prefetch(self, epoch: int, number: int, order_of: Callable[[int], np.ndarray]) -> None:
        """As ShardFolder.prefetch, for the masks."""
        if self.prefetching is not None:
            window, following = self.shards.following(epoch, number, order_of)
            names = (self.names[shard] for shard in following)
            known = ((join(self.folder, name), self._written.get(name)) for name in names)
            self.prefetching.ask(window, (want(path, written) for path, written in known if written))

    def __call__(self, number: int) -> np.ndarray:
        """(H, W) uint8 class ids of a sample, 255 = ignore."""
        name = self.names[self.shards.shard_of[number]]
        path = join(self.folder, name)
        with held_here(path, AGAIN, written=self._written.get(name)) as here:
            if name not in self._spans:
                self._spans[name] = spans_next_to(self.shards, name, path, here, ("png",))
            data = read_span(here, self._spans[name][number]["png"])
        where = f"{path}: sample '{self.shards.keys[number]}'"
        mask_HW = decode_mask(data, where)
        check_class_ids(mask_HW, self.shards.index.as_class_set(), where)
        return mask_HW
