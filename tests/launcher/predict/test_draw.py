import numpy as np

from launcher.predict.draw import AreaPlot, colour_of, overlay, words_of, write_words


def of_class(name, probability, area_px):
    return {"class": name, "probability": probability, "area_px": area_px, "area_percent": float(area_px)}


def test_each_of_many_classes_has_a_colour_that_no_other_is_like():
    colours = np.array([colour_of(class_id) for class_id in range(1, 21)], dtype=float)
    distances = np.abs(colours[:, None] - colours[None]).max(-1) + 999 * np.eye(20)
    assert distances.min() > 25 and colours.max(1).min() == 255


def test_an_overlay_outlines_each_class_and_leaves_the_rest():
    image, mask = np.full((720, 900, 3), 100, np.uint8), np.zeros((720, 900), np.uint8)
    mask[300:500, 100:300], mask[300:500, 400:600], mask[600:] = 1, 2, 255
    shown = overlay(image, mask, [("x", None)])
    for class_id, x in ((1, 100), (2, 400)):
        assert (shown[400, x : x + 2] == colour_of(class_id)).all()  # 720 / 360 px
        assert (shown[400, x + 2 : x + 4] == 0).all()
        expected = 100 * 0.78 + 0.22 * np.array(colour_of(class_id))
        assert np.abs(shown[400, x + 50] - expected).max() < 1
    assert (shown[200:300] == 100).all() and (shown[600:] == 100).all()


def test_words_say_what_is_seen_or_what_was_likeliest():
    rows = [of_class("cat", 0.9, 0), of_class("dog", 0.6, 7)]
    assert words_of(rows, 1.24) == [("1.2 s", None), ("dog 0.60, 7.0 %", 2)]
    assert words_of([of_class("cat", 0.1, 0), of_class("dog", 0.4, 0)]) == [("none (likeliest dog, 0.40)", None)]
    assert words_of([of_class("smoke", 0.4, 0)]) == [("no smoke (0.40)", None)]


def test_words_fit_the_frame_in_several_lines_or_smaller():
    words = [("circle 1.00, 13.7 %", 1), ("triangle 0.51, 7.6 %", 2), ("another one 0.51, 7.6 %", 3)]
    for width, rows in ((900, 1), (240, 2), (130, 3), (90, 2)):
        shown = write_words(np.full((100, width, 3), 200, np.uint8), words)
        changed = (shown != 200).any(-1)
        assert not changed[:, -1].any() and not changed[-1].any(), width
        boxes = np.diff(changed[:, 8].astype(int), prepend=0) == 1  # the boxes of the lines do not touch
        assert boxes.sum() == rows, width


def test_the_plot_of_a_long_clip_has_a_thousand_means():
    plot = AreaPlot(("cat", "dog"), frames=2500)
    for n in range(2500):
        plot.add(n, n / 10, [n % 3, 0.0])
    assert plot.each == 3 and len(plot.sums) == 834
    assert plot.sums[10].tolist() == [3, (30 + 31 + 32) / 10, 3, 0]
    assert "dog" not in plot.svg("clip")  # nowhere seen
