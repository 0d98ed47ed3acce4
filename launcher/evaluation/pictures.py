"""Pictures that people look at: overlays, galleries, curves. PIL and matplotlib, no files."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from shards.schema import IGNORE_INDEX, voc_palette

TILE_PX = 160
LABEL_PX = 14
PAINT = 0.65  # opacity of a class's colour over the image
TINT = 0.3  # the same where its border is drawn too


def overlay_scores(image_HW3: np.ndarray, score_HW: np.ndarray) -> np.ndarray:
    """A score map in [0, 1] over the image: transparent at 0, yellow to dark red towards 1."""
    import matplotlib

    colour_HW3 = matplotlib.colormaps["YlOrRd"](score_HW)[..., :3] * 255
    opacity_HW1 = 0.75 * score_HW.clip(0, 1)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)


def overlay_class_scores(image_HW3: np.ndarray, scores_nHW: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
    """Score maps in [0, 1] of several classes over the image: at each pixel the colour of the class with the highest
    score, the more opaque the higher it is."""
    if len(class_ids) == 0:
        return image_HW3.copy()
    colour_HW3 = class_colours()[np.array(class_ids)[scores_nHW.argmax(0)]]
    opacity_HW1 = 0.75 * scores_nHW.max(0).clip(0, 1)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)


def draw_class_outlines(image_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The image with each class of the mask tinted and its border drawn in the class's colour; 255 stays as it is."""
    image_HW3 = overlay_classes(image_HW3, np.where(mask_HW == IGNORE_INDEX, 0, mask_HW), opacity=TINT)
    for class_id in sorted({*np.unique(mask_HW).tolist()} - {0, IGNORE_INDEX}):
        image_HW3 = draw_outline(image_HW3, mask_HW == class_id, tuple(class_colours()[class_id].astype(int).tolist()))
    return image_HW3


def class_colours() -> np.ndarray:
    """(256, 3) float32 RGB: the colour that PASCAL VOC gives each class id."""
    return np.array(voc_palette(), dtype=np.float32).reshape(256, 3)


def draw_outline(
    image_HW3: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, ...] = (0, 255, 255), width_px: int = 1
) -> np.ndarray:
    """The image with the border of the mask (any class) drawn on it, also where the mask meets the image's edge."""
    inside_HW = (mask_HW > 0) & (mask_HW < 255)
    within_HW = inside_HW
    for _ in range(width_px):
        padded = np.pad(within_HW, 1)
        within_HW = within_HW & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    drawn_HW3 = image_HW3.copy()
    drawn_HW3[inside_HW & ~within_HW] = colour
    return drawn_HW3


def lay_out_gallery(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Image.Image:
    """One row per image, one column per picture of it; all tiles alike in size.

    Args:
        rows: (title, {column: (H, W, 3) uint8}); the columns of the first row name them all.
    """
    columns = list(rows[0][1])
    sheet = Image.new("RGB", (len(columns) * TILE_PX, LABEL_PX + len(rows) * (TILE_PX + LABEL_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        draw.text((x * TILE_PX + 2, 1), column, fill="black")
    for y, (title, pictures) in enumerate(rows):
        top = LABEL_PX + y * (TILE_PX + LABEL_PX)
        for x, column in enumerate(columns):
            tile = Image.fromarray(pictures[column]).resize((TILE_PX - 2, TILE_PX - 2), Image.Resampling.BILINEAR)
            sheet.paste(tile, (x * TILE_PX, top))
        draw.text((2, top + TILE_PX - 2), title, fill="black")
    return sheet


def encode_data_uri(image: Image.Image) -> str:
    """A picture that lives inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot_curves(
    title: str,
    x_label: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> str:
    """Line plot {name: (x, y)} as SVG text."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in lines.items():
        axes.plot(x, y, label=name, linewidth=1.4)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    if from_zero:
        axes.set_ylim(0, None if any(value > 0 for _, y in lines.values() for value in y) else 1)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def overlay_classes(image_HW3: np.ndarray, label_HW: np.ndarray, *, opacity: float = PAINT) -> np.ndarray:
    """The image with every class but the background in the colour that PASCAL VOC gives its id."""
    colour_HW3 = class_colours()[label_HW]
    opacity_HW1 = opacity * (label_HW > 0)[..., None]
    return (image_HW3 * (1 - opacity_HW1) + colour_HW3 * opacity_HW1).astype(np.uint8)
