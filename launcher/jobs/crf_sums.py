"""How the CRF of a job sums over pixels: decided once, when the job starts, and recorded in its output."""

import sys
from typing import Any

import torch

from launcher.config.options import Named
from launcher.config.sections import RefineConfig, SegmentConfig
from launcher.processes.surroundings import free_memory
from wsss.refine.crf import By, choose_sum, lattice_bytes, remedy


def settle_chain(settings: RefineConfig) -> RefineConfig:
    """The settings with `by` of every CRF written out.

    Raises:
        MissingPackage: the lattice is requested, and its package is not installed.
    """
    chain = tuple(
        Named(name=step.name, **{**step.options, "by": settle(step.options.get("by"))}) if step.name == "crf" else step
        for step in settings.chain
    )
    return settings.model_copy(update={"chain": chain})


def settle_segment(settings: SegmentConfig, device: str) -> SegmentConfig:
    """The settings with `mean_field.by` written out. An exact sum on a GPU is done by the process that has it.

    Raises:
        MissingPackage: as settle_chain.
    """
    if not settings.crf:
        return settings
    by = settle(settings.mean_field.by, device)
    update: dict[str, Any] = {"mean_field": settings.mean_field.model_copy(update={"by": by})}
    if by == "exact" and device == "cuda":
        update["workers"] = 0
    return settings.model_copy(update=update)


def settle(wanted: By | None, device: str = "cpu") -> By:
    """See choose_sum; prints a note if the slow exact sum is used without having been requested."""
    by = choose_sum(wanted, device)
    if wanted is None and by == "exact" and not torch.cuda.is_available():
        print(
            "pydensecrf is not installed: the CRF sums over all pairs of pixels, exactly and slowly (on a core 1 s "
            f"for 96 x 96 pixels, 30 s for 224 x 224, 10 minutes for a photograph). The lattice is faster: {remedy()}",
            file=sys.stderr,
            flush=True,
        )
    return by


def require_memory(by: By | None, size: tuple[int, int], classes: int) -> None:
    """Raise MemoryError if the lattice of an image does not fit into the memory that is free here.

    Args:
        by: see settle.
        size: (height, width) of the image.
        classes: that its CRF looks at, background among them.
    """
    wanted = lattice_bytes(*size, classes) if by == "lattice" else 0
    if wanted > (free := free_memory()):
        raise MemoryError(
            f"the CRF of {size[0]} x {size[1]} pixels and {classes} classes takes up to {wanted / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free here: write the image shards with smaller images, run fewer processes "
            "(refine.workers, segment.workers), or leave the CRF out (refine.chain=[], segment.crf=false)"
        )
