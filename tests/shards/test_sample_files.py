import numpy as np
import pytest

from shards.image_bytes import decode_mask, encode_image
from shards.sample_files import members_of
from shards.schema import SMOKE, ClassSet, DataError, Sample

TWO = ClassSet(name="two", classes=("cat", "dog"))
IMAGE = encode_image(np.zeros((4, 6, 3), dtype=np.uint8))


def sample(**changes):
    fields = {"key": "a", "image": IMAGE, "image_label": (1,), "group": "g", "source": "test", **changes}
    return Sample(**fields)


def mask_of(value=0, size=(4, 6)):
    return np.full(size, value, dtype=np.uint8)


def test_members_of_a_label_only_sample_are_image_and_facts():
    members = members_of(sample(), SMOKE, "label")
    assert sorted(members) == ["jpg", "json"]
    assert members["jpg"] == IMAGE
    assert b'"size": [4, 6]' in members["json"] and b"regions" not in members["json"]


def test_a_mask_and_regions_go_only_into_pixel_shards():
    labelled = sample(mask=mask_of(1), regions={"chimney": [(0, 2, 1, 3)]})
    members = members_of(labelled, SMOKE, "pixel")
    assert decode_mask(members["png"], "").tolist() == mask_of(1).tolist()
    assert b'"regions": {"chimney": [[0, 2, 1, 3]]}' in members["json"]
    with pytest.raises(DataError, match="a label-only shard holds none"):
        members_of(labelled, SMOKE, "label")
    with pytest.raises(DataError, match="a label-only shard holds none"):
        members_of(sample(regions={"chimney": []}), SMOKE, "label")
    with pytest.raises(DataError, match="has no mask"):
        members_of(sample(), SMOKE, "pixel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "a.b"}, "sample 'a.b': a key may hold"),
        ({"key": "../up"}, "a key may hold"),
        ({"image_label": (2,)}, r"label holds class ids \[2\]; class set 'smoke' has 1..1"),
        ({"image_label": (0,)}, r"label holds class ids \[0\]"),
        ({"image": IMAGE[: len(IMAGE) // 2]}, "test: sample 'a': image does not decode"),
        ({"image": b"no image"}, r"image does not decode \(8 bytes"),
        ({"mask": mask_of(2)}, r"mask holds class ids \[2\]; wanted 0 \(background\), 1..1 \(smoke\) or 255"),
        ({"mask": mask_of(0, (4, 5))}, r"mask is \(4, 5\), image is \(4, 6\)"),
        ({"mask": mask_of(1), "image_label": ()}, r"mask shows 1 \(smoke\), label says none of the classes"),
    ],
)
def test_bad_samples_are_told_with_place_got_and_wanted(changes, message):
    with pytest.raises(DataError, match=message):
        members_of(sample(**{"mask": mask_of(0), **changes}), SMOKE, "pixel")


def test_a_label_names_each_class_once():
    with pytest.raises(DataError, match="sorted and name each class once"):
        members_of(sample(image_label=(2, 1), mask=mask_of()), TWO, "pixel")


def test_a_pixel_sample_shows_every_class_of_its_label():
    with pytest.raises(DataError, match=r"label says 1 \(smoke\), but the mask \(m/a.png\) shows \[0\] only; correct"):
        members_of(sample(mask=mask_of(0), mask_place="m/a.png"), SMOKE, "pixel")
    half = mask_of(0)
    half[:2] = 255
    with pytest.raises(DataError, match=r"shows \[0, 255\] only; a 0/255 mask\? Class ids are wanted"):
        members_of(sample(mask=half), SMOKE, "pixel")
    with pytest.raises(DataError, match=r"label says 2 \(dog\), but the mask shows \[0, 1\] only"):
        half[:2] = 1
        members_of(sample(mask=half, image_label=(1, 2)), TWO, "pixel")
    assert "png" in members_of(sample(mask=mask_of(255), image_label=()), SMOKE, "pixel")
    with pytest.raises(DataError, match=r"has no mask \(masks/a.png\)"):
        members_of(sample(mask_place="masks/a.png"), SMOKE, "pixel")


def test_a_mask_of_another_size_names_the_orientation_that_may_be_why():
    turned = encode_image(np.zeros((4, 6, 3), dtype=np.uint8), orientation=6)
    with pytest.raises(
        DataError, match=r"mask is \(6, 4\), image is \(4, 6\) .*its EXIF orientation is 6: .*see --exif"
    ):
        members_of(sample(image=turned, mask=mask_of(1, (6, 4))), SMOKE, "pixel")
    members = members_of(sample(image=turned), SMOKE, "label")
    assert b'"remarks": {"EXIF orientation is not 1' in members["json"]
    assert b"remarks" not in members_of(sample(), SMOKE, "label")["json"]


def test_masks_that_count_the_classes_in_another_order_are_told_by_names():
    with pytest.raises(DataError, match=r"mask shows 1 \(cat\), label says 2 \(dog\); .* give --classes in that order"):
        members_of(sample(image_label=(2,), mask=mask_of(1)), TWO, "pixel")
