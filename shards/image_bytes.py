"""Images and masks as bytes of a file, decoded and encoded; any error of a decoder becomes a SampleError."""

import io
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.pixels import (
    ORIENTATION,
    Palette,
    PixelError,
    grey_of,
    ids_of,
    orientation_of,
    rgb_of,
    upright,
    voc_colours,
)
from shards.schema import SampleError

Decoded = TypeVar("Decoded")


def decode_image(data: bytes | Image.Image, where: str) -> np.ndarray:
    """Encoded, or opened, image -> (H, W, 3) uint8 RGB. EXIF rotation is not applied: masks are drawn on the stored
    pixels.

    Raises:
        SampleError: the bytes are not a complete image, its mode cannot be shown in RGB (see pixels.rgb_of), or it has
            so many pixels that it must be an attack.
    """
    return decoded(data, where, "image", rgb_of)


def decode_mask(data: bytes, where: str, palette: Palette = "ids") -> np.ndarray:
    """Encoded palette or grey PNG -> (H, W) uint8 class ids.

    Args:
        palette: which colours a palette must have, see pixels.ids_of.

    Raises:
        SampleError: not a complete PNG, or its values are not class ids (colours, 16 bits, another palette).
    """
    return decoded(data, where, "mask", partial(ids_of, palette=palette))


def decode_grey(data: bytes, where: str) -> np.ndarray:
    """Encoded PNG of grey levels -> (H, W) uint8, see pixels.grey_of. Raises SampleError as decode_mask does."""
    return decoded(data, where, "mask", grey_of)


def decoded(data: bytes | Image.Image, where: str, what: str, read: Callable[[Image.Image], Decoded]) -> Decoded:
    """The result of `read` on an encoded, or opened, image; any error of the decoder becomes a SampleError that says
    where."""
    try:
        with nullcontext(data) if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)) as image:
            return read(image)
    except PixelError as error:
        raise SampleError(f"{where}: {what} {error}") from error
    except Exception as error:  # decoders raise many types for wrong bytes
        size = "" if isinstance(data, Image.Image) else f"{len(data)} bytes: "
        raise SampleError(f"{where}: {what} does not decode ({size}{reason(error)}); replace or remove it") from error


def header_of(data: bytes | Image.Image, where: str) -> tuple[tuple[int, int], int]:
    """((height, width) as stored, EXIF orientation 1..8) of an encoded, or opened, image; its pixels are not
    decoded."""
    return decoded(data, where, "image", lambda image: ((image.height, image.width), orientation_of(image)))


def turn_upright(data: bytes, where: str) -> bytes:
    """An encoded image -> a JPEG whose stored pixels are upright; the bytes themselves if they already are."""
    _, orientation = header_of(data, where)
    return data if orientation == 1 else encode_image(upright(decode_image(data, where), orientation))


def reason(error: BaseException) -> str:
    """Why an image does not decode, in the same words in every process (PIL's contain a memory address)."""
    if isinstance(error, UnidentifiedImageError):
        return "not a known image format"
    return str(error) or type(error).__name__


def encode_image(image_HW3: np.ndarray, orientation: int = 1) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG, with its EXIF orientation unless it is upright."""
    buffer = io.BytesIO()
    about = Image.Exif()
    if orientation != 1:
        about[ORIENTATION] = orientation
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=95, **({"exif": about} if orientation != 1 else {}))
    return buffer.getvalue()


def encode_mask(mask_HW: np.ndarray) -> bytes:
    """(H, W) uint8 class ids -> palette PNG in the colours of PASCAL VOC."""
    image = Image.fromarray(mask_HW.astype(np.uint8), mode="P")
    image.putpalette(voc_colours().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
