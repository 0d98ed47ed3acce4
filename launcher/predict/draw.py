"""Overlays with outlines and captions, heat maps, stills, and the area over the time of a clip."""

import io
from collections.abc import Iterable, Mapping, Sequence
from colorsys import hsv_to_rgb
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launcher.evaluation.pictures import draw_outline, overlay_scores
from launcher.evaluation.plots import Line, plot_lines
from launcher.predict.masks import Prediction

Words = tuple[str, int | None]  # text, and the id of its class
GAP = "   "
FIRST_HUE, GOLDEN_SECTION = 0.95, 0.618
FILL = 0.22  # opacity of a class's colour inside its outline; the frame stays visible
SMALL_PX, SMALLEST_PX = 10, 7  # size of words on small frames, and where these would not fit
OUTLINES = 360  # outlines are as wide as the short side divided by this
PLOTTED = 1000  # maximum number of points of a curve


def colour_of(class_id: int) -> tuple[int, int, int]:
    """A bright colour of its own: hues a golden section apart, beginning with a red that neither sky nor flares have.
    PASCAL VOC's colours are dark, and some look alike as outlines."""
    red, green, blue = hsv_to_rgb((FIRST_HUE + GOLDEN_SECTION * (class_id - 1)) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image_HW3: np.ndarray, mask_HW: np.ndarray, words: Sequence[Words]) -> np.ndarray:
    """The frame with each class filled lightly and outlined, dark inside the outline, and words at the top."""
    drawn_HW3, short = image_HW3, min(image_HW3.shape[:2])
    width_px = max(round(short / OUTLINES), 1)
    for class_id in np.unique(mask_HW):
        if class_id in (0, 255):
            continue
        inside_HW, colour = mask_HW == class_id, colour_of(int(class_id))
        drawn_HW3 = drawn_HW3.copy()
        filled_N3 = drawn_HW3[inside_HW] * (1 - FILL) + np.asarray(colour) * FILL
        drawn_HW3[inside_HW] = filled_N3.astype(np.uint8)
        drawn_HW3 = draw_outline(drawn_HW3, inside_HW, (0, 0, 0), 2 * width_px)
        drawn_HW3 = draw_outline(drawn_HW3, inside_HW, colour, width_px)
    return write_words(drawn_HW3, words)


def write_words(image_HW3: np.ndarray, words: Sequence[Words]) -> np.ndarray:
    """The image with light words on dark in its upper left corner, each in the colour of its class: in one line, or in
    several if the image is too narrow; smaller if a single one is wider than the image."""
    picture, width = Image.fromarray(image_HW3), image_HW3.shape[1]
    size_px = max(min(image_HW3.shape[:2]) // 28, SMALL_PX)
    font = ImageFont.load_default(size=size_px)
    while size_px > SMALLEST_PX and max(font.getlength(text) for text, _ in words) + size_px > width:
        size_px -= 1
        font = ImageFont.load_default(size=size_px)
    draw, (left, y), margin = ImageDraw.Draw(picture, "RGBA"), (size_px // 2, size_px // 2), size_px // 3
    for line in in_lines(words, font, width - size_px):
        box = draw.textbbox((left, y), GAP.join(text for text, _ in line), font=font)
        draw.rectangle((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin), fill=(0, 0, 0, 170))
        x = float(left)
        for text, class_id in line:
            fill = (255, 255, 255) if class_id is None else lighter(colour_of(class_id))
            draw.text((x, y), text, fill=fill, font=font)
            x += draw.textlength(text + GAP, font=font)
        y = round(box[3]) + 2 * margin
    return np.asarray(picture)


def in_lines(words: Sequence[Words], font: Any, width_px: int) -> list[list[Words]]:
    """The words in as few lines of this width as possible, in their order."""
    lines: list[list[Words]] = []
    for word in words:
        if lines and font.getlength(GAP.join(text for text, _ in [*lines[-1], word])) <= width_px:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def lighter(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A class's colour for words, which must be readable on dark."""
    red, green, blue = ((x + 255) // 2 for x in colour)
    return red, green, blue


def words_of(classes: Sequence[Mapping[str, Any]], time_s: float | None = None) -> list[Words]:
    """The time, and the probability and area of each class that is seen; if none is, the likeliest class."""
    seen = [
        (f"{row['class']} {row['probability']:.2f}, {row['area_percent']:.1f} %", class_id)
        for class_id, row in enumerate(classes, start=1)
        if row["area_px"]
    ]
    likeliest = max(classes, key=lambda row: row["probability"])
    nothing: list[Words] = [(f"no {likeliest['class']} ({likeliest['probability']:.2f})", None)]
    if len(classes) > 1:
        nothing = [(f"none (likeliest {likeliest['class']}, {likeliest['probability']:.2f})", None)]
    return [*([] if time_s is None else [(f"{time_s:.1f} s", None)]), *(seen or nothing)]


def heat(image_HW3: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The frame overlaid with the scores of all classes that pass the gate."""
    return overlay_scores(image_HW3, prediction.scores.max(0, initial=0))


def jpeg(image_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


class AreaPlot:
    """Area of every class over time, in at most PLOTTED means, whatever the number of frames.

    Args:
        frames: number of frames of the clip.
    """

    def __init__(self, classes: Sequence[str], frames: int) -> None:
        self.classes = classes
        self.each = max(-(-frames // PLOTTED), 1)  # frames per mean
        self.sums: list[np.ndarray] = []  # (2 + K,) number, time and areas of each mean

    def add(self, number: int, time_s: float, areas_percent: Iterable[float]) -> None:
        """Add the frame of this number, which begins at 0 and only rises."""
        if number // self.each >= len(self.sums):
            self.sums.append(np.zeros(2 + len(self.classes)))
        self.sums[-1] += [1, time_s, *areas_percent]

    def svg(self, title: str) -> str:
        """The plot as SVG text; classes that are never seen are left out, unless none is seen."""
        means = np.array([sums[1:] / sums[0] for sums in self.sums])
        seen = [k for k in range(len(self.classes)) if means[:, 1 + k].any()] or [0]
        lines = {self.classes[k]: Line(means[:, 0].tolist(), means[:, 1 + k].tolist()) for k in seen}
        return plot_lines(title, "time in s", lines, y_label="area in %", from_zero=True)
