import pytest

from shards.schema import ClassSet
from shards.sources.copies import describe_copies
from shards.sources.labelled import Labelled, Row


@pytest.fixture
def table(tmp_path):
    """(bytes, group, label) of each image -> a source."""

    def make(*images):
        rows = []
        for n, (data, group, label) in enumerate(images):
            (tmp_path / f"{n}.jpg").write_bytes(data)
            rows.append(Row(key=f"k{n}", image=tmp_path / f"{n}.jpg", image_label=label, group=group, mask=None))
        return Labelled(rows=tuple(rows), source="s", class_set=ClassSet(name="own", classes=("a", "b")))

    return make


def test_images_that_are_one_file_are_told_where_that_can_be_wrong(table):
    assert describe_copies(table((b"xx", "g", (1,)), (b"xy", "h", (1,)), (b"xx", "g", (1,)))) == ""  # in one group
    said = describe_copies(table((b"xx", "g", (1,)), (b"yy", "h", (1,)), (b"xx", "h", (1,)), (b"z", "i", ())))
    assert said.startswith("1 images occur more than once, first 'k0' and 'k2': in different groups")
    said = describe_copies(table((b"xx", "g", (1,)), (b"xx", "g", ()), (b"yy", "h", ()), (b"yy", "i", ())))
    assert said.startswith("2 images occur more than once (1 of them with different labels), first 'k0' and 'k1'")
