"""Plots on pages: few lines, words that stay words, colours that fit the page."""

import re
from pathlib import Path

from launcher.evaluation.curves import in_percent, plot_all, plot_runs
from launcher.evaluation.headline import Headline
from launcher.evaluation.plots import COLOURS, DASHES, MOST_LINES, Line, plot_bars, plot_intervals, plot_lines


def test_a_plot_has_a_title_a_label_and_its_words_as_text_in_the_pages_colour():
    svg = plot_lines("Loss <a>", "step", {"run & a": Line([1, 2], [0.5, 0.25])}, log_y=True)
    assert (
        svg.startswith("<svg ") and 'role="img" aria-label="Loss &lt;a&gt;: run &amp; a"><title>Loss &lt;a&gt;<' in svg
    )
    assert re.search(r"<text[^>]*>run &amp; a</text>", svg) and "currentColor" in svg
    assert "<metadata" not in svg and not re.search(r'<g id="', svg) and "#010203" not in svg
    assert svg == plot_lines("Loss <a>", "step", {"run & a": Line([1, 2], [0.5, 0.25])}, log_y=True)


def test_one_point_is_a_dot_beside_lines_and_no_plot_alone():
    dot, line = Line([5], [0.5]), Line([1, 2], [0.5, 0.25])
    assert list(plot_all("IoU", "step", {"a": dot})) == [] and list(plot_all("IoU", "step", {})) == []
    (svg,) = plot_all("IoU", "step", {"a": dot, "b": line})
    assert ">a</text>" in svg and ">b</text>" in svg
    assert list(plot_all("IoU", "x", {"a": Line([1, 2], [float("nan"), 0.5])})) == []  # the other one does not exist


def test_figures_of_a_report_are_in_percent_and_thresholds_are_not():
    line = Line([0.0, 0.5], [0.25, 0.75], mark=0.5)
    assert in_percent({"a": line})["a"] == line._replace(y=[25.0, 75.0])
    assert in_percent({"a": line}, "recall, percent")["a"] == Line([0.0, 50.0], [25.0, 75.0], mark=50.0)
    curve = {
        "per_image_iou": [0.25] * 101,
        "recall": [1.0] * 101,
        "precision": [0.5] * 101,
        "false_alarm_area": [0] * 101,
    }
    source = {"curve": curve, "fixed": {"threshold": 0.3}, "oracle_per_image_iou": 0.5}
    labels = {"reliability": [{"probability": 0.1, "share": 0.25}, {"probability": 0.9, "share": 0.75}]}
    steps = [{"step": step, "train/loss": 0.5, "val/x/per_image_iou": 0.5} for step in (1, 2)]
    run = {
        "name": "run",
        "classes": ("smoke",),
        "metrics": steps,
        "logged": [("x", "per_image_iou")],
        "headline": Headline(Path("run"), {"sources": {"x": source}}, "x", "fixed"),
        "source": source,
        "evaluation": {"sources": {"x": source}, "labels": labels},
    }
    loss, *others = plot_runs([run])
    assert ">percent<" not in loss and "Training, loss" in loss
    assert len(others) == 5 and all(">percent<" in plot for plot in others)
    assert sum(">recall, percent<" in plot or ">probability, percent<" in plot for plot in others) == 2


def test_more_lines_than_can_be_told_apart_become_several_plots():
    lines = {f"run {n}": Line([1, 2], [n, n]) for n in range(MOST_LINES + 3)}
    plots = list(plot_all("Loss", "step", lines))
    assert [plot.count(">run ") for plot in plots] == [MOST_LINES, 3]
    assert ">Loss (1 of 2)<" in plots[0] and ">Loss (2 of 2)<" in plots[1]


def test_a_run_has_its_colour_and_a_kind_its_dashes():
    svg = plot_lines("IoU", "step", {"a": Line([1, 2], [1, 2], 3), "b": Line([1, 2], [2, 3], 3, dash=1)})
    drawn = [style for style in re.findall(r'style="([^"]*)"', svg) if COLOURS[3] in style]
    assert len(drawn) == 4 and sum("stroke-dasharray" in style for style in drawn) == 2  # each with its legend
    assert len({str(dash) for dash in DASHES}) == len(DASHES)


def test_colours_stand_out_on_white_and_on_the_dark_page():
    def light(colour):
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS:
        assert (light("#ffffff") + 0.05) / (light(colour) + 0.05) >= 3
        assert (light(colour) + 0.05) / (light("#161616") + 0.05) >= 3


def test_bars_and_intervals_name_every_row():
    bars = plot_bars("IoU of each class", {"cat": 40.0, "dog": 20.0})
    assert (
        'aria-label="IoU of each class: cat 40.0, dog 20.0"' in bars
        and ">cat</text>" in bars
        and ">20.0</text>" in bars
    )
    forest = plot_intervals("Tuned − control", {"lambda_1": (2.0, -1.0, 5.0)})
    assert ">lambda_1</text>" in forest and "lambda_1 +2.0" in forest
