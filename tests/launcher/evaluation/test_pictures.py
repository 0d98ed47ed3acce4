import base64
import io

import numpy as np
from PIL import Image

from launcher.evaluation.pictures import (
    LABEL_PX,
    TILE_PX,
    class_colour,
    draw_class_outlines,
    draw_outline,
    encode_data_uri,
    lay_out_gallery,
    overlay_class_scores,
    overlay_scores,
)


def test_heat_leaves_the_image_where_the_score_is_zero_and_colours_it_where_it_is_one():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    shown = overlay_scores(image, np.array([[0.0, 1.0], [0.0, 0.5]]))
    assert shown[0, 0].tolist() == [100, 100, 100]
    red, green, blue = shown[0, 1].tolist()
    assert red > green and red > blue


def test_the_outline_runs_along_the_mask_and_leaves_its_inside():
    mask = np.zeros((7, 7), dtype=np.uint8)
    mask[2:5, 2:5] = 1
    mask[0, 0] = 255  # ignored pixels are not outlined
    shown = draw_outline(np.zeros((7, 7, 3), dtype=np.uint8), mask, (9, 9, 9))
    assert shown[..., 0].sum() == 9 * 8 and shown[3, 3].sum() == 0


def test_a_mask_of_the_whole_image_is_outlined_along_its_edge():
    shown = draw_outline(np.zeros((5, 6, 3), dtype=np.uint8), np.ones((5, 6), dtype=np.uint8), (9, 9, 9))
    assert not shown[1:-1, 1:-1].any() and (shown[[0, -1]] == 9).all() and (shown[:, [0, -1]] == 9).all()


def test_a_gallery_has_a_tile_for_every_picture():
    row = {"image": np.zeros((4, 6, 3), dtype=np.uint8), "cam": np.full((4, 6, 3), 255, dtype=np.uint8)}
    sheet = lay_out_gallery([("a", row), ("b", row)])
    assert sheet.size == (2 * TILE_PX, LABEL_PX + 2 * (TILE_PX + LABEL_PX))
    assert sheet.getpixel((5, LABEL_PX + 5)) == (0, 0, 0)
    uri = encode_data_uri(sheet)
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == sheet.size


def test_a_gallery_of_several_classes_shows_their_colours_below_in_as_many_lines_as_they_need():
    row = {"image": np.zeros((4, 6, 3), dtype=np.uint8)}
    below = LABEL_PX + TILE_PX + LABEL_PX
    assert lay_out_gallery([("a", row)], ("smoke",)).size[1] == below
    sheet = lay_out_gallery([("a", row)], ("cat", "dog", "a long name of a class"))
    assert sheet.size == (TILE_PX, below + 2 * LABEL_PX)
    assert sheet.getpixel((7, below + 8)) == class_colour(1)
    assert sheet.getpixel((7, below + LABEL_PX + 8)) == class_colour(3)


def test_maps_of_several_classes_have_the_colour_of_the_class_with_the_highest_score():
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    scores = np.array([[[1.0, 0.2, 0.0]], [[0.0, 0.6, 0.0]]])  # of the classes 2 and 5
    drawn = overlay_class_scores(image, scores, (2, 5))
    assert drawn[0, 0].tolist() == [25, 121, 25]  # 0.25 * 100 + 0.75 * (0, 128, 0)
    assert drawn[0, 1].tolist() == [112, 55, 112]  # 1 - 0.75 * 0.6 of it, and (128, 0, 128)
    assert drawn[0, 2].tolist() == [100, 100, 100]
    assert (overlay_class_scores(image, np.zeros((0, 1, 3)), ()) == image).all()


def test_each_class_is_tinted_with_a_border_and_what_is_ignored_is_not():
    image = np.full((20, 48, 3), 100, dtype=np.uint8)
    mask = np.zeros((20, 48), dtype=np.uint8)
    mask[:, :16], mask[:, 24:40], mask[:, 40:] = 1, 2, 255
    drawn = draw_class_outlines(image, mask)
    assert drawn[0, 0].tolist() == [128, 0, 0] and drawn[0, 30].tolist() == [0, 128, 0]
    assert drawn[9, 5].tolist() == [108, 70, 70] and drawn[9, 30].tolist() == [70, 108, 70]  # 0.7 of it, 0.3 of theirs
    assert drawn[9, 20].tolist() == drawn[9, 46].tolist() == [100, 100, 100]
    assert drawn[9, 16].tolist() == drawn[9, 23].tolist() == [255, 255, 255]  # a border is cased
