"""The room that a job needs on the disk for what it still has to write."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.errors import RunError
from shards.remote import Place


class Room:
    """Whether the disk has room for the missing shards, estimated from the size of the existing ones. Outputs at a URL
    are not checked.

    Args:
        starts: of this job, which fill the same disk and get on alike.
    """

    def __init__(self, starts: int) -> None:
        self.starts = starts
        self.sizes: dict[Path, list[int]] = {}
        self.missing: dict[Path, int] = {}
        self.likely: dict[Path, int] = {}

    def add(self, out: Place, names: Sequence[str], likely_bytes: int) -> None:
        """An output folder with these shards; `likely_bytes` of a shard count until there is one."""
        if not isinstance(out, Path):
            return
        out = out.absolute()
        self.sizes[out] = [(out / name).stat().st_size for name in names if (out / name).is_file()]
        self.missing[out] = len(names) - len(self.sizes[out])
        self.likely[out] = likely_bytes

    def finish(self, out: Place, name: str) -> None:
        """A shard is there now. Raises RunError as `check`."""
        if not isinstance(out, Path):
            return
        out = out.absolute()
        with suppress(OSError):
            self.sizes[out].append((out / name).stat().st_size)
        self.missing[out] = max(0, self.missing[out] - self.starts)
        self.check()

    def check(self) -> None:
        """Raise RunError if the disk has no room for what is missing."""
        left = {out: count for out, count in self.missing.items() if count}
        bytes_of = {out: sum(sizes) // len(sizes) if (sizes := self.sizes[out]) else self.likely[out] for out in left}
        wanted = sum(count * bytes_of[out] for out, count in left.items())
        if not wanted:
            return
        out = next(iter(left))
        free = shutil.disk_usage(out).free
        if wanted > free:
            each = max(bytes_of.values())
            raise RunError(
                f"{out}: {sum(left.values())} shards are missing, of about {each / 1e6:.1f} MB each: "
                f"{wanted / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free on this disk; make room, and start "
                "again: what is finished is kept"
            )
