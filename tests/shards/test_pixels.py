"""A rule for every mode of image and mask: what is taken has the right values, all else is refused with what to do."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from shards.image_bytes import decode_grey, decode_image, decode_mask, header_of, turn_upright
from shards.pixels import orientation_of, upright, voc_colours
from shards.schema import SampleError

GREY = np.array([[0, 128, 255]], dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(values_HW, bits, colour_type=0, palette=()):
    """A PNG written by hand: grey or palette of 1 to 16 bits, or (type 2) RGB of 16 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values_HW.shape[:2]
    bits_HW = (values_HW.reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(bits_HW.reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(np.array(palette, dtype=np.uint8).reshape(-1))) if len(palette) else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colours
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def palette_png(values, colours, **options):
    image = Image.fromarray(np.array(values, dtype=np.uint8), mode="P")
    image.putpalette([level for colour in colours for level in colour])
    return encoded(image, **options)


WRITTEN_SHORT = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 does not read what it wrote here"
)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY)),
        encoded(Image.fromarray(GREY).convert("RGB")),
        encoded(Image.fromarray(GREY).convert("CMYK"), "TIFF"),
        pytest.param(encoded(Image.fromarray(GREY).convert("YCbCr"), "TIFF"), marks=WRITTEN_SHORT),
        encoded(Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (3, 1), 255)))),
        encoded(Image.fromarray(GREY).convert("RGBA")),
        palette_png([[2, 0, 1]], [(128, 128, 128), (255, 255, 255), (0, 0, 0)]),
        palette_png([[2, 0, 1]], [(128, 128, 128), (255, 255, 255), (0, 0, 0), (9, 9, 9)], transparency=3),
    ],
    ids=["L", "RGB", "CMYK", "YCbCr", "LA opaque", "RGBA opaque", "P", "P with an unused transparent entry"],
)
def test_images_that_rgb_can_show_keep_their_colours(data):
    assert np.abs(decode_image(data, "a").astype(int) - GREY[..., None]).max() <= 1


def test_an_image_of_few_bits_is_as_bright_as_viewers_show_it():
    for bits in (1, 2, 4):
        values = np.array([[0, 2**bits - 1]])
        assert decode_image(png(values, bits), "a")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(np.array([[7000, 7900]]), 16), "a.png: image has mode I;16; wanted 8 bits a channel: scale it .*-level"),
        (png(np.array([[[7000] * 3, [7900] * 3]]), 16, 2), "image has mode RGB of 16 bits; wanted 8 bits"),
        (encoded(Image.new("F", (3, 1)), "TIFF"), "image has mode F; wanted 8 bits"),
        (encoded(Image.new("I", (3, 1)), "TIFF"), "image has mode I; wanted 8 bits"),
        (encoded(Image.new("LAB", (3, 1)), "TIFF"), "image has mode LAB; wanted grey, RGB, .*colorspace"),
        (
            encoded(Image.new("RGBA", (3, 1), (9, 9, 9, 254))),
            "mode RGBA and 100% of its pixels are transparent.*compose",
        ),
        (encoded(Image.new("LA", (3, 1))), "mode LA and 100% of its pixels are transparent"),
        (encoded(Image.fromarray(GREY), transparency=128), "mode L and 33% of its pixels are transparent"),
        (palette_png([[0, 1]], [(0, 0, 0), (9, 9, 9)], transparency=1), "mode P and 50% of its pixels are transparent"),
    ],
)
def test_an_image_that_rgb_would_change_is_refused_with_a_conversion(data, message):
    with pytest.raises(SampleError, match=message):
        decode_image(data, "a.png")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_any_bits_keep_the_ids_that_they_store(bits):
    ids = np.arange(2**bits, dtype=np.uint8)[None]
    for palette in ("ids", "voc"):
        assert decode_mask(png(ids, bits), "m", palette).tolist() == ids.tolist()


def test_palette_masks_of_any_bits_keep_their_indices_unless_the_colours_contradict():
    for bits in (1, 2, 4, 8):
        values = np.array([[0, 1, 1, 0]])
        for second in ((255, 255, 255), (128, 0, 0), (9, 200, 3)):
            assert decode_mask(png(values, bits, 3, [(0, 0, 0), second]), "m").tolist() == [[0, 1, 1, 0]]
    # without a background no entry can be darker than it
    assert decode_mask(palette_png([[1, 2]], [(0, 0, 0), (9, 200, 3), (9, 9, 3)]), "m").tolist() == [[1, 2]]


