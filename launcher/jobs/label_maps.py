"""Label maps that a network segmented: which sets a run has, and reading one next to its image shards."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launcher.errors import RunError
from shards.folder import ShardFolder
from shards.schema import decode_mask
from shards.tars import tar_members


def segment_sources_of(run: Path, split: str) -> dict[str, tuple[Path, str]]:
    """{name: (folder of mask shards, extension of the label map)} of all that a run has segmented.

    A name is `segments` of the run's own masks, segments@SET of a further set, and either with .cam or .aux_cam.
    """
    sources = {}
    for folder in sorted(run.glob(f"segments*/{split}")):
        shard = next(iter(sorted(folder.glob("*.tar"))), None)
        extensions = {extension for _, extension, _, _ in tar_members(shard)} if shard else {"png"}
        for extension in sorted(extensions - {"json"}, key=lambda name: (name != "png", name)):
            kind = extension.removesuffix("png").removesuffix(".")
            sources[f"{folder.parent.name}{'.' * bool(kind)}{kind}"] = (folder, extension)
    return sources


def labels_of(path: Path, extension: str, shards: ShardFolder) -> Iterator[np.ndarray]:
    """The label maps (H, W) of one mask shard, in the order of the image shard of the same name.

    Raises:
        RunError: it holds other samples.
    """
    found = {key: data for key, of_member, _, data in tar_members(path) if of_member == extension}
    wanted = [shards.keys[number] for number in shards.numbers_of(path.name)]
    if list(found) != wanted:
        raise RunError(
            f"{path}: holds {len(found)} '{extension}' maps from {list(found)[:1]}; wanted {len(wanted)} from "
            f"'{wanted[0]}': it belongs to other image shards; remove it and segment again"
        )
    for key, data in found.items():
        yield decode_mask(data, f"{path}: {key}.{extension}")
