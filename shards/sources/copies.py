"""Identical images under two names: in different splits, one may be used for training and the other for evaluation."""

import hashlib
from collections import defaultdict
from pathlib import Path

from shards.sources.labelled import Labelled, Row


def describe_copies(source: Labelled) -> str:
    """A note about rows with the same bytes in different groups or with different labels; "" if there are none. Only
    files of equal size are read."""
    of_size = defaultdict[int, list[Row]](list)
    for row in source.rows:
        of_size[row.image.stat().st_size].append(row)
    of_bytes = defaultdict[bytes, list[Row]](list)
    for rows in of_size.values():
        if len(rows) > 1:
            for row in rows:
                of_bytes[digest(row.image)].append(row)
    same = [rows for rows in of_bytes.values() if len({(row.group, row.image_label) for row in rows}) > 1]
    if not same:
        return ""
    otherwise = sum(len({row.image_label for row in rows}) > 1 for rows in same)
    labelled = f" ({otherwise} of them with different labels)" if otherwise else ""
    first, second = same[0][:2]
    return (
        f"{len(same)} images occur more than once{labelled}, first '{first.key}' and '{second.key}': in different "
        "groups, one copy may be used for training and the other for evaluation; remove the copies, or give them one "
        "group"
    )


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
