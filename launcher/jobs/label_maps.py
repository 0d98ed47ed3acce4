"""Label maps that a network segmented: which sets a run has, and reading one next to its image shards."""

import json
from collections.abc import Iterator

import numpy as np

from launcher.jobs.sets import find_sets
from shards.digests import held_here
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask
from shards.members import members_next_to, read_span, sample_next_to
from shards.places import list_names
from shards.remote import Place, join, name_of, parent_of
from shards.schema import DataError, check_class_ids
from shards.tars import tar_spans

REMEDY = "remove this shard and segment again"


def segment_sources_of(run: Place, split: str) -> dict[str, tuple[Place, str]]:
    """{name: (folder of mask shards, extension of the label map)} of all that a run has segmented, whose outputs lie at
    `run`.

    A name is `segments` of the run's own masks, segments@SET of a further set, and either with .cam or .aux_cam.
    """
    sources = {}
    for folder in find_sets(run, "segments", split):
        extensions = {"png"}
        for name in list_shards(folder)[:1]:
            with held_here(join(folder, name), REMEDY) as here:
                extensions = {extension for _, extension, _ in tar_spans(here)}
        for extension in sorted(extensions - {"json"}, key=lambda name: (name != "png", name)):
            kind = extension.removesuffix("png").removesuffix(".")
            sources[f"{name_of(parent_of(folder))}{'.' * bool(kind)}{kind}"] = (folder, extension)
    return sources


def read_label_maps(shards: ShardFolder, folder: Place, name: str, extension: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number, (H, W) class ids) of every sample of the image shard `name`, from FOLDER/name.

    Raises:
        DataError: the tar is missing or damaged, belongs to other image shards, or holds ids that are no class.
    """
    for number, members in members_next_to(shards, folder, name, (extension,), remedy=REMEDY):
        yield number, decode_label_map(shards, folder, number, members[extension])


def read_label_map(shards: ShardFolder, folder: Place, number: int, extension: str) -> np.ndarray:
    """The label map of one sample, of which alone the bytes are read. Raises as read_label_maps."""
    members = sample_next_to(shards, folder, number, (extension,), remedy=REMEDY)
    return decode_label_map(shards, folder, number, members[extension])


def decode_label_map(shards: ShardFolder, folder: Place, number: int, data: bytes) -> np.ndarray:
    where = f"{join(folder, shards.index.shards[shards.shard_of[number]].name)}: sample '{shards.keys[number]}'"
    label_HW = decode_mask(data, where)
    check_class_ids(label_HW, shards.index.as_class_set(), where)
    return label_HW


def list_shards(folder: Place) -> list[str]:
    return sorted(name for name in list_names(folder) if name.endswith(".tar"))


def read_left_out(folder: Place) -> list[float]:
    """Of every image whose CRF looked at the proposed classes alone, the mean probability of the others, as `wsss
    segment` stored it. Raises DataError if a description is damaged."""
    found = []
    for path in (join(folder, name) for name in list_shards(folder)):
        with held_here(path, REMEDY) as here:
            for key, extension, span in tar_spans(here):
                if extension != "json":
                    continue
                try:
                    about = json.loads(read_span(here, span))
                    found += [float(about["left_out"])] if "left_out" in about else []
                except (ValueError, TypeError) as error:
                    raise DataError(f"{path}: '{key}' has a damaged json ({error!r}); {REMEDY}") from error
    return found
