"""Overlays, outlines and galleries as pictures; no files."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.pixels import voc_colours
from shards.schema import IGNORE_INDEX

TILE_PX = 240  # longest side of a picture
LABEL_PX = 18
PAINT = 0.65  # opacity of a class's colour over the image
TINT = 0.3  # the same if its border is drawn, too

Colour = tuple[int, ...]
TRUTH_COLOUR, MASK_COLOUR = (0, 229, 255), (255, 0, 200)
DARK, LIGHT = (16, 16, 16), (255, 255, 255)
TRUTH_PX, MASK_PX = 3, 2  # width of an outline on a tile of TILE_PX, without its casing


def as_tile(image_HW3: np.ndarray, longest_px: int = TILE_PX) -> np.ndarray:
    """The image scaled to a longest side, so that lines drawn on it keep their width when shown."""
    height, width = image_HW3.shape[:2]
    scale = longest_px / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.BILINEAR))


def at_tile(mask_HW: np.ndarray, tile_HW3: np.ndarray) -> np.ndarray:
    """A mask at the size of a tile, by nearest neighbour."""
    height, width = tile_HW3.shape[:2]
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))


def overlay_scores(image_HW3: np.ndarray, score_HW: np.ndarray) -> np.ndarray:
    """A score map in [0, 1] over the image: transparent at 0, yellow to dark red towards 1."""
    import matplotlib

    colour_HW3 = matplotlib.colormaps["YlOrRd"](score_HW)[..., :3] * 255
    opacity_HW1 = 0.75 * score_HW.clip(0, 1)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)


def overlay_class_scores(image_HW3: np.ndarray, scores_nHW: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """Score maps in [0, 1] of several classes over the image: each pixel has the colour of the class with the highest
    score; a higher score is more opaque."""
    if len(class_ids) == 0:
        return image_HW3.copy()
    colour_HW3 = class_colours()[np.array(class_ids)[scores_nHW.argmax(0)]]
    opacity_HW1 = 0.75 * scores_nHW.max(0).clip(0, 1)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)


def overlay_classes(image_HW3: np.ndarray, label_HW: np.ndarray, *, opacity: float = PAINT) -> np.ndarray:
    """The image with every class but the background in the colour that PASCAL VOC gives its id."""
    colour_HW3 = class_colours()[label_HW]
    opacity_HW1 = opacity * (label_HW > 0)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)


def draw_truth(image_HW3: np.ndarray, mask_HW: np.ndarray, *, several: bool) -> np.ndarray:
    """A tile with the outline of the truth: cyan with a dark casing for one class; for several, in their colours."""
    if several:
        return draw_class_outlines(image_HW3, mask_HW)
    return draw_cased_outline(image_HW3, mask_HW, TRUTH_COLOUR, TRUTH_PX, DARK)


def draw_mask(image_HW3: np.ndarray, mask_HW: np.ndarray, *, several: bool) -> np.ndarray:
    """A tile with the outline of a predicted mask: magenta with a white casing for one class, thinner than the truth;
    for several, in their colours."""
    if several:
        return draw_class_outlines(image_HW3, mask_HW)
    return draw_cased_outline(image_HW3, mask_HW, MASK_COLOUR, MASK_PX, LIGHT)


def draw_class_outlines(image_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The image with each class of the mask tinted and outlined in the class's colour; 255 is left as it is."""
    image_HW3 = overlay_classes(image_HW3, np.where(mask_HW == IGNORE_INDEX, 0, mask_HW), opacity=TINT)
    for class_id in sorted({*np.unique(mask_HW).tolist()} - {0, IGNORE_INDEX}):
        image_HW3 = draw_cased_outline(image_HW3, mask_HW == class_id, class_colour(class_id), MASK_PX, LIGHT)
    return image_HW3


def class_colours() -> np.ndarray:
    """(256, 3) float32 RGB: the colour that PASCAL VOC gives each class id."""
    return voc_colours().astype(np.float32)


