"""Which whole groups of a label table are held out as further splits, so that every part can be used."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from shards.schema import DataError
from shards.sources.labelled import Labelled

TRIES = 100  # tried choices, with several classes or several parts
MOST = 0.9  # largest share of the rows to hold out; training uses the rest


def parse_shares(text: str, default: str, split: str) -> dict[str, float]:
    """What is held out: {split: share of the rows}, from `0.2` (as `default`) or `val=0.2,tune=0.15`.

    Args:
        split: name of the part that is kept.

    Raises:
        DataError: another form, a split that is named twice or is the kept one, or less than a tenth left.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        name = name.strip() or default
        try:
            number = float(share)
        except ValueError:
            number = math.nan
        if not (0 < number < 1 and re.fullmatch(r"[\w-]+", name)):
            raise DataError(
                f"--hold-out {text}: got '{part}'; wanted a share between 0 and 1, or several with the names of their "
                "splits, such as val=0.2,tune=0.15"
            )
        if name in shares or name == split:
            other = "twice" if name in shares else "in --hold-out and in --split"
            raise DataError(f"--hold-out {text}: '{name}' is named {other}; give each part its own name")
        shares[name] = number
    if sum(shares.values()) > MOST + 1e-9:
        raise DataError(
            f"--hold-out {text}: holds out {sum(shares.values()):.0%} of the rows; wanted {MOST:.0%} at most"
        )
    return shares


@dataclass(frozen=True)
class Groups:
    """The groups of a table, by number, from which those to hold out are chosen.

    Attributes:
        names, rows: name and number of rows of each group.
        images_GK: for each group, number of rows that show no class, and number of rows of each class.
        judged_GK: the same for the rows that remain if the group is held out.
        free: whether a group may be held out.
    """

    names: np.ndarray
    rows: np.ndarray
    images_GK: np.ndarray
    judged_GK: np.ndarray
    free: np.ndarray

    @classmethod
    def of(cls, source: Labelled, masked: bool, skip: bool = False) -> "Groups":
        """The groups of a source. If `masked`, a group is free only if all its rows with a class have a mask or, with
        `skip`, if one has: the others are left out when the group is held out."""
        names, number_of, rows = np.unique(source.groups(), return_inverse=True, return_counts=True)
        images_GK = np.zeros((len(names), source.class_set.num_fg_classes + 1), dtype=int)
        lacking_GK = np.zeros_like(images_GK)
        for number, row in zip(number_of, source.rows, strict=True):
            images_GK[number, sorted(row.shows)] += 1
            lacking_GK[number, sorted(row.shows)] += masked and row.lacks_mask
        judged_GK = images_GK - lacking_GK if skip else images_GK
        free = (lacking_GK == 0).all(1) | (skip & (judged_GK[:, 1:] > 0).any(1))
        return cls(names, rows, images_GK, judged_GK, free)

    def fill(self, room: Mapping[str, float], order: list[int]) -> dict[str, list[int]]:
        """{part: its groups}: each group goes to the first part with enough room left; [] for a part that is not half
        full."""
        held: dict[str, list[int]] = {name: [] for name in room}
        left = dict(room)
        for number in order:
            if name := next((name for name in room if self.rows[number] <= left[name]), None):
                held[name].append(number)
                left[name] -= self.rows[number]
        return {name: part if self.rows[part].sum() >= room[name] / 2 else [] for name, part in held.items()}

    def judge(self, held: Mapping[str, list[int]], shares: Mapping[str, float]) -> tuple[int, float] | None:
        """How good a choice is (higher is better): how many classes the parts show, and how near they are to the
        shares; None if a class could not be learned, or nothing could be evaluated on a part."""
        total_K, judged_K = self.images_GK.sum(0), self.judged_GK.sum(0)
        out = {name: self.judged_GK[part].sum(0) for name, part in held.items()}
        kept_K = total_K - sum(self.images_GK[part].sum(0) for part in held.values())
        if (kept_K[1:] == 0)[total_K[1:] > 0].any() or not all(part_K[1:].any() for part_K in out.values()):
            return None
        wanted_K = self.wanted_K(len(shares))
        shown = sum(int(((part_K > 0) & (kept_K > 0) & wanted_K).sum()) for part_K in out.values())
        if len(total_K) == 2 and shown < wanted_K.sum() * len(shares):
            return None
        uneven = sum(float(np.abs(out[name] - share * judged_K)[total_K > 0].sum()) for name, share in shares.items())
        return shown, -uneven

    def wanted_K(self, parts: int) -> np.ndarray:
        """Whether each class, and images without any, has enough groups for all parts and the rest."""
        return ((self.images_GK > 0).sum(0) > parts) & ((self.judged_GK > 0).sum(0) >= parts)

    def orders(self, parts: int, seed: int) -> Iterator[list[int]]:
        """The orders of groups to try."""
        random = np.random.default_rng(seed)
        order = random.permutation(len(self.names)).tolist()
        yield order
        if self.images_GK.shape[1] > 2 or parts > 1:
            yield from (random.permutation(len(self.names)).tolist() for _ in range(TRIES - 1))
        else:
            yield from ([first, *(one for one in order if one != first)] for first in order)


