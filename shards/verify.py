"""Every byte of a folder of shards compared with its index."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shards.cache import Cache
from shards.index import Index, Shard
from shards.index_shard import index_shard
from shards.remote import Place, download, place_of
from shards.schema import DataError
from shards.tars import sha256_of

TRIES = 2  # for one shard, since the user of `verify` waits for the result


def verify(folder: Place, run: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map) -> Index:
    """Compare every byte of a shard folder with its index. From a URL, every shard is fetched again.

    Args:
        run: like `map`; that of a process pool reads shards in parallel.

    Raises:
        DataError: lists every shard that is missing, has another size, has changed, or differs from the index.
    """
    folder = place_of(folder)
    index = Index.load(folder)
    problems = [problem for problem in run(partial(problem_of, folder), index.shards) if problem]
    if isinstance(folder, Path):
        extra = {path.name for path in folder.glob("*.tar")} - {shard.name for shard in index.shards}
        problems += [f"{name}: not in the index" for name in sorted(extra)]
    if problems:
        listed = "\n  ".join(problems)
        raise DataError(
            f"{folder}: {len(problems)} of {len(index.shards)} shards have changed since they were written:\n  "
            f"{listed}\nWrite the shards again, or restore them from a copy."
        )
    return index


def problem_of(folder: Place, shard: Shard) -> str:
    """What is wrong with a shard; "" if it is as it was written."""
    try:
        return difference(folder / shard.name, shard) if isinstance(folder, Path) else remote_problem(folder, shard)
    except DataError as error:
        return f"{shard.name}: {error}"


def difference(path: Path, shard: Shard) -> str:
    """What is wrong with the bytes of a file that should be this shard. Raises DataError if it cannot be read."""
    if not path.is_file():
        return f"{shard.name}: missing"
    if path.stat().st_size != shard.bytes:
        return f"{shard.name}: {path.stat().st_size} bytes; the index says {shard.bytes}"
    if sha256_of(path) != shard.sha256:
        return f"{shard.name}: its sha256 differs from the index: its bytes have changed"
    if index_shard(path, shard.name) != shard:
        return f"{shard.name}: its members are not where the index says"
    return ""


def remote_problem(folder: str, shard: Shard) -> str:
    """The same for a remote shard, fetched again even if it is cached. Raises DataError if it cannot be fetched."""
    with TemporaryDirectory(dir=Cache.from_environment().folder) as here:
        path = Path(here) / shard.name
        download(f"{folder}/{shard.name}", path, shard.bytes, shard.sha256, tries=TRIES)
        return difference(path, shard)