@pytest.mark.parametrize(("value", "orientation"), [(6, 6), (8, 8), (0, 1), (9, 1), ("6", 1), (6.5, 1), (None, 1)])
def test_an_orientation_that_is_none_is_upright(monkeypatch, value, orientation):
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
    assert orientation_of(Image.new("RGB", (1, 1))) == orientation


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (palette_png([[0, 1]], [(255, 255, 255), (0, 0, 0)]), "m.png: mask has a palette whose entry 1 is darker than"),
        (
            palette_png([[0, 1]], [(0, 0, 0), (224, 224, 192)]),
            r"palette in another order: entries \[0, 1\].*\[0, 255\]",
        ),
        (png(np.array([[3]]), 8, 3, [(0, 0, 0)]), "uses entry 3 of a palette of 1: it is damaged"),
        (encoded(Image.new("RGB", (3, 1))), "mask has mode RGB; wanted a palette or grey image of class ids"),
        (encoded(Image.new("RGBA", (3, 1))), "mask has mode RGBA"),
        (encoded(Image.new("LA", (3, 1))), "mask has mode LA"),
        (png(np.array([[1]]), 16), "mask has mode I;16"),
        (encoded(Image.fromarray(GREY), "JPEG"), "mask is not a PNG but JPEG; wanted a PNG"),
        (encoded(Image.fromarray(GREY), "TIFF"), "mask is not a PNG but TIFF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "mask does not decode"),
    ],
)
def test_a_mask_whose_ids_nobody_can_know_is_refused(data, message):
    with pytest.raises(SampleError, match=message):
        decode_mask(data, "m.png")


def test_vocs_colours_begin_and_end_as_published():
    assert voc_colours()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert voc_colours()[255].tolist() == [224, 224, 192]


def test_vocs_colours_count_wherever_they_are_in_the_palette():
    person, ignore = voc_colours()[15], voc_colours()[255]
    assert decode_mask(palette_png([[0, 1, 2]], [(0, 0, 0), person, ignore]), "m", "voc").tolist() == [[0, 15, 255]]
    assert decode_mask(palette_png([[1, 0]], [person, (0, 0, 0)]), "m", "voc").tolist() == [[0, 15]]
    ramp = [(n, n, n) for n in range(256)]
    assert decode_mask(palette_png([[0, 15, 255]], ramp), "m", "voc").tolist() == [[0, 15, 255]]
    with pytest.raises(SampleError, match=r"palette of its own \(entry 1 is \(255, 255, 255\)\); wanted the colours"):
        decode_mask(palette_png([[0, 1]], [(0, 0, 0), (255, 255, 255)]), "m", "voc")


@pytest.mark.parametrize(
    ("data", "levels"),
    [
        (palette_png([[0, 1]], [(255, 255, 255), (0, 0, 0)]), [255, 0]),  # by colour
        (palette_png([[0, 1]], [(0, 0, 0), (128, 0, 0)]), [0, 1]),  # VOC's colour of id 1
        (encoded(Image.fromarray(GREY).convert("RGB")), [0, 128, 255]),
        (png(np.array([[0, 1]]), 1), [0, 1]),
        (png(np.array([[0, 15]]), 4), [0, 255]),
        (png(np.array([[0, 1]]), 4), [0, 1]),
        (png(np.array([[0, 1, 255]]), 8), [0, 1, 255]),
    ],
)
def test_grey_levels_count_by_colour_and_few_bits_by_what_they_store(data, levels):
    assert decode_grey(data, "m").tolist() == [levels]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.new("RGB", (3, 1), (1, 2, 3))), "m.png: mask is a colour image"),
        (palette_png([[0, 1]], [(0, 0, 0), (9, 0, 0)]), "mask is a colour image"),
        (png(np.array([[0, 1, 3]]), 2), r"has 2 bits and the values \[0, 1, 3\]; wanted only two values"),
        (png(np.array([[[9] * 3]]), 16, 2), "mask has mode RGB of 16 bits"),
        (encoded(Image.fromarray(GREY), "JPEG"), "mask is not a PNG but JPEG"),
    ],
)
def test_a_mask_of_other_than_grey_levels_is_refused(data, message):
    with pytest.raises(SampleError, match=message):
        decode_grey(data, "m.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_viewers_show(orientation):
    image_HW3 = np.random.default_rng(0).integers(0, 255, (3, 5, 3)).astype(np.uint8)
    about = Image.Exif()
    about[0x0112] = orientation
    data = encoded(Image.fromarray(image_HW3), exif=about)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(upright(image_HW3, orientation), wanted)
    assert header_of(data, "a") == ((3, 5), orientation)
    turned = turn_upright(data, "a")
    assert header_of(turned, "a") == (wanted.shape[:2], 1) and (turned is data) == (orientation == 1)


def test_files_of_several_frames_and_turned_masks_are_refused():
    frames = [Image.new("L", (3, 1), level) for level in (0, 99)]
    for kind in ("GIF", "TIFF", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(SampleError, match="a: image has 2 frames; wanted one image"):
            decode_image(data, "a")
    with pytest.raises(SampleError, match="a: mask has 2 frames"):
        decode_mask(data, "a")
    about = Image.Exif()
    about[0x0112] = 6
    with pytest.raises(SampleError, match="mask has an EXIF orientation"):
        decode_mask(encoded(frames[0], exif=about), "a")


def test_an_exif_that_is_damaged_counts_as_none():
    data = encoded(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert header_of(data, "a") == ((1, 3), 1)
