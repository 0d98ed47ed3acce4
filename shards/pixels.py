"""Which modes of images and masks are accepted, and what their values mean; for others the error names a conversion.

image   1, L, P, RGB, CMYK, YCbCr of at most 8 bits a channel; with alpha only if every pixel is opaque
mask    PNG: 1, L of 1 to 8 bits (the stored number is the class id), P (see ids_of)
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
WITH_ALPHA = ("LA", "PA", "RGBA")
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
VOC_IDS = (*range(21), 255)
Palette = Literal["ids", "voc"]


class PixelError(ValueError):
    """An image or a mask has a wrong mode; the message says what to do."""


def rgb_of(image: Image.Image) -> np.ndarray:
    """Opened image -> (H, W, 3) uint8 RGB.

    Raises:
        PixelError: a mode whose conversion would lose information, or several frames.
    """
    check_single(image)
    if has_16_bits(image):
        raise PixelError(
            f"has mode {mode_of(image)}; wanted 8 bits a channel: scale it by a range that is the same for all frames "
            "(`magick IN -level LOW,HIGH -depth 8 OUT.png`)"
        )
    if image.mode not in (*PLAIN, *WITH_ALPHA):
        raise PixelError(
            f"has mode {image.mode}; wanted grey, RGB, palette or CMYK: convert it (`magick IN -colorspace sRGB OUT`)"
        )
    if image.has_transparency_data:
        alpha_HW = np.asarray(image.convert("RGBA"))[..., 3]
        if (alpha_HW < 255).any():
            raise PixelError(
                f"has mode {mode_of(image)} and {(alpha_HW < 255).mean():.0%} of its pixels are transparent; what "
                "is seen there is unknown: compose it on a background (`magick IN -background black -flatten OUT.png`)"
            )
    return np.asarray(image.convert("RGB"))


def ids_of(image: Image.Image, palette: Palette) -> np.ndarray:
    """Opened mask -> (H, W) uint8 class ids.

    Grey values are ids as they are stored, also with 1, 2 or 4 bits. A palette's indices are ids unless its colours
    contradict them:

        ids   refused if a used entry is darker than entry 0, the background, or has VOC's colour of another id
        voc   the colours of PASCAL VOC count, wherever they are in the palette; a grey ramp holds ids; others refused

    Raises:
        PixelError: not a PNG, another mode, or a palette that contradicts the indices.
    """
    values_HW = stored_values(image)
    if image.mode != "P":
        return values_HW
    used, colours_N3 = used_entries(image, values_HW)
    voc_N3 = voc_colours()
    if (colours_N3 == voc_N3[used]).all():
        return values_HW
    ids_N = [next((n for n in VOC_IDS if (voc_N3[n] == colour).all()), -1) for colour in colours_N3]
    if palette == "voc":
        if (colours_N3 == used[:, None]).all():
            return values_HW
        if -1 in ids_N:
            other = ids_N.index(-1)
            raise PixelError(
                f"has a palette of its own (entry {used[other]} is {tuple(colours_N3[other].tolist())}); wanted the "
                "colours of PASCAL VOC, or grey values that are class ids"
            )
        table = np.zeros(256, dtype=np.uint8)
        table[used] = ids_N
        return table[values_HW]
    if -1 not in ids_N and (colours_N3 != colours_N3[:, :1]).any():
        raise PixelError(
            f"has a palette in another order: entries {used.tolist()} have PASCAL VOC's colours of the ids {ids_N}; "
            "save it with grey values that are class ids"
        )
    light_N = colours_N3.sum(1)
    if used[0] == 0 and (light_N < light_N[0]).any():
        darker = int(used[light_N.argmin()])
        raise PixelError(
            f"has a palette whose entry {darker} is darker than its entry 0, the background: it may be inverted; "
            "save it with grey values that are class ids"
        )
    return values_HW


def grey_of(image: Image.Image) -> np.ndarray:
    """Opened mask of grey levels -> (H, W) uint8: 0..255, or the ids 0 and 1 (and 255) if it has no other value.

    Palettes are read by their colours, VOC's own by its ids; a colour image is accepted if its channels are equal.

    Raises:
        PixelError: not a PNG, another mode, colours, or fewer than 8 bits with more than two values.
    """
    if image.format == "PNG" and image.mode == "RGB" and not has_16_bits(image):
        image_HW3 = np.asarray(image)
        if (image_HW3 != image_HW3[..., :1]).any():
            raise PixelError("is a colour image; wanted grey levels or ids")
        return image_HW3[..., 0]
    bits = bits_of(image)
    values_HW = stored_values(image)
    if image.mode == "P":
        used, colours_N3 = used_entries(image, values_HW)
        if (colours_N3 == voc_colours()[used]).all():
            return values_HW
        if (colours_N3 != colours_N3[:, :1]).any():
            raise PixelError("is a colour image; wanted grey levels or ids")
        table = np.zeros(256, dtype=np.uint8)
        table[used] = colours_N3[:, 0]
        return table[values_HW]
    present, highest = set(np.unique(values_HW).tolist()), (1 << bits) - 1
    if bits == 8 or present <= {0, 1}:
        return values_HW
    if not present <= {0, highest}:
        raise PixelError(
            f"has {bits} bits and the values {sorted(present)}; wanted only two values: save it with 8 bits"
        )
    return np.where(values_HW == highest, 255, 0).astype(np.uint8)


def stored_values(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 as the PNG stores them; Pillow stretches grey of 2 and 4 bits to 0..255."""
    if image.format != "PNG":
        raise PixelError(f"is not a PNG but {image.format}; wanted a PNG, since lossy formats blur edges")
    if image.mode not in ("P", "L", "1") or has_16_bits(image):
        raise PixelError(f"has mode {mode_of(image)}; wanted a palette or grey image of class ids, 8 bits at most")
    check_single(image)
    step = 255 // ((1 << bits_of(image)) - 1) if image.mode == "L" else 1
    values_HW = np.array(image, dtype=np.uint8) // step
    if orientation_of(image) != 1:
        raise PixelError("has an EXIF orientation, but masks are read as stored: save it upright and without EXIF")
    return values_HW


