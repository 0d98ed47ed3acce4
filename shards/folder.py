"""The samples of one folder of shards by number, local or remote."""

import json
import os
import shlex
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shards.cache import Cache, Wanted, release
from shards.image_bytes import decode_image, decode_mask
from shards.index import Index, Shard
from shards.prefetch import Prefetch
from shards.remote import Place, join, place_of
from shards.schema import Box, DataError, SampleError, Supervision, check_class_ids
from shards.tars import BLOCK, is_header_of, unreadable

Decoded = TypeVar("Decoded")
REGIONS = TypeAdapter(dict[str, list[Box]])

WINDOW = 8  # shards whose samples are mixed with each other: bounds open files and, for remote shards, the cache
OPEN_FILES = 4 * WINDOW
OPEN_REMOTE = 2 * WINDOW  # number of open remote shards, which the cache keeps


class ShardFolder:
    """The samples of one folder of shards by number, 0..N-1 in index order.

    Local shards are read in place. From a URL, the index is fetched now, and each shard as a whole when it is first
    read, into the cache of shards.cache.

    Raises:
        DataError: no index, a shard missing or cut short, or masks where there must be none.
    """

    def __init__(self, folder: Place, supervision: Supervision | None = None) -> None:
        self.folder = place_of(folder)
        self.index = Index.load(self.folder)
        if supervision and self.index.supervision != supervision:
            raise DataError(
                f"{folder}: supervision is '{self.index.supervision}', wanted '{supervision}'; "
                + ("training takes label-only shards, which hold no mask" if supervision == "label" else "masks needed")
            )
        self.cache: Cache | None = None
        self.prefetching: Prefetch | None = None
        if isinstance(self.folder, Path):
            for shard in self.index.shards:
                check_size(self.folder, shard)
        else:
            self.cache = Cache.from_environment()
            self.prefetching = Prefetch(self.cache)
        sizes = [len(shard.keys) for shard in self.index.shards]
        self.shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self.row_of = np.concatenate([np.arange(size) for size in sizes])
        self.keys = [key for shard in self.index.shards for key in shard.keys]
        self.groups = [group for shard in self.index.shards for group in shard.groups]
        self.frames = [frame for shard in self.index.shards for frame in shard.frames or [None] * len(shard.keys)]
        self.number_of_key = {key: number for number, key in enumerate(self.keys)}
        class_set = self.index.as_class_set()
        self.image_label_NK = np.stack(
            [class_set.multi_hot(label) for shard in self.index.shards for label in shard.image_labels]
        )
        self._open_none()

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_none()

    def _open_none(self) -> None:
        """Begin without an open file; opened files are closed when this object is no longer referenced."""
        self._files: OrderedDict[int, int] = OrderedDict()  # shard number -> file descriptor, least recent first
        weakref.finalize(self, close_all, self._files).atexit = False

    def path_of(self, shard_number: int) -> Place:
        return join(self.folder, self.index.shards[shard_number].name)

    def where(self, number: int) -> str:
        return f"{self.path_of(self.shard_of[number])}: sample '{self.keys[number]}'"

    def read(self, number: int, extension: str) -> bytes:
        """One member's bytes, by one positioned read.

        Raises:
            DataError: the shard is gone, unreadable, or not the one that was indexed.
        """
        shard_number = int(self.shard_of[number])
        offset, size = self.index.shards[shard_number].members[extension][self.row_of[number]]
        try:
            data = os.pread(self._file(shard_number), BLOCK + size, max(offset - BLOCK, 0))
        except OSError as error:
            raise unreadable(f"{self.where(number)} ({extension})", error) from error
        if not is_header_of(data[:BLOCK], f"{self.keys[number]}.{extension}", size):
            raise DataError(
                f"{self.where(number)}: its {extension} is not where the index says: the shard or the index was "
                f"changed or damaged; `{verify_command(self.folder)}` finds all such shards; write them again"
            )
        if len(data) != BLOCK + size:
            raise DataError(
                f"{self.where(number)}: {extension} ends after {len(data) - BLOCK} of {size} bytes: cut short; "
                "write or fetch it again"
            )
        return data[BLOCK:]

    def image(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises SampleError if it does not decode."""
        return self._decoded(number, "jpg", decode_image)

    def mask(self, number: int) -> np.ndarray:
        """(H, W) uint8 class ids, 255 = ignore. Raises DataError for label-only shards and unknown class ids."""
        if self.index.supervision != "pixel":
            raise DataError(f"{self.where(number)}: these shards are label-only, there is no mask to read")
        mask_HW = self._decoded(number, "png", decode_mask)
        check_class_ids(mask_HW, self.index.as_class_set(), self.where(number))
        return mask_HW

    def about(self, number: int) -> dict[str, Any]:
        """The sample's json: its label, size, source, group and, in pixel shards, regions."""
        return self._decoded(number, "json", decode_about)

    def regions(self, number: int) -> dict[str, list[Box]]:
        """Named boxes of a sample in pixel shards; {} if there are none."""
        try:
            return REGIONS.validate_python(self.about(number).get("regions", {}))
        except ValidationError as error:
            raise SampleError(f"{self.where(number)}: its regions are not named boxes: {error.errors()[0]}") from error

    def numbers_of(self, shard_name: str) -> list[int]:
        """The sample numbers of one shard, in the order of the file."""
        first = 0
        for shard in self.index.shards:
            if shard.name == shard_name:
                return list(range(first, first + len(shard.keys)))
            first += len(shard.keys)
        raise DataError(f"{self.folder}: has no shard '{shard_name}'")

    def prefetch(self, epoch: int, number: int, order_of: Callable[[int], np.ndarray]) -> None:
        """Fetch in the background what comes after this sample's window of shards; does nothing for local shards.

        Args:
            order_of: epoch -> the shards in its order.
        """
        if self.prefetching is not None:
            window, following = self.following(epoch, number, order_of)
            self.prefetching.ask(window, map(self._wanted, following))

    def following(
        self, epoch: int, number: int, order_of: Callable[[int], np.ndarray]
    ) -> tuple[tuple[int, int], list[int]]:
        """A sample's window of shards, as (epoch, number), and the shards of this window and of the next."""
        order = order_of(epoch)
        window = int(np.flatnonzero(order == self.shard_of[number])[0]) // WINDOW
        following = order[window * WINDOW : (window + 2) * WINDOW].tolist()  # first what is left of this window
        if len(following) <= WINDOW:
            following += order_of(epoch + 1)[:WINDOW].tolist()
        return (epoch, window), list(dict.fromkeys(following))

    def _wanted(self, shard_number: int) -> Wanted:
        shard = self.index.shards[shard_number]
        return Wanted(url=str(self.path_of(shard_number)), bytes=shard.bytes, sha256=shard.sha256)

    def _file(self, shard_number: int) -> int:
        if shard_number in self._files:
            self._files.move_to_end(shard_number)
            return self._files[shard_number]
        if len(self._files) >= (OPEN_REMOTE if self.cache else OPEN_FILES):
            self._close(self._files.popitem(last=False)[1])
        if self.cache:
            descriptor = self.cache.open(self._wanted(shard_number))
        else:
            descriptor = os.open(self.path_of(shard_number), os.O_RDONLY)
        self._files[shard_number] = descriptor
        return descriptor

    def _close(self, descriptor: int) -> None:
        if self.cache:
            release(descriptor)
        else:
            os.close(descriptor)

    def _decoded(self, number: int, extension: str, decode: Callable[[bytes, str], Decoded]) -> Decoded:
        """A member, decoded; if its copy in the cache is damaged, from a new copy."""
        try:
            return decode(self.read(number, extension), self.where(number))
        except DataError:
            shard_number = int(self.shard_of[number])
            if self.cache is None or shard_number not in self._files:  # the shard itself could not be fetched
                raise
            if not self.cache.drop_if_damaged(self._wanted(shard_number)):
                raise
            self._close(self._files.pop(shard_number))
            return decode(self.read(number, extension), self.where(number))


def close_all(files: Mapping[int, int]) -> None:
    """Close descriptors. A lock of the cache ends with the last copy of its descriptor, so a fork may close its own."""
    for descriptor in files.values():
        os.close(descriptor)


def verify_command(folder: Place) -> str:
    return shlex.join(["wsss", "shards", "verify", str(folder)])


def check_size(folder: Path, shard: Shard) -> None:
    """Raise DataError unless the shard exists, is readable and has the length in the index."""
    path = folder / shard.name
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        got = "missing" if size is None else f"{size} bytes"
        raise DataError(
            f"{path}: {got}, the index says {shard.bytes} bytes; write or fetch it again, "
            f"then check with `{verify_command(folder)}`"
        )
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read by this user; fix its permissions")


def decode_about(data: bytes, where: str) -> dict[str, Any]:
    try:
        about = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{where}: its json does not parse ({type(error).__name__}); write it again") from error
    if not isinstance(about, dict):
        raise SampleError(f"{where}: its json is {type(about).__name__}; wanted an object; write it again")
    return about
