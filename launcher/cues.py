"""Image shards -> cue shards: what a refiner needs of each image beside its scores, computed once per split.

OUT/SPLIT/NAME.tar beside job.json, one per image shard, read by every setting of every run:

    KEY.masks      SAM proposals, packed (wsss.refine.sam.pack)
    KEY.clip.npy   CLIP maps of all K classes, (K, h, w) float16
    KEY.walk.npz   AffinityNet's affinities, (O, P) float16, their grid (h, w) and radius

Each of N processes takes every N-th missing shard; see launcher/cue_commands.py. Heavy imports wait until a job starts.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from accelerate import PartialState

    from shards.index import Index
    from shards.remote import Place
    from wsss.refine.sam import Variant

Kind = Literal["sam", "clip", "walk"]
Make = Callable[[Sequence["np.ndarray"]], list[dict[str, bytes]]]  # images -> their members
EXTENSIONS = {"sam": "masks", "clip": "clip.npy", "walk": "walk.npz"}
LONGEST_SHARD = timedelta(days=7)  # a process waits that long for one that still has a shard to finish


@dataclass(frozen=True, kw_only=True)
class SamCues:
    """Settings of wsss.refine.sam.sam_proposals and the weights; points_per_batch is memory and no setting."""

    weights: Path
    variant: "Variant" = "vit_h"
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.70
    stability: float = 0.85
    crop_layers: int = 0
    min_area_px: int = 20
    batch_size: int = 1  # images; SAM batches the prompts of one image instead

    def options(self) -> dict[str, Any]:
        """What sam_proposals takes beside the image."""
        others = ("weights", "variant", "batch_size")
        return {name: value for name, value in vars(self).items() if name not in others}

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.index import sha256_of
        from wsss.refine.sam import check_weights

        check_weights(self.weights, self.variant)
        settings = {name: value for name, value in self.options().items() if name != "points_per_batch"}
        return {"weights": sha256_of(self.weights), "variant": self.variant, **settings}

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        from wsss.refine.sam import load_sam, pack, sam_proposals

        model, options = load_sam(self.weights, self.variant, device), self.options()
        return lambda images: [{EXTENSIONS["sam"]: pack(sam_proposals(model, image, **options))} for image in images]


@dataclass(frozen=True, kw_only=True)
class ClipCues:
    """A CLIP folder, its input size, and prompts.

    Attributes:
        positive: prompts of the class, for data of one class; None = SMOKE_PROMPTS for smoke, else the classes' names.
        negative: None = what surrounds smoke, or common scenery for other classes.
        batch_size: images at a time; batches end with their shard, so that its bytes do not depend on its neighbours.
    """

    weights: Path
    size: int = 448
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    batch_size: int = 8

    def prompts(self, classes: Sequence[str]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        """The prompts of each class, and the negative ones."""
        from wsss.refine.clip import SCENE_NEGATIVES, SMOKE_NEGATIVES, SMOKE_PROMPTS

        smoke = tuple(classes) == ("smoke",)
        if self.positive is not None and len(classes) != 1:
            raise RunError(
                f"--positive is for data of one class; these have {len(classes)}, which speak for themselves"
            )
        positive = [self.positive or (SMOKE_PROMPTS if smoke else (name,)) for name in classes]
        return positive, self.negative or (SMOKE_NEGATIVES if smoke else SCENE_NEGATIVES)

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from shards.index import sha256_of
        from wsss.refine.clip import FILES, TEMPLATES, check_folder

        check_folder(self.weights)
        positive, negative = self.prompts(classes)
        digests = {name: sha256_of(self.weights / name) for name in FILES}
        return {"weights": digests, "size": self.size, "positive": positive, "negative": negative,
                "templates": TEMPLATES}  # fmt: skip

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        import numpy as np

        from launcher.scores import npy_bytes
        from wsss.refine.clip import encode_prompts, load_clip, maps_of_prompts

        model = load_clip(self.weights, device)
        model.side(self.size)  # refused before the first image
        prompts = encode_prompts(model, *self.prompts(classes))

        def make(images: Sequence[np.ndarray]) -> list[dict[str, bytes]]:
            maps_BKhw = maps_of_prompts(model, images, prompts, size=self.size).cpu().numpy().astype(np.float16)
            return [{EXTENSIONS["clip"]: npy_bytes(maps_Khw)} for maps_Khw in maps_BKhw]

        return make


@dataclass(frozen=True, kw_only=True)
class WalkCues:
    """The run of method `affinity` whose network says which neighbouring positions belong together."""

    run: Path
    batch_size: int = 8

    def made_of(self, classes: Sequence[str]) -> dict[str, Any]:
        from launcher.build import load_about
        from launcher.checkpoint import MODEL, latest
        from shards.index import sha256_of

        config, _ = load_about(self.run)
        if config.method.name != "affinity":
            raise RunError(f"{self.run}: trained by method '{config.method.name}'; affinities need method 'affinity'")
        return {"weights": sha256_of(latest(self.run) / MODEL), "image_size": config.data.image_size}

    def start(self, device: Any, classes: Sequence[str]) -> Make:
        import numpy as np
        import torch

        from launcher.build import load_run
        from shards.augment import Squash
        from wsss.methods.affinity import Affinity

        config, _, method, _ = load_run(self.run)
        method.to(device)
        squash = Squash(size=config.data.image_size)

        def make(images: Sequence[np.ndarray]) -> list[dict[str, bytes]]:
            views = np.stack([squash(image).image_SS3 for image in images]).transpose(0, 3, 1, 2)
            image_B3SS = torch.from_numpy(views).to(device).float() / 255
            assert isinstance(method, Affinity)  # made_of has looked
            affinity_BOP, size = method.affinities(image_B3SS)
            return [{EXTENSIONS["walk"]: packed(a, size, method.radius)} for a in affinity_BOP.cpu().numpy()]

        def packed(affinity_OP: np.ndarray, size: tuple[int, int], radius: int) -> bytes:
            buffer = io.BytesIO()
            np.savez(buffer, affinity=affinity_OP.astype(np.float16), size=np.array(size), radius=radius)
            return buffer.getvalue()

        return make


MAKERS: dict[str, Callable[..., SamCues | ClipCues | WalkCues]] = {"sam": SamCues, "clip": ClipCues, "walk": WalkCues}


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
    from launcher import jobs
    from launcher.progress import Progress
    from shards.stream import ShardFolder
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
        jobs.finished(target, names)
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


class Cues(Mapping[str, Any]):
    """The cues of one shard by key. Decoded when asked for: the masks of one large frame are hundreds of MB."""

    def __init__(self, kind: str, members: Mapping[str, bytes], path: Path) -> None:
        self.kind, self.members, self.path = kind, members, path

    def __getitem__(self, key: str) -> Any:
        import numpy as np

        from shards.schema import DataError
        from wsss.refine.sam import unpack
        from wsss.refine.walk import AffinityCue

        if key not in self.members:
            raise DataError(f"{self.path}: has no cue for '{key}'; compute the cues of these image shards")
        try:
            if self.kind == "sam":
                return unpack(self.members[key])
            found = np.load(io.BytesIO(self.members[key]), allow_pickle=False)
            if self.kind == "walk":
                height, width = found["size"].tolist()
                return AffinityCue(found["affinity"], (height, width), int(found["radius"]))
            return found.astype(np.float32)
        except Exception as error:  # numpy and zipfile tell damage in many ways
            raise DataError(
                f"{self.path}: '{key}' is damaged ({error!r}); remove this shard and run `wsss cues` again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def check_cues(folder: Path, index: "Index") -> str:
    """The kind of the cues in OUT/SPLIT.

    Raises:
        RunError: none there, unfinished, or of other images than this index's.
    """
    from launcher import jobs

    made_of = jobs.made_of(folder)
    if made_of is None or made_of.get("kind") not in EXTENSIONS:
        raise RunError(f"{folder}: no cues here; compute them with `wsss cues` (see --help)")
    jobs.of_same_images(folder, index.fingerprint, "compute the cues of these images")
    jobs.finished(folder, [shard.name for shard in index.shards])
    return made_of["kind"]


def read_cues(folder: Path, shard_name: str) -> Cues:
    """{key: cue} of one shard of OUT/SPLIT: (M, H, W) bool SAM proposals, (K, h, w) float32 CLIP maps, or AffinityCue.

    Raises:
        RunError: no cues there.
        DataError: the tar is damaged.
    """
    from launcher import jobs
    from shards.index import tar_members

    made_of, path = jobs.made_of(folder), folder / shard_name
    if made_of is None or not path.is_file():
        raise RunError(f"{path}: no cues here; compute them with `wsss cues` (see --help)")
    extension = EXTENSIONS[made_of["kind"]]
    members = {key: data for key, found, _, data in tar_members(path) if found == extension}
    return Cues(made_of["kind"], members, path)


def of_classes(kind: str, cue: Any, class_ids: Sequence[int]) -> Any:
    """The part of a cue that belongs to these class ids 1..K; proposals and affinities know no class."""
    return cue[[class_id - 1 for class_id in class_ids]] if kind == "clip" else cue
