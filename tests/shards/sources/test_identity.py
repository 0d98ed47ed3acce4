"""What a source says that it is made of: the same for the same samples, another one for any other sample."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shards.schema import SMOKE, Frame, identity_of
from shards.sources.archives import Blob
from shards.sources.clips import Clip, Clips
from shards.sources.crops import Cropped
from shards.sources.drifting import Drifting
from shards.sources.ijmond import Frame as OfPolygons
from shards.sources.ijmond import Frames
from shards.sources.joined import Joined
from shards.sources.labelled import Labelled, Row
from shards.sources.smoke5k import Smoke5K
from shards.sources.synthetic import Synthetic
from shards.write import is_written, write_split


@pytest.fixture
def a(tmp_path) -> Path:
    """One of two files that stand for any."""
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    return tmp_path / "a"


def of_each(a: Path) -> dict[str, tuple[object, list[object]]]:
    """{kind: (a source, sources of which a sample differs from its)}."""
    b = a.with_name("b")
    row = Row(key="k", image=a, image_label=(1,), group="g", mask=a, frame=Frame("g", 0))
    table = Labelled(rows=(row,), source="own", class_set=SMOKE, with_masks=True)
    rows = [
        replace(row, **other)
        for other in (
            {"key": "l"},
            {"image": b},
            {"image_label": ()},
            {"group": "h"},
            {"mask": b},
            {"mask": None, "image_label": ()},
            {"frame": None},
            {"frame": Frame("g", 1)},
        )
    ]
    clip = Clip(name="c", path=a, smoke=True, group="g")
    clips = Clips(clips=(clip,), source="rise")
    frame = OfPolygons(key="k", image=Blob(str(a)), size=(4, 4), group="g", polygons=(("1", (0.0, 0, 2, 0, 2, 2)),))
    frames = Frames(frames=(frame,))
    crops = Cropped(frames=frames, boxes=((0, (0, 2, 0, 2)),), frame_groups=("g",), with_masks=True, class_set=SMOKE)
    smoke5k = Smoke5K(pairs=(("k", a, a, "g"),))
    drawn = Synthetic(split="train", num_images=4)
    other_frames = [
        replace(frames, frames=(replace(frame, **other),))
        for other in (
            {"key": "l"},
            {"image": Blob(str(b))},
            {"group": "h"},
            {"polygons": (("1", (0.0, 0, 3, 0, 2, 2)),)},
        )
    ] + [replace(frames, exif="apply")]
    return {
        "table": (
            table,
            [replace(table, rows=(one,)) for one in rows]
            + [replace(table, source="other"), replace(table, exif="apply"), replace(table, mask_values={0: 1})],
        ),
        "clips": (
            clips,
            [replace(clips, clips=(replace(clip, **other),)) for other in ({"name": "d"}, {"path": b})]
            + [replace(clips, clips=(replace(clip, **other),)) for other in ({"smoke": False}, {"group": "h"})]
            + [replace(clips, frames=2), replace(clips, source="ijmond"), replace(clips, exif="apply")],
        ),
        "polygons": (frames, other_frames),
        "crops": (
            crops,
            [replace(crops, frames=one) for one in other_frames] + [replace(crops, boxes=((0, (0, 2, 1, 3)),))],
        ),
        "smoke5k": (
            smoke5k,
            [
                replace(smoke5k, pairs=(pair,))
                for pair in (("l", a, a, "g"), ("k", b, a, "g"), ("k", a, b, "g"), ("k", a, a, "h"))
            ]
            + [replace(smoke5k, exif="apply")],
        ),
        "synthetic": (
            drawn,
            [
                replace(drawn, **other)
                for other in ({"split": "val"}, {"num_images": 5}, {"size": 64}, {"cooccurrence": 0.9}, {"seed": 1})
            ]
            + [replace(drawn, smoke_rate=0.4), Drifting(split="train", num_images=4)],
        ),
        "drifting": (
            Drifting(split="train", num_images=4),
            [Drifting(split="train", num_images=4, frames=2), drawn],
        ),
    }


@pytest.mark.parametrize("kind", ["table", "clips", "polygons", "crops", "smoke5k", "synthetic", "drifting"])
def test_a_source_is_known_by_what_its_samples_are_made_of(a, kind):
    source, others = of_each(a)[kind]
    same, _ = of_each(a)[kind]
    first = json.dumps(identity_of(source))
    assert json.dumps(identity_of(same)) == first
    assert [other for other in others if json.dumps(identity_of(other)) == first] == []
    if kind not in ("synthetic", "drifting"):
        os.utime(a, ns=(10**18, 10**18 + 1))  # written anew, with as many bytes
        assert json.dumps(identity_of(same)) != first


def test_label_only_rows_do_not_depend_on_masks(a):
    table, _ = of_each(a)["table"]
    without = replace(table, with_masks=False)
    other = replace(without, rows=(replace(table.rows[0], mask=a.with_name("b")),))
    assert identity_of(without) == identity_of(other) != identity_of(table)


def test_a_join_is_known_by_the_bytes_of_its_parts(tmp_path):
    for split, seed in (("train", 0), ("other", 0), ("train", 1)):
        write_split(Synthetic(split=split, num_images=4, size=32, seed=seed), tmp_path / str(seed), split, "label")
    parts = (tmp_path / "0/train", tmp_path / "0/other")
    write_split(Joined(parts), tmp_path / "both", "train", "label")
    assert is_written(Joined(parts), tmp_path / "both", "train", "label", 32)
    for others in (parts[::-1], (tmp_path / "1/train", parts[1])):
        assert identity_of(Joined(others)) != identity_of(Joined(parts))
