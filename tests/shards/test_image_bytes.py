import io

import numpy as np
import pytest
from PIL import Image

from shards.image_bytes import decode_image, decode_mask, encode_image, encode_mask
from shards.schema import SampleError


def test_masks_keep_every_id_and_colour_masks_are_refused():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_mask(encode_mask(ids), ""), ids)
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, "PNG")
    with pytest.raises(SampleError, match="m.png: mask has mode RGB"):
        decode_mask(buffer.getvalue(), "m.png")


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(SampleError, match="decompression bomb"):
        decode_image(encode_image(np.zeros((4, 6, 3), dtype=np.uint8)), "bomb.jpg")
