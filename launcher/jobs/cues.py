"""Image shards -> cue shards: what a refiner needs of each image beside its scores, computed once per split.

OUT/SPLIT/NAME.tar beside job.json, one per image shard, read by every setting of every run:

    KEY.masks      SAM proposals, packed (wsss.refine.sam.pack)
    KEY.clip.npy   CLIP maps of all K classes, (K, h, w) float16
    KEY.walk.npz   AffinityNet's affinities, (O, P) float16, their grid (h, w) and radius

Each of N processes takes every N-th missing shard. Heavy imports wait until a job starts.
"""

import io
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import RunError
from launcher.jobs.cue_makers import EXTENSIONS, MAKERS, Kind, Make

if TYPE_CHECKING:
    from accelerate import PartialState

    from shards.folder import ShardFolder
    from shards.index import Index
    from shards.remote import Place

LONGEST_SHARD = timedelta(days=7)  # a process waits that long for one that still has a shard to finish


def write_cues(kind: Kind, shards: "Place", out: Path, **settings: Any) -> Path:
    """Write OUT/SPLIT/, one cue shard per image shard; goes on where it was stopped.

    Args:
        shards: folder of one split's image shards.
        settings: fields of SamCues, ClipCues or WalkCues.

    Returns:
        OUT/SPLIT.

    Raises:
        DataError: the image shards are not what they should be.
        RunError: weights missing or of another network, or OUT/SPLIT was made of other data or settings.
    """
    from launcher.jobs import output as jobs
    from launcher.progress import Progress
    from shards.folder import ShardFolder
    from shards.write import write_tar

    maker, images = MAKERS[kind](**settings), ShardFolder(shards)
    classes, target, state = images.index.classes, out / images.index.split, join()
    try:
        if state.is_main_process:
            content = {"kind": kind, "fingerprint": images.index.fingerprint, **maker.made_of(classes)}
            jobs.open_output(target, content)
        state.wait_for_everyone()
        names = [shard.name for shard in images.index.shards]
        todo = jobs.missing(target, names)[state.process_index :: state.num_processes]
        state.wait_for_everyone()  # nobody writes before everybody has looked
        make = maker.start(state.device, classes) if todo else None
    except ValueError as error:  # from wsss, which knows no user
        raise RunError(str(error)) from error
    total = sum(len(images.numbers_of(name)) for name in todo)
    with Progress(total, f"{kind} cues of {images.index.split}", "image", enabled=state.is_main_process) as progress:

        def samples(name: str, make: Make) -> Iterator[tuple[str, dict[str, bytes]]]:
            numbers = images.numbers_of(name)
            for first in range(0, len(numbers), maker.batch_size):
                batch = numbers[first : first + maker.batch_size]
                for number, members in zip(batch, make([images.image(number) for number in batch]), strict=True):
                    yield images.keys[number], members
                    progress.advance()

        for name in todo:
            assert make is not None
            write_tar(target / name, samples(name, make))
    state.wait_for_everyone()
    if state.is_main_process:
        jobs.require_all(target, names)
    return target


def join() -> "PartialState":
    """This process among those that `accelerate launch` started; raises RunError if they do not know of each other."""
    import torch
    from accelerate import PartialState

    cpu, started = not torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1"))
    group = {"backend": "gloo" if cpu else "nccl", "timeout": LONGEST_SHARD} if started > 1 else {}
    state = PartialState(cpu=cpu, **group)
    if state.num_processes != started:
        raise RunError(f"{started} processes were started, but Accelerate joined {state.num_processes}")
    return state


def check_cues(folder: Path, index: "Index") -> str:
    """The kind of the cues in OUT/SPLIT.

    Raises:
        RunError: none there, unfinished, or of other images than this index's.
    """
    from launcher.jobs import output as jobs

    made_of = jobs.read_made_of(folder)
    if made_of is None or made_of.get("kind") not in EXTENSIONS:
        raise RunError(f"{folder}: no cues here; compute them with `wsss cues` (see --help)")
    jobs.require_same_images(folder, index.fingerprint, "compute the cues of these images")
    jobs.require_all(folder, [shard.name for shard in index.shards])
    return made_of["kind"]


def read_cues(shards: "ShardFolder", folder: Path, name: str) -> Iterator[Any]:
    """The cue of every sample of the image shard `name`, in order, from OUT/SPLIT.

    (M, H, W) bool SAM proposals, (K, h, w) float32 CLIP maps, or AffinityCue; decoded one at a time, for the masks of
    one large frame are hundreds of MB.

    Raises:
        RunError: no cues there.
        DataError: the tar is missing or damaged, or belongs to other image shards.
    """
    from launcher.jobs import output as jobs
    from shards.members import members_next_to
    from shards.schema import DataError

    made_of = jobs.read_made_of(folder)
    if made_of is None:
        raise RunError(f"{folder}: no cues here; compute them with `wsss cues` (see --help)")
    kind, remedy = made_of["kind"], "remove this shard and run `wsss cues` again"
    for number, members in members_next_to(shards, folder, name, (EXTENSIONS[kind],), remedy=remedy):
        try:
            cue = decode_cue(kind, members[EXTENSIONS[kind]])
        except Exception as error:  # numpy and zipfile tell damage in many ways
            raise DataError(f"{folder / name}: '{shards.keys[number]}' is damaged ({error!r}); {remedy}") from error
        yield cue


def decode_cue(kind: str, data: bytes) -> Any:
    import numpy as np

    from wsss.refine.sam import unpack
    from wsss.refine.walk import AffinityCue

    if kind == "sam":
        return unpack(data)
    found = np.load(io.BytesIO(data), allow_pickle=False)
    if kind == "walk":
        height, width = found["size"].tolist()
        return AffinityCue(found["affinity"], (height, width), int(found["radius"]))
    return found.astype(np.float32)


def of_classes(kind: str, cue: Any, class_ids: Sequence[int]) -> Any:
    """The part of a cue that belongs to these class ids 1..K; proposals and affinities know no class."""
    return cue[[class_id - 1 for class_id in class_ids]] if kind == "clip" else cue
