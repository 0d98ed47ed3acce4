"""CAM shards + image shards -> mask shards, in parallel worker processes."""

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from launcher import jobs
from launcher.config import Named, RefineConfig, options_of
from launcher.errors import RunError
from launcher.scores import REFINED, Scores, read_scores
from shards.stream import ShardFolder
from shards.write import write_tar
from wsss.cam import resize
from wsss.refine import REFINERS, mask_of


def refine(
    run: Path, splits: Sequence[str], settings: RefineConfig, *, name: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Write RUN/masks/KIND+NAME/SPLIT/ for every kind of CAM and every split; returns these folders.

    Args:
        name: None = the names of the chain's refiners; another one lets several settings stand side by side.
        overwrite: remove these folders first.

    Raises:
        RunError: no CAMs of a split yet, a kind that was not inferred, or other settings in an output folder.
        DataError: shards that failed, each with its reason.
    """
    chain = [refiner.model_dump(mode="json") for refiner in settings.chain]
    parts = [refiner.name for refiner in settings.chain] if name is None else [name]
    outs, items = [], []
    for split in splits:
        cams = run / "cams" / split
        inferred = jobs.made_of(cams)
        if inferred is None:
            raise RunError(f"{cams}: no CAMs here; run `wsss infer {run}` first")
        shards = ShardFolder(Path(inferred["shards"]))
        names = [shard.name for shard in shards.index.shards]
        jobs.finished(cams, names)
        kinds = settings.cams or inferred["cam"]["kinds"]
        unknown = sorted(set(kinds) - set(inferred["cam"]["kinds"]))
        if unknown:
            raise RunError(f"refine.cams: {unknown} not among the inferred kinds {inferred['cam']['kinds']}")
        for kind in kinds:
            out = run / "masks" / "+".join([kind, *parts]) / split
            if overwrite:
                shutil.rmtree(out, ignore_errors=True)
            jobs.open_output(out, {**inferred, "kind": kind, "chain": chain, "threshold": settings.threshold})
            outs.append(out)
            items += [Task(shards.folder, cams, out, kind, name) for name in jobs.missing(out, names)]
    work = partial(refine_shard, settings.chain, settings.threshold)
    list(jobs.run_pool(work, items, workers=settings.workers, label="refine"))
    return outs


class Task(NamedTuple):
    """One shard of one kind of CAM to refine."""

    images: Path
    cams: Path
    out: Path
    kind: str
    name: str

    def __str__(self) -> str:
        return str(self.out / self.name)


def refine_shard(chain: tuple[Named, ...], threshold: float, task: Task) -> None:
    """One CAM shard -> one mask shard of the same name."""
    shards = open_shards(task.images)

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number, scores in zip(shards.numbers_of(task.name), read_scores(task.cams / task.name), strict=True):
            if scores.key != shards.keys[number]:
                raise RunError(f"{task.cams / task.name}: holds '{scores.key}', images '{shards.keys[number]}'")
            yield scores.key, refine_one(shards.image(number), scores, task.kind, chain, threshold).members()

    write_tar(task.out / task.name, samples())


@lru_cache(maxsize=4)
def open_shards(folder: Path) -> ShardFolder:
    """Opened once per worker process."""
    return ShardFolder(folder)


def refine_one(image_HW3: np.ndarray, scores: Scores, kind: str, chain: tuple[Named, ...], threshold: float) -> Scores:
    """Resize the cam to the image, run the chain, threshold."""
    scores_nHW = at_size(scores.maps[kind], image_HW3.shape[:2])
    for refiner in chain:
        scores_nHW = REFINERS[refiner.name](image_HW3, scores_nHW, **options_of(refiner, REFINERS))
    return Scores(
        key=scores.key,
        group=scores.group,
        class_ids=scores.class_ids,
        cls_probs=scores.cls_probs,
        maps={REFINED: scores_nHW},
        mask=mask_of(scores_nHW, scores.class_ids, threshold=threshold),
    )


def at_size(scores_nhw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Score maps at the image's size, bilinear."""
    if len(scores_nhw) == 0:
        return np.zeros((0, *size), dtype=np.float32)
    return resize(torch.from_numpy(scores_nhw)[None], size)[0].numpy()
