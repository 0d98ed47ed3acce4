"""class_sums.npz: the pixel sums behind a source's mIoU, per group; two methods compared in mIoU on the same groups.

Shapes: G groups, C classes with background 0.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.evaluation.confusion import Confusion
from launcher.evaluation.measure import Measure
from launcher.files import Damaged, appearing, typed
from wsss.metrics.confusion import bootstrap_miou_gap, sums_by_group

CLASS_SUMS = "class_sums.npz"


class GroupSums(NamedTuple):
    """The names of the groups, and their (G, 3, C) pixels: hit, in the truth, predicted."""

    groups: list[str]
    sums_G3C: np.ndarray


def write_class_sums(path: Path, measures: Mapping[tuple[str, str], Measure]) -> None:
    """Write the sums of the measures {(source, threshold choice): measure} that have some; without any, remove the
    file."""
    held: dict[str, Any] = {}
    for (source, choice), measure in measures.items():
        if isinstance(measure, Confusion) and len(measure.sums):
            groups, held[f"{choice} {source}"] = sums_by_group(measure.sums, measure.groups)
            held["groups"] = np.array(groups)
    if not held:
        path.unlink(missing_ok=True)
        return
    with appearing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **held)


def read_class_sums(run: Path, source: str, choice: str) -> GroupSums | None:
    """The sums of a source; None if the evaluation has none. Raises Damaged."""
    path = run / CLASS_SUMS
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as held:
            name = f"{choice} {source}"
            return GroupSums(held["groups"].tolist(), held[name]) if name in held else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path}: damaged ({error}); run `{typed('evaluate', run)}` again") from error


def compare_mious(
    ours: Iterable[GroupSums | None], theirs: Iterable[GroupSums | None]
) -> tuple[float, float, float] | None:
    """Difference in mIoU between the runs (seeds) of two methods, with the low and high end of its 95 % bootstrap
    interval over groups; None if a method has no runs, a run has no sums, or the runs have different groups."""
    found: tuple[Sequence[GroupSums | None], ...] = [*ours], [*theirs]
    runs = [one for of_method in found for one in of_method]
    if not all(found) or None in runs or len({tuple(one.groups) for one in runs if one is not None}) > 1:
        return None
    of_ours, of_theirs = ([one.sums_G3C for one in of_method if one is not None] for of_method in found)
    return bootstrap_miou_gap(of_ours, of_theirs)
