import io

import numpy as np
import pytest
from PIL import Image

from shards.schema import (
    SMOKE,
    ClassSet,
    DataError,
    Sample,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    hint_at_order,
    voc_palette,
)

TWO = ClassSet(name="two", classes=("cat", "dog"))
IMAGE = encode_image(np.zeros((4, 6, 3), dtype=np.uint8))


def sample(**changes):
    fields = {"key": "a", "image": IMAGE, "image_label": (1,), "group": "g", "source": "test", **changes}
    return Sample(**fields)


def mask_of(value=0, size=(4, 6)):
    return np.full(size, value, dtype=np.uint8)


def test_multi_hot_puts_class_k_into_channel_k_minus_1():
    assert TWO.multi_hot([2]).tolist() == [0.0, 1.0]
    assert TWO.multi_hot([]).tolist() == [0.0, 0.0]


def test_members_of_a_label_only_sample_are_image_and_facts():
    members = sample().members(SMOKE, "label")
    assert sorted(members) == ["jpg", "json"]
    assert members["jpg"] == IMAGE
    assert b'"size": [4, 6]' in members["json"] and b"regions" not in members["json"]


def test_a_mask_and_regions_go_only_into_pixel_shards():
    labelled = sample(mask=mask_of(1), regions={"chimney": [(0, 2, 1, 3)]})
    members = labelled.members(SMOKE, "pixel")
    assert decode_mask(members["png"], "").tolist() == mask_of(1).tolist()
    assert b'"regions": {"chimney": [[0, 2, 1, 3]]}' in members["json"]
    with pytest.raises(DataError, match="a label-only shard holds none"):
        labelled.members(SMOKE, "label")
    with pytest.raises(DataError, match="a label-only shard holds none"):
        sample(regions={"chimney": []}).members(SMOKE, "label")
    with pytest.raises(DataError, match="has no mask"):
        sample().members(SMOKE, "pixel")


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
        sample(**{"mask": mask_of(0), **changes}).members(SMOKE, "pixel")


def test_masks_that_count_the_classes_in_another_order_are_told_by_names():
    with pytest.raises(DataError, match=r"mask shows 1 \(.*\), label says 2 \(.*\); .* give --classes in its order"):
        sample(image_label=(2,), mask=mask_of(1)).members(TWO, "pixel")
    assert "write the shards again with --classes cat,dog" in hint_at_order(("dog", "cat"), ("cat", "dog"))
    assert hint_at_order(("cat",), ("cat", "dog")) == hint_at_order(("cat",), ("cat",)) == ""


def test_a_label_names_each_class_once():
    with pytest.raises(DataError, match="sorted and name each class once"):
        sample(image_label=(2, 1), mask=mask_of()).members(TWO, "pixel")


def test_masks_keep_every_id_and_colour_masks_are_refused():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_mask(encode_mask(ids), ""), ids)
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, "PNG")
    with pytest.raises(DataError, match="m.png: mask has mode RGB"):
        decode_mask(buffer.getvalue(), "m.png")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(DataError, match="decompression bomb"):
        decode_image(IMAGE, "bomb.jpg")


def test_palette_begins_like_pascal_voc():
    colours = np.array(voc_palette()).reshape(256, 3)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[255].tolist() == [224, 224, 192]


def test_a_pixel_sample_shows_every_class_of_its_label():
    with pytest.raises(DataError, match=r"label says 1 \(smoke\), but the mask \(m/a.png\) shows \[0\] only; correct"):
        sample(mask=mask_of(0), mask_place="m/a.png").members(SMOKE, "pixel")
    half = mask_of(0)
    half[:2] = 255
    with pytest.raises(DataError, match=r"shows \[0, 255\] only; a 0/255 mask\? Class ids are wanted"):
        sample(mask=half).members(SMOKE, "pixel")
    with pytest.raises(DataError, match=r"label says 2 \(dog\), but the mask shows \[0, 1\] only"):
        half[:2] = 1
        sample(mask=half, image_label=(1, 2)).members(TWO, "pixel")
    assert "png" in sample(mask=mask_of(255), image_label=()).members(SMOKE, "pixel")
    with pytest.raises(DataError, match=r"has no mask \(masks/a.png\)"):
        sample(mask_place="masks/a.png").members(SMOKE, "pixel")


def test_a_mask_of_another_size_names_the_orientation_that_may_be_why():
    turned = encode_image(np.zeros((4, 6, 3), dtype=np.uint8), orientation=6)
    with pytest.raises(
        DataError, match=r"mask is \(6, 4\), image is \(4, 6\) .*its EXIF orientation is 6: .*see --exif"
    ):
        sample(image=turned, mask=mask_of(1, (6, 4))).members(SMOKE, "pixel")
    members = sample(image=turned).members(SMOKE, "label")
    assert b'"remarks": {"EXIF orientation is not 1' in members["json"]
    assert b"remarks" not in sample().members(SMOKE, "label")["json"]


def test_more_classes_than_a_byte_names_are_refused():
    ClassSet(name="most", classes=tuple(map(str, range(254))))
    with pytest.raises(DataError, match="'many' has 255 classes; wanted at most 254"):
        ClassSet(name="many", classes=tuple(map(str, range(255))))