def check_single(image: Image.Image) -> None:
    """Raise PixelError if a file shows several images; the previews of a camera's JPEG do not count."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise PixelError(f"has {getattr(image, 'n_frames', 'several')} frames; wanted one image: save each on its own")


def used_entries(image: Image.Image, values_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices that occur (N,), and their colours (N, 3). Raises PixelError if the palette lacks one."""
    used = np.flatnonzero(np.bincount(values_HW.reshape(-1), minlength=256))
    colours = np.array(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
    if used.size and used[-1] >= len(colours):
        raise PixelError(f"uses entry {used[-1]} of a palette of {len(colours)}: it is damaged; save it again")
    return used, colours[used]


def mode_of(image: Image.Image) -> str:
    cut = image.mode in (*PLAIN, *WITH_ALPHA) and has_16_bits(image)
    return f"{image.mode} of 16 bits" if cut else image.mode


def rawmode_of(image: Image.Image) -> str:
    """How the file stores pixels, such as L;4; known until the image is loaded."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def has_16_bits(image: Image.Image) -> bool:
    """Whether it has more than 8 bits a channel, also if Pillow would silently cut them to 8."""
    rawmode = rawmode_of(image)
    return image.mode.startswith(("I", "F")) or (";16" in rawmode and not rawmode.startswith("BGR"))  # BGR;16 is 5-6-5


def bits_of(image: Image.Image) -> int:
    """Bits of a grey or palette value: 1, 2, 4 or 8."""
    if image.mode == "1":
        return 1
    digits = rawmode_of(image).partition(";")[2][:1]
    return int(digits) if digits in ("1", "2", "4") else 8


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is none or it is not readable, as in viewers."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types for wrong bytes
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image_HW3: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, 3) -> pixels as viewers show them with this EXIF orientation, (H, W, 3) or (W, H, 3)."""
    if orientation >= 5:
        image_HW3 = image_HW3.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image_HW3 = image_HW3[::-1]
    if orientation in (2, 3, 6, 7):
        image_HW3 = image_HW3[:, ::-1]
    return np.ascontiguousarray(image_HW3)


@lru_cache(maxsize=1)
def voc_colours() -> np.ndarray:
    """(256, 3) RGB, PASCAL VOC's colours of class ids: bit j of a colour is bit 3(7-j)+channel of the id."""
    ids = np.arange(256)
    rgb_N3 = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            rgb_N3[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return rgb_N3
