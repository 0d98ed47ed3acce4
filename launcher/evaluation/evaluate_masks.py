"""Masks of `wsss segment` + truth -> mIoU, with the protocol that each figure belongs to."""

from functools import partial
from pathlib import Path
from typing import Any

from launcher.evaluation.mask_tally import MaskTally
from launcher.evaluation.protocol import segment_protocol
from launcher.jobs import output as jobs
from launcher.jobs import pool
from launcher.jobs.label_maps import read_label_maps, segment_sources_of
from shards.folder import ShardFolder

FEW_IMAGES = 2000  # that many are counted faster in this process than others can be started


def evaluate_segments(run: Path, truth: ShardFolder, seed: int) -> dict[str, dict[str, Any]]:
    """{source: its protocol and figures}, in the form of the other sources of an evaluation.

    Raises:
        RunError: masks of other images, or a shard that is missing.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, (folder, extension) in segment_sources_of(run, truth.index.split).items():
        mend = f"remove the folder and run `wsss segment {run}` again"
        made_of = jobs.require_same_images(folder, truth.index.fingerprint, mend)
        found[name] = {
            "protocol": segment_protocol(made_of, extension, truth.index.split, seed),
            "chain": [],
            "fixed": tally_of(truth, folder, extension).figures(),
            "tuned": None,
        }
    return found


def tally_of(truth: ShardFolder, folder: Path, extension: str) -> MaskTally:
    """Every image of a folder of mask shards counted once; many images are counted in worker processes."""
    names = [shard.name for shard in truth.index.shards]
    jobs.require_all(folder, names)
    work = partial(tally_of_shard, truth, folder, extension)
    workers = 1 if len(truth) < FEW_IMAGES else None
    whole = MaskTally(truth.index.as_class_set())
    for part in pool.run_pool(work, names, workers=workers, label=f"evaluate {folder.parent.name}"):
        whole.extend(part)
    return whole


def tally_of_shard(truth: ShardFolder, folder: Path, extension: str, name: str) -> MaskTally:
    tally = MaskTally(truth.index.as_class_set())
    for number, label_HW in read_label_maps(truth, folder, name, extension):
        tally.add(label_HW, truth.mask(number), truth.groups[number])
    return tally
