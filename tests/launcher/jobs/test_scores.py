"""CAM and mask shards that somebody or something changed are told by file and sample."""

import numpy as np
import pytest

from launcher.jobs.scores import Scores, npy_bytes, read_scores
from shards.folder import ShardFolder
from shards.schema import DataError
from shards.write import write_tar


@pytest.fixture(scope="module")
def images(scenes):
    return ShardFolder(scenes / "val")


def members(shards, class_ids=(1,)):
    """[(key, members)] of a CAM shard of the first image shard."""
    return [
        (
            shards.keys[number],
            Scores(
                key=shards.keys[number],
                group="g",
                class_ids=class_ids,
                cls_probs=(0.5,),
                maps={"grad": np.full((len(class_ids), 2, 2), 0.25)},
            ).members(),
        )
        for number in shards.numbers_of("val-00000.tar")
    ]


def read(images, tmp_path, content, kind="grad"):
    write_tar(tmp_path / "val-00000.tar", content)
    return list(read_scores(images, tmp_path, "val-00000.tar", kind))


def test_what_is_written_is_read(images, tmp_path):
    found = read(images, tmp_path, members(images))
    assert [number for number, _ in found] == list(images.numbers_of("val-00000.tar"))
    assert found[0][1].maps["grad"].tolist() == [[[0.25, 0.25], [0.25, 0.25]]]


@pytest.mark.parametrize(
    ("extension", "data"),
    [
        ("json", None),
        ("json", b'{"class_ids": [1'),
        ("json", b"{}"),
        ("grad.npy", b"\x93NUMPY\x01\x00"),
        ("grad.npy", b"no array"),
        ("grad.npy", b""),
    ],
)
def test_a_damaged_member_is_told(images, tmp_path, extension, data):
    content = members(images)
    content[1] = (content[1][0], {**content[1][1], extension: data})
    if data is None:
        del content[1][1][extension]
    problem = "has no json, only " if data is None else "is damaged "
    with pytest.raises(DataError, match=f"val-00000.tar: .*'{content[1][0]}' {problem}.*; remove this shard"):
        read(images, tmp_path, content)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused_by_name_where_they_are_made(bad):
    about = {"key": "seven", "group": "g", "class_ids": (1,)}
    maps = np.full((1, 2, 2), 0.25)
    Scores(**about, cls_probs=(0.5,), maps={"grad": maps})
    with pytest.raises(DataError, match="image 'seven': 1 of 1 scores of cls_probs are NaN or infinite"):
        Scores(**about, cls_probs=(bad,), maps={"grad": maps})
    maps[0, 1, 1] = bad
    with pytest.raises(DataError, match="image 'seven': 1 of 4 scores of grad are NaN or infinite"):
        Scores(**about, cls_probs=(0.5,), maps={"grad": maps})


def test_scores_that_are_no_numbers_are_refused_by_file_where_they_are_read(images, tmp_path):
    content = members(images)
    content[1][1]["grad.npy"] = npy_bytes(np.full((1, 2, 2), np.nan, dtype=np.float16))
    with pytest.raises(DataError, match=f"val-00000.tar: image '{content[1][0]}': 4 of 4 scores of grad are NaN"):
        read(images, tmp_path, content)


def test_too_few_too_many_other_and_foreign_samples_are_told(images, tmp_path):
    content = members(images)
    with pytest.raises(DataError, match=r"val-00000.tar: holds 1 samples, but there are 2 images"):
        read(images, tmp_path, content[:1])
    with pytest.raises(DataError, match="holds 'more' where the images have 'no more'"):
        read(images, tmp_path, [*content, ("more", content[0][1])])
    with pytest.raises(DataError, match="holds 'val-.*' where the images have 'val-"):
        read(images, tmp_path, content[::-1])
    with pytest.raises(DataError, match=r"has classes \(7,\), wanted 1 to 1"):
        read(images, tmp_path, members(images, (7,)))
    with pytest.raises(DataError, match=r"has no project.npy, only 'grad.npy', 'json'"):
        read(images, tmp_path, content, kind="project")