def class_colour(class_id: int) -> Colour:
    return tuple(class_colours()[class_id].astype(int).tolist())


def as_css(colour: Colour) -> str:
    """A colour as HTML writes it."""
    return "#" + bytes(colour).hex()


def draw_cased_outline(
    image_HW3: np.ndarray, mask_HW: np.ndarray, colour: Colour, width_px: int, casing: Colour
) -> np.ndarray:
    """draw_outline with a casing of one pixel along both sides, so that it is visible on any background; wider on
    larger tiles, which are shown scaled down."""
    inside_HW = (mask_HW > 0) & (mask_HW < IGNORE_INDEX)
    width_px = max(round(width_px * max(mask_HW.shape) / TILE_PX), 1)
    cased_HW3 = draw_outline(image_HW3, grow(inside_HW), casing, width_px + 2)
    return draw_outline(cased_HW3, inside_HW, colour, width_px)


def draw_outline(image_HW3: np.ndarray, mask_HW: np.ndarray, colour: Colour, width_px: int = 1) -> np.ndarray:
    """The image with the border of the mask (any class), also where the mask touches the image's edge."""
    inside_HW = (mask_HW > 0) & (mask_HW < IGNORE_INDEX)
    within_HW = inside_HW
    for _ in range(width_px):
        within_HW = ~grow(~within_HW, edge=True)
    drawn_HW3 = image_HW3.copy()
    drawn_HW3[inside_HW & ~within_HW] = colour
    return drawn_HW3


def grow(mask_HW: np.ndarray, *, edge: bool = False) -> np.ndarray:
    """A mask and all pixels that share a side with it; `edge`: the surroundings of the image count as mask."""
    padded = np.pad(mask_HW, 1, constant_values=edge)
    return mask_HW | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]


def lay_out_gallery(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], classes: Sequence[str] = ()) -> Image.Image:
    """One row per image and one column per kind of picture, each as large as its tile allows; below, a legend if there
    are several classes.

    Args:
        rows: (title, {column: (H, W, 3) uint8}); the first row names all columns.
        classes: names in the order of their ids.
    """
    columns, font = list(rows[0][1]), ImageFont.load_default(size=13)
    width, below = len(columns) * TILE_PX, LABEL_PX + len(rows) * (TILE_PX + LABEL_PX)
    legend = lay_out_legend(classes, width, font) if len(classes) > 1 else []
    sheet = Image.new("RGB", (width, below + LABEL_PX * (legend[-1][1] + 1 if legend else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    for class_id, (left, line) in enumerate(legend, start=1):
        top = below + line * LABEL_PX
        swatch = (left + 2, top + 3, left + 13, top + 14)
        draw.rectangle(swatch, fill=class_colour(class_id), outline="black")
        draw.text((left + 18, top + 1), classes[class_id - 1], fill="black", font=font)
    for x, column in enumerate(columns):
        draw.text((x * TILE_PX + 2, 1), column, fill="black", font=font)
    for y, (title, pictures) in enumerate(rows):
        top = LABEL_PX + y * (TILE_PX + LABEL_PX)
        for x, column in enumerate(columns):
            sheet.paste(Image.fromarray(as_tile(pictures[column], TILE_PX - 2)), (x * TILE_PX, top))
        draw.text((2, top + TILE_PX - 2), title, fill="black", font=font)
    return sheet


def lay_out_legend(names: Sequence[str], width: int, font: Any) -> list[tuple[int, int]]:
    """Where the entry of each name begins, in pixels, and its line; lines have this width."""
    places, left, line = [], 0, 0
    for name in names:
        entry = 18 + round(font.getlength(name)) + 14
        if left and left + entry > width:
            left, line = 0, line + 1
        places.append((left, line))
        left += entry
    return places


def encode_data_uri(picture: Image.Image | np.ndarray) -> str:
    """A picture as a data URI, embedded in the page."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
