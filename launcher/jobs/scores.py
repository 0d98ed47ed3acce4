"""What lies in CAM shards and mask shards.

KEY.json      classes of the maps, class probabilities, group
KEY.KIND.npy  (n, h, w) float16 scores in [0, 1] of the n classes: a CAM at its own grid, or refined at the image's size
KEY.png       mask shards only: the final mask, class ids at the image's size
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from launcher.files import place_outputs
from launcher.jobs.sets import suffix_of
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask, encode_mask
from shards.members import AGAIN, members_next_to, sample_next_to
from shards.remote import Place, join
from shards.schema import DataError
from wsss.tensors import resize

REFINED = "refined"  # the kind of the scores in a mask shard


def cams_folder(run: Path, name: str | None) -> Place:
    """RUN/cams, or RUN/cams@NAME for a further set of CAMs made with other settings, where the run's outputs lie."""
    return place_outputs(run / f"cams{suffix_of(name)}")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one image.

    Attributes:
        class_ids: ids 1..K of the n maps.
        cls_probs: (K) probability that each class is in the image.
        maps: {kind: (n, h, w) float32}.
        mask: (H, W) class ids, in mask shards.

    Raises:
        DataError: a score or probability is NaN or infinite: at every threshold it would count as something.
    """

    key: str
    group: str
    class_ids: tuple[int, ...]
    cls_probs: tuple[float, ...]
    maps: Mapping[str, np.ndarray]
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, values in {**self.maps, "cls_probs": np.asarray(self.cls_probs)}.items():
            bad = int((~np.isfinite(values)).sum())
            if bad:
                raise DataError(
                    f"image '{self.key}': {bad} of {values.size} scores of {name} are NaN or infinite; the network "
                    "that gave them is broken: use an earlier checkpoint, or train.precision=ieee"
                )

    def members(self) -> dict[str, bytes]:
        about = {"class_ids": self.class_ids, "cls_probs": [round(p, 6) for p in self.cls_probs], "group": self.group}
        members = {"json": json.dumps(about, sort_keys=True).encode()}
        for kind, scores_nhw in self.maps.items():
            members[f"{kind}.npy"] = npy_bytes(scores_nhw.astype(np.float16))
        if self.mask is not None:
            members["png"] = encode_mask(self.mask)
        return members


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_scores(shards: ShardFolder, folder: Place, name: str, kind: str) -> Iterator[tuple[int, Scores]]:
    """(number, scores) of every sample of the image shard `name`, from FOLDER/name, a CAM or mask shard.

    Args:
        kind: must be among the maps.

    Raises:
        DataError: the tar is missing or damaged, holds other samples, other classes, or no maps of this kind.
    """
    for number, members in members_next_to(shards, folder, name, ("json", f"{kind}.npy")):
        yield number, parse_and_check(shards, join(folder, name), number, members, kind)


def read_scores_of(shards: ShardFolder, folder: Place, number: int, kind: str) -> Scores:
    """The scores of one sample, of which alone the bytes are read. Raises as read_scores."""
    path = join(folder, shards.index.shards[shards.shard_of[number]].name)
    members = sample_next_to(shards, folder, number, ("json", f"{kind}.npy"))
    return parse_and_check(shards, path, number, members, kind)


def parse_and_check(shards: ShardFolder, path: Place, number: int, members: Mapping[str, bytes], kind: str) -> Scores:
    """Parse and check the scores of a sample. Raises DataError: other classes, or no maps of this kind."""
    scores, num_classes = parse_scores(shards.keys[number], members, path), len(shards.index.classes)
    if len(scores.maps[kind]) != len(scores.class_ids):
        raise DataError(f"{path}: '{scores.key}' lacks the maps '{kind}' of its classes; {AGAIN}")
    if not all(1 <= class_id <= num_classes for class_id in scores.class_ids):
        raise DataError(f"{path}: '{scores.key}' has classes {scores.class_ids}, wanted 1 to {num_classes}; {AGAIN}")
    return scores


def parse_scores(key: str, members: Mapping[str, bytes], path: Place) -> Scores:
    try:
        about = json.loads(members["json"])
        maps = {
            extension.removesuffix(".npy"): np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
            for extension, data in members.items()
            if extension.endswith(".npy")
        }
        return Scores(
            key=key,
            group=about["group"],
            class_ids=tuple(about["class_ids"]),
            cls_probs=tuple(about["cls_probs"]),
            maps=maps,
            mask=decode_mask(members["png"], f"image '{key}'") if "png" in members else None,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}; {AGAIN}") from error
    except Exception as error:  # numpy and json tell damage in many ways
        raise DataError(f"{path}: '{key}' is damaged ({error!r}); {AGAIN}") from error


def at_size(scores_nhw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Score maps at the image's size, bilinear, in [0, 1]: interpolation may round a saturated map up to 1.0000001."""
    if len(scores_nhw) == 0:
        return np.zeros((0, *size), dtype=np.float32)
    return resize(torch.from_numpy(scores_nhw)[None], size)[0].clamp(0, 1).numpy()
