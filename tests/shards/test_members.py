"""Tars next to image shards that somebody or something changed are reported by shard, sample and remedy."""

import io
import tarfile

import pytest

from shards.folder import ShardFolder
from shards.masks import MaskFolder
from shards.members import members_next_to, sample_next_to
from shards.schema import DataError
from shards.write import write_tar

NAME = "val-00001.tar"


@pytest.fixture(scope="module")
def images(scenes):
    return ShardFolder(scenes / "val")


@pytest.fixture
def content(images):
    return [(images.keys[n], {"json": b"{}", "a.npy": str(n).encode()}) for n in images.numbers_of(NAME)]


def read_both(images, folder, extension="a.npy"):
    """Through the bytes and through the headers alone, which must agree."""
    members = dict(members_next_to(images, folder, NAME, (extension,)))
    assert members == {n: sample_next_to(images, folder, n, (extension,)) for n in images.numbers_of(NAME)}
    return members


def test_members_come_by_number_in_the_order_of_the_images(images, content, tmp_path):
    write_tar(tmp_path / NAME, content)
    found = read_both(images, tmp_path)
    assert list(found) == images.numbers_of(NAME) and next(iter(found)) > 0
    assert found == {n: members for n, (_, members) in zip(images.numbers_of(NAME), content, strict=True)}


def refused(images, folder, message, extension="a.npy", **options):
    """Both ways of reading refuse the tar with this message."""
    with pytest.raises(DataError, match=message):
        list(members_next_to(images, folder, NAME, (extension,), **options))
    with pytest.raises(DataError, match=message):
        sample_next_to(images, folder, images.numbers_of(NAME)[0], (extension,), **options)


def test_what_is_not_the_images_own_is_refused(images, content, tmp_path):
    refused(images, tmp_path, rf"{NAME}: is missing; ask again", remedy="ask again")
    first, second = (key for key, _ in content)
    write_tar(tmp_path / NAME, content[:1])
    refused(images, tmp_path, rf"{NAME}: holds 1 samples, but there are 2 images; remove this shard")
    write_tar(tmp_path / NAME, content[::-1])
    refused(
        images, tmp_path, rf"{NAME}: holds '{second}' where the images have '{first}': it belongs to other image shards"
    )
    write_tar(tmp_path / NAME, [*content, ("more", content[0][1])])
    refused(images, tmp_path, r"holds 'more' where the images have 'no more'")
    write_tar(tmp_path / NAME, [content[0], (second, {"json": b"{}"})])
    refused(images, tmp_path, rf"{NAME}: sample '{second}' has no a.npy, only 'json'; do it", remedy="do it")


def test_a_member_that_is_there_twice_is_refused(images, content, tmp_path):
    (first, _), (second, _) = content
    with tarfile.open(tmp_path / NAME, "w") as tar:
        for name in (f"{first}.a.npy", f"{first}.a.npy", f"{second}.a.npy"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    refused(images, tmp_path, rf"{NAME}: '{first}.a.npy' occurs twice")


def test_a_mask_that_a_reordered_tar_gives_to_another_image_is_refused(images, tmp_path):
    for shard in images.index.shards:
        write_tar(tmp_path / shard.name, [(key, {"png": b"x"}) for key in shard.keys[::-1]])
    with pytest.raises(DataError, match="holds '.*' where the images have '"):
        MaskFolder(tmp_path, images)(0)