def hold_out(
    source: Labelled, shares: Mapping[str, float], *, seed: int = 0, masked: bool = False, skip: bool = False
) -> tuple[Labelled, dict[str, Labelled]]:
    """Split into (kept, {name: held out}) so that no group is in two parts, and each part shows all classes with enough
    groups.

    Groups are visited in a pseudo-random order and held out in the first part into whose share of the rows they still
    fit, so a larger group is always kept. For one part and one class, the first order is used that leaves images with
    and without the class on both sides. Otherwise TRIES orders are compared: the best one shows the most classes in
    every part, and has the numbers nearest to the shares.

    Args:
        shares: {name: share of the rows}, see parse_shares.
        seed: of the order.
        masked: hold out only groups in which all images with a class have a mask.
        skip: hold out also groups in which only some do; the others will be left out (Labelled.without_lacking), but
            count as rows of the share, since the whole group is removed from the kept part (D-182).

    Raises:
        DataError: no group is small enough, a part cannot get half of its share, or no choice leaves all classes in the
            kept part and one in each other part (for one class: images with and without it, if groups suffice).
    """
    groups = Groups.of(source, masked, skip)
    room = {name: share * len(source) for name, share in shares.items()}
    several = source.class_set.num_fg_classes > 1
    best: tuple[tuple[int, float], dict[str, list[int]]] | None = None
    for order in groups.orders(len(shares), seed):
        held = groups.fill(room, [number for number in order if groups.free[number]])
        worth = groups.judge(held, shares)
        if worth is not None and (best is None or worth > best[0]):
            best = worth, held
            if not several and len(shares) == 1:
                break
    if best is None or not (several or groups.wanted_K(len(shares))[1]):
        raise DataError(
            f"cannot hold out {' and '.join(f'{share:.0%}' for share in shares.values())} of "
            f"{len(source)} rows: {explain(source, groups, room, skip)}"
        )
    parts = {name: {str(group) for group in groups.names[part]} for name, part in best[1].items()}
    kept = {*map(str, groups.names)}.difference(*parts.values())
    return source.take(kept), {name: source.take(part) for name, part in parts.items()}


def explain(source: Labelled, groups: Groups, room: Mapping[str, float], skip: bool) -> str:
    """Why nothing could be held out."""
    free = int(groups.rows[groups.free].sum())
    if free < min(len(source), sum(room.values())):
        return (
            f"only {free}, in {int(groups.free.sum())} groups, have a mask for {'an' if skip else 'each'} image with a "
            f"class; add masks, hold out less, {'' if skip else 'leave images without one out (--skip-unmasked), '}or "
            "hold out without masks"
        )
    for name, rows in room.items():
        fitting = int(groups.rows[groups.free & (groups.rows <= rows)].sum())
        if fitting < rows / 2:
            hold = (
                f"the groups that are no larger hold {fitting}, less than half" if fitting else "every group is larger"
            )
            return f"'{name}' may have {int(rows)}, and {hold}; hold out more, or name smaller groups"
    one = source.any_class if len(source.class_set.classes) == 1 else "a class"
    with_class = int((groups.images_GK[:, 1:].sum(1) > 0).sum())
    most = " and ".join(str(int(rows)) for rows in room.values())
    return (
        f"of {len(groups.names)} groups {with_class} show {one}, and no choice of at most {most} rows, and at least "
        f"half of that, leaves frames with and without {one} in every part; hold out more, or write the held-out split "
        "from a list of your own (--list)"
    )
