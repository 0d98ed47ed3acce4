"""CAM shards + image shards -> mask shards, in parallel worker processes."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.config.options import options_of
from launcher.config.sections import LaunchConfig, RefineConfig
from launcher.errors import ImageError, RunError, naming
from launcher.files import place_outputs, typed
from launcher.jobs import output
from launcher.jobs.crf_sums import require_memory, settle_chain
from launcher.jobs.cues import find_cue
from launcher.jobs.cues.shards import check_cues, read_cues
from launcher.jobs.over_shards import Members, Output, write_outputs, write_shard
from launcher.jobs.pool import open_shards
from launcher.jobs.scores import REFINED, Scores, at_size, cams_folder, read_scores
from launcher.jobs.sets import suffix_of
from launcher.jobs.shares import own_share
from launcher.jobs.starts import count_processes
from launcher.processes.surroundings import count_cores
from shards.folder import ShardFolder
from shards.places import everywhere
from shards.remote import Place, join
from shards.schema import DataError
from wsss.refine import REFINERS, takes_cue
from wsss.refine.chain import Step, run_chain
from wsss.refine.threshold import mask_of


def refine(
    run: Path,
    splits: Sequence[str],
    settings: RefineConfig,
    *,
    name: str | None = None,
    cams: str | None = None,
    overwrite: bool = False,
    launch: LaunchConfig | None = None,
) -> list[Place]:
    """Write RUN/masks/KIND+NAME/SPLIT/, where the run's outputs lie, for every kind of CAM and every split; returns
    these folders.

    Args:
        name: None = the names of the chain's refiners, `threshold` if there are none; another one lets several settings
            stand side by side.
        cams: name of a further set of CAMs to refine, see scores.cams_folder; its masks are KIND@CAMS+NAME.
        overwrite: remove these folders first.
        launch: what it says of machines and processes holds here, too.

    Raises:
        MissingPackage: of a refiner.
        RunError: no CAMs of a split yet, a kind that was not inferred, other settings in an output folder, shards that
            failed, each with its reason, or a disk without room for what is missing.
    """
    launch = launch or LaunchConfig()
    settings = settle_chain(settings)
    named = "+".join([refiner.name for refiner in settings.chain] or ["threshold"]) if name is None else name
    masks_of = f"{suffix_of(cams)}{suffix_of(named, '+')}"
    outputs: list[Output[ShardToRefine]] = []
    for split in splits:  # all are looked at before the first folder is claimed or removed
        for kind, made_of, tasks in plan_split(run, split, settings, cams):
            out = place_outputs(run / "masks" / f"{kind}{masks_of}" / split)
            of_kind = [task._replace(out=everywhere(out)) for task in tasks]
            bytes_each = 0
            if of_kind and (overwrite or output.read_made_of(out) is None):
                bytes_each = try_chain(settings, of_kind[0]) * of_kind[0].num_images
            outputs.append(Output(out, made_of, of_kind, bytes_each))
    work = partial(refine_shard, settings)
    write_outputs(
        outputs,
        work,
        here=work,
        share=own_share(launch),
        workers=settings.workers or count_processes(launch) or count_cores(),
        label="refine",
        overwrite=overwrite,
    )
    return [one.folder for one in outputs]


class ShardToRefine(NamedTuple):
    """One shard of one kind of CAM to refine."""

    images: Place
    fingerprint: str
    cams: Place
    cues: dict[str, Place]
    kind: str
    name: str
    num_images: int
    out: Place = Path()
    made_of: str = ""

    def __str__(self) -> str:
        return str(join(self.out, self.name))


def plan_split(
    run: Path, split: str, settings: RefineConfig, cams: str | None
) -> Iterator[tuple[str, dict[str, Any], list[ShardToRefine]]]:
    """(kind, what its masks are made of, its shards without the folder that they go to) of a split's kinds of CAM.
    Raises RunError as refine does."""
    folder = everywhere(join(cams_folder(run, cams), split))
    inferred = output.read_made_of(folder)
    if inferred is None:
        raise RunError(f"{folder}: no CAMs here; run `{typed('infer', run)}` first")
    shards = output.open_images_of(folder, inferred)
    output.require_same_images(folder, shards.index.fingerprint, f"infer again: `{typed('infer', run, '--overwrite')}`")
    output.require_all(folder, [shard.name for shard in shards.index.shards])
    cues = {step.name: cue_folder(settings, step.name, shards) for step in settings.chain if takes_cue(step.name)}
    kinds = settings.cams or inferred["cam"]["kinds"]
    unknown = sorted(set(kinds) - set(inferred["cam"]["kinds"]))
    if unknown:
        raise RunError(f"refine.cams: {unknown} are not among the inferred kinds {inferred['cam']['kinds']}")
    for kind in kinds:
        made_of = {
            **inferred,
            "kind": kind,
            "chain": [refiner.model_dump(mode="json") for refiner in settings.chain],
            "threshold": settings.threshold,
            "bg_threshold": settings.bg_threshold,
            "cues": {refiner: output.read_made_of(of_refiner) for refiner, of_refiner in cues.items()},
        }
        of_shards = (shards.folder, shards.index.fingerprint, folder, cues, kind)
        yield kind, made_of, [ShardToRefine(*of_shards, of.name, len(of.keys)) for of in shards.index.shards]


def cue_folder(settings: RefineConfig, refiner: str, shards: ShardFolder) -> Place:
    """The finished cues of a refiner for these image shards.

    Raises:
        RunError: none named or none there, or made for another refiner or of other images.
    """
    if refiner not in settings.cues:
        raise RunError(f"refine.cues: '{refiner}' needs what `wsss cues` computes for it; give its folder")
    folder = everywhere(join(settings.cues[refiner], shards.index.split))
    kind = check_cues(folder, shards.index)
    if kind != refiner:
        raise RunError(
            f"refine.cues.{refiner}: {folder} holds cues for '{kind}'; give the folder of those for '{refiner}'"
        )
    return folder


def refine_shard(settings: RefineConfig, task: ShardToRefine, advance: Callable[[], None] = lambda: None) -> None:
    """One CAM shard -> one mask shard of the same name; calls `advance` after each image."""
    images = open_shards(task.images, task.fingerprint)
    write_shard(task, refined_samples(settings, task), images, advance)


def try_chain(settings: RefineConfig, task: ShardToRefine) -> int:
    """Refine one image, so that an option that its refiner does not take is told before a folder is claimed. A damaged
    image or CAM is left for the job to find, which does the others first.

    Returns:
        The bytes of its members; 0 of one that is damaged.

    Raises:
        RunError: the chain does not run.
    """
    try:
        _, members = next(refined_samples(settings, task), (0, {}))
        return sum(map(len, members.values()))
    except DataError:
        return 0
    except ImageError as error:
        if type(error.__cause__) is ValueError:  # what an option that does not fit raises
            raise RunError(str(error)) from error
        return 0


def refined_samples(settings: RefineConfig, task: ShardToRefine) -> Generator[tuple[int, Members]]:
    """(number, members) of every sample of one mask shard, in order."""
    shards, chain = open_shards(task.images, task.fingerprint), resolve_chain(settings)
    streams = [read_cues(shards, folder, task.name) for folder in task.cues.values()]
    of_cams = read_scores(shards, task.cams, task.name, task.kind)
    for (number, scores), *found in zip(of_cams, *streams, strict=True):
        cues = {
            refiner: find_cue(refiner).select_classes(cue, scores.class_ids)
            for refiner, cue in zip(task.cues, found, strict=True)
        }
        with naming(shards.where(number)):
            members = refine_one(shards.image(number), scores, task.kind, settings, chain, cues).members()
        yield number, members


def resolve_chain(settings: RefineConfig) -> list[Step]:
    """The chain's refiners with their options. Checking these takes milliseconds: once per shard, not per image."""
    return [
        Step(named.name, partial(REFINERS[named.name], **options_of(named, REFINERS)), takes_cue(named.name))
        for named in settings.chain
    ]


def refine_one(
    image_HW3: np.ndarray,
    scores: Scores,
    kind: str,
    settings: RefineConfig,
    chain: Sequence[Step],
    cues: Mapping[str, Any],
) -> Scores:
    """Resize the cam to the image, run the chain, threshold. Raises ValueError as run_chain does, MemoryError as
    require_memory."""
    for named in settings.chain:
        if named.name == "crf":
            require_memory(named.options.get("by"), image_HW3.shape[:2], len(scores.class_ids) + 1)
    scores_nHW = run_chain(chain, image_HW3, at_size(scores.maps[kind], image_HW3.shape[:2]), cues)
    return Scores(
        key=scores.key,
        group=scores.group,
        class_ids=scores.class_ids,
        cls_probs=scores.cls_probs,
        maps={REFINED: scores_nHW},
        mask=mask_of(scores_nHW, scores.class_ids, threshold=settings.threshold, bg_threshold=settings.bg_threshold),
    )
