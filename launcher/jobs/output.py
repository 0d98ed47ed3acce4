"""Jobs that turn one input shard into one output shard of the same name: safe to kill, to run again, to share.

An output folder holds job.json, which says what made it (inputs and settings), and the finished shards. A shard appears
under its name only when complete; a second run writes the missing ones; other settings are refused instead of mixed in.
Nothing in an output depends on the number of workers, so its bytes do not either."""

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from launcher.errors import RunError
from launcher.files import Damaged, find_json, set_aside, tell_refusal
from launcher.jobs.pool import run_pool
from launcher.jobs.write_shards import WORTH_A_POOL
from shards.cache import Cache
from shards.digests import find_change, note_path
from shards.folder import ShardFolder
from shards.places import (
    create_at,
    everywhere,
    forget_parts,
    list_names,
    remove,
    remove_below,
    require_store,
    size_of,
    write_at,
)
from shards.remote import Place, join, name_of, place_of
from shards.write import sweep_unfinished

JOB = "job.json"
REMEDY = "--overwrite replaces it, --name NAME keeps it and makes another; if the command has neither option, remove it"
WRITTEN_S = 3600.0  # after which nobody still writes a file of a few kB


def difference(name: str, before: Any, now: Any) -> str:
    """The first difference between two values of a setting; for a section, that of its first different option."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return difference(f"{name}.{key}", before.get(key), now.get(key))
    return f"{name}: {before!r}, now {now!r}"


def refuse_other_settings(out: Place, before: dict[str, Any], content: dict[str, Any], remedy: str) -> None:
    """Raise RunError, naming the first difference, unless a folder was made of what it shall be made of."""
    old, new = without_places(before), without_places(content)
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise RunError(
                f"{out}: made with other settings ({difference(name, before.get(name), content.get(name))}); {remedy}"
            )


def open_output(
    out: Place,
    content: dict[str, Any],
    *,
    shards: Sequence[str] = (),
    overwrite: bool = False,
    remedy: str = REMEDY,
) -> None:
    """Create the output folder, here or at a URL, or check that it was made of the same inputs and settings; sweep what
    killed writers left in it.

    Args:
        shards: that it will hold.
        overwrite: remove what is there first.
        remedy: what to do about a folder that was made with other settings.

    Raises:
        RunError: it was made of something else (names the first difference), or some of these shards exist without
            job.json, as when removing the folder was interrupted.
        DataError: a URL that nothing can be written to.
    """
    require_store(out)
    content = json.loads(json.dumps(content))
    if overwrite and isinstance(out, Path):
        shutil.rmtree(out, ignore_errors=True)
    elif overwrite:
        remove_below(str(out))
    there = list_names(out) & {*shards}  # looked for first: who writes them has described the folder before
    before = read_made_of(out)
    if before is None and there:
        raise RunError(f"{out}: {min(there)} is there, but no {JOB} says what it was made of; remove the folder first")
    if before is not None:
        refuse_other_settings(out, before, content, remedy)
        sweep(out)
        if not isinstance(out, Path):
            forget_parts(out)
        if before != content:  # the images lie elsewhere now
            write_at(join(out, JOB), json.dumps(content, indent=1))
        return
    try:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        create_at(join(out, JOB), json.dumps(content, indent=1))  # replaces none that another process has just written
    except FileExistsError:
        if isinstance(out, Path) and not (out / JOB).is_file():
            raise RunError(f"{out}: cannot be made: something else has this name; rename it") from None
        open_output(out, content, shards=shards, remedy=remedy)
    except OSError as error:
        said = tell_refusal(error, Path(out, JOB))
        if isinstance(out, Path):
            with suppress(OSError):
                out.rmdir()  # an empty folder would be taken for an output of unknown make
        raise RunError(f"{out}: cannot be written: {said}") from error


def read_made_of(out: Place) -> dict[str, Any] | None:
    """What an output folder was made of; None if there is none. Where that is damaged and the folder holds no shard, it
    is set aside and the job begins anew; raises RunError if it holds some."""
    path = join(out, JOB)
    try:
        return find_json(path)
    except Damaged as error:
        if any(name.endswith(".tar") for name in list_names(out)):
            raise RunError(f"{error}; remove the folder and run the job again") from error
        set_aside(path, error)
        return None


def digest_made_of(out: Place) -> str:
    """A digest of the settings of an output folder; "" if there is no such folder."""
    content = read_made_of(out)
    return "" if content is None else sha256(json.dumps(without_places(content), sort_keys=True).encode()).hexdigest()


def require_still(out: Place, digest: str) -> None:
    """Raise RunError if the folder was removed, or begun anew with other settings, since it had this digest."""
    if digest_made_of(out) != digest:
        raise RunError(
            f"{out}: was removed, or restarted with other settings, while this job wrote into it; run one job at a "
            "time, or give another --name"
        )


def require_same_images(out: Place, fingerprint: str, remedy: str) -> dict[str, Any]:
    """What an output folder was made of; raises RunError unless that was images of this fingerprint."""
    content = read_made_of(out) or {}
    got = content.get("fingerprint")
    if got != fingerprint:
        raise RunError(f"{out}: made of other images (fingerprint {got}, these shards {fingerprint}); {remedy}")
    return content


def without_places(content: Any) -> Any:
    """What a folder was made of, but for where its images lay: their fingerprint tells which they are."""
    if not isinstance(content, dict):
        return content
    known = "fingerprint" in content
    return {name: without_places(value) for name, value in content.items() if not (known and name == "shards")}


def open_images_of(folder: Place, content: dict[str, Any]) -> ShardFolder:
    """The image shards that a folder was made of, where they lay.

    Raises:
        RunError: they are not there; says how to tell where they are now.
        DataError: they are damaged.
    """
    place = place_of(content["shards"])
    if isinstance(place, Path) and not place.is_dir():
        raise RunError(
            f"{folder}: made of the images in {place}, which are gone; if they moved, run the command that made it "
            f"again with data.{name_of(folder)}=PLACE: if it finds the same images there, it only records the new place"
        )
    return ShardFolder(place)


def list_missing(out: Place, names: Sequence[str]) -> list[str]:
    """The shards that are not there yet, in order."""
    there = list_names(out)
    return [name for name in names if name not in there]


def sweep(out: Place) -> None:
    """Remove what killed writers left of an output folder, and nothing that a living one still writes."""
    if not isinstance(out, Path):
        sweep_unfinished(Cache.from_environment().folder)  # where this machine's shards wait until they are sent
        return
    sweep_unfinished(out)
    for temporary in out.glob(".*.json.*.tmp"):  # written at once, unlike shards, and not locked
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > WRITTEN_S:
                temporary.unlink()


def set_changed_aside(out: Place, names: Sequence[str]) -> None:
    """Rename finished shards whose bytes are no longer those that were written, so that they are made anew."""
    there = [join(everywhere(out), name) for name in sorted(list_names(out) & {*names})]
    large = sum(map(size_of, there)) > WORTH_A_POOL
    changes = run_pool(find_change, there, workers=None, label="check") if large else map(find_change, there)
    for path, change in zip(there, changes, strict=True):
        if change:
            remove(note_path(path))
            set_aside(path, f"{path}: {change}")


def require_all(out: Place, names: Sequence[str]) -> None:
    """Raise RunError unless all shards are there."""
    gone = list_missing(out, names)
    if gone:
        raise RunError(f"{out}: {len(gone)} of {len(names)} shards are missing, first {gone[0]}; run the job again")
