"""Image shards -> cue shards, and reading them next to the image shards.

OUT/SPLIT/NAME.tar next to job.json, one per image shard, read by every setting of every run; member KEY.EXTENSION of
each sample, as its Cue encodes it. Heavy imports wait until a job starts.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from launcher.errors import RunError, user_error_as
from launcher.jobs.cues import CUES, find_cue

if TYPE_CHECKING:
    from shards.folder import ShardFolder
    from shards.index import Index
    from shards.remote import Place


def write_cues(kind: str, shards: "Place", out: "Place", **settings: Any) -> "Place":
    """Write OUT/SPLIT/, one cue shard per image shard; goes on where it was stopped.

    Args:
        shards: folder of one split's image shards.
        settings: fields of the Cue of this kind.

    Returns:
        OUT/SPLIT.

    Raises:
        DataError: the image shards are not what they should be.
        RunError: weights missing or of another network, or OUT/SPLIT was made of other data or settings.
    """
    from launcher.jobs.cues.job import CueJob
    from launcher.jobs.network_job import write_next_to
    from launcher.jobs.starts import join_alike
    from shards.folder import ShardFolder
    from shards.places import everywhere
    from shards.remote import absolute, join, place_of

    cue, images = find_cue(kind)(**settings), ShardFolder(shards)
    share, processes = join_alike()
    with user_error_as(RunError):  # wsss knows no user
        of_cue = cue.identify(images.index.classes)
    job = CueJob(
        cue=cue,
        out=everywhere(join(out, images.index.split)),
        shards=place_of(absolute(images.folder)),
        fingerprint=images.index.fingerprint,
        weights=json.dumps(of_cue),
    )
    write_next_to(
        job,
        images,
        {"kind": kind, "fingerprint": images.index.fingerprint, **of_cue},
        opened=job.opened,
        share=share,
        processes=processes,
        label=f"{kind} cues of {images.index.split}",
    )
    return join(out, images.index.split)


def check_cues(folder: "Place", index: "Index") -> str:
    """The kind of the cues in OUT/SPLIT.

    Raises:
        RunError: none there, unfinished, or of other images than this index's.
    """
    from launcher.jobs import output

    kind = read_kind(folder)
    output.require_same_images(folder, index.fingerprint, "compute the cues of these images")
    output.require_all(folder, [shard.name for shard in index.shards])
    return kind


def read_kind(folder: "Place") -> str:
    """The kind of the cues in OUT/SPLIT; raises RunError if there are none."""
    from launcher.jobs import output

    kind = (output.read_made_of(folder) or {}).get("kind")
    if kind is None or kind not in CUES:
        raise RunError(f"{folder}: no cues here; compute them with `wsss cues` (see --help)")
    return kind


def read_cues(shards: "ShardFolder", folder: "Place", name: str) -> Iterator[Any]:
    """The cue of every sample of the image shard `name`, in order, from OUT/SPLIT.

    Decoded one at a time, for the masks of one large frame are hundreds of MB.

    Raises:
        RunError: no cues there.
        DataError: the tar is missing or damaged, or belongs to other image shards.
    """
    from shards.members import members_next_to
    from shards.remote import join
    from shards.schema import DataError

    cue, remedy = find_cue(read_kind(folder)), "remove this shard and run `wsss cues` again"
    for number, members in members_next_to(shards, folder, name, (cue.extension,), remedy=remedy):
        try:
            decoded = cue.decode(members[cue.extension])
        except Exception as error:  # numpy and zipfile tell damage in many ways
            raise DataError(
                f"{join(folder, name)}: '{shards.keys[number]}' is damaged ({error!r}); {remedy}"
            ) from error
        yield decoded
