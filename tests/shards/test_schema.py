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
        ({"mask": mask_of(1), "image_label": ()}, r"mask shows class ids \[1\], label says \(\)"),
    ],
)
def test_bad_samples_are_told_with_place_got_and_wanted(changes, message):
    with pytest.raises(DataError, match=message):
        sample(**{"mask": mask_of(0), **changes}).members(SMOKE, "pixel")


def test_a_label_names_each_class_once():
    with pytest.raises(DataError, match="sorted and name each class once"):
        sample(image_label=(2, 1), mask=mask_of()).members(TWO, "pixel")


def test_images_decode_to_rgb_whatever_their_mode():
    for mode in ("L", "RGBA", "P", "CMYK"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 3)).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        assert decode_image(buffer.getvalue(), "").shape == (3, 5, 3)


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
