"""Plots on pages: few lines, words that stay words, colours that fit the page."""

import re
from pathlib import Path

from launcher.evaluation import curves
from launcher.evaluation.curves import in_percent, plot_all, plot_runs
from launcher.evaluation.headline import Headline
from launcher.evaluation.plots import COLOURS, DASHES, MOST_LINES, Line, plot_bars, plot_intervals, plot_lines
from wsss.metrics.counts import THRESHOLDS


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


def test_every_line_is_what_was_measured_of_its_run_by_hand():
    percent, decline = THRESHOLDS.tolist(), [1 - n / 100 for n in range(101)]
    grow = [None, *percent[1:]]
    of_map = {"curve": {"per_image_iou": percent, "recall": decline, "precision": percent}, "oracle_per_image_iou": 0.9}
    sources = {
        "x": {**of_map, "fixed": {"threshold": 0.3}},
        "x+crf": {"curve": {**of_map["curve"], "recall": grow}},
        "seg": {},
    }
    labels = {"reliability": [{"probability": 0.1, "share": 0.25}]}
    lines = [{"step": 2, "train/cls_loss": 1.0, "train/loss": 3.0, "train/lr": 0.1}, {"step": 4, "train/loss": 2.0}]
    lines += [{"step": 4, "val/x/miou": 0.5, "val/y/miou": 0.4, "val/f1": 0.6}]
    run = {"name": "run", "metrics": lines, "headline": Headline(Path("run"), {"sources": sources}, "x", "fixed")}
    run |= {"source": sources["x"], "evaluation": {"sources": sources, "labels": labels}}
    run |= {"logged": [("", "f1"), ("x", "miou"), ("y", "miou"), ("z", "miou")]}
    nothing = {**run, "name": "nothing", "metrics": [], "evaluation": {"sources": {"x": {}}}, "source": {}}
    two = [nothing, run]  # the second has the second colour
    steps = {"loss": {"run": Line([2, 4], [3.0, 2.0], 1)}, "cls_loss": {"run": Line([2], [1.0], 1)}}
    found = curves.collect_losses(two)
    assert found == steps and list(found) == ["loss", "cls_loss"]  # what is minimised comes first
    maps = {"run x": Line([4], [0.5], 1), "run y": Line([4], [0.4], 1, dash=1)}
    assert curves.collect_validation(two) == maps
    assert curves.collect_validation(two, of_labels=True) == {"run": Line([4], [0.6], 1)}
    dot = Line(percent, percent, 1, mark=0.3)
    bound = Line([0.0, 1.0], [0.9, 0.9], 1, dash=2)
    assert curves.collect_oracle(two) == {"run x": dot, "run x, each image's best": bound}
    assert curves.collect_precision(two) == {"run x": Line(decline, percent, 1, mark=0.7)}  # the recall at 0.3
    equal = Line([0.0, 1.0], [0.0, 1.0], 1, dash=2)
    assert curves.collect_calibration(two) == {"run": Line([0.1], [0.25], 1), "equal": equal}
    assert curves.collect_calibration([nothing]) == {}
    of_sources = curves.collect_thresholds(run, "recall")
    assert list(of_sources) == ["x", "x+crf"] and of_sources["x"] == Line(percent, decline, 0)
    assert of_sources["x+crf"].points == 100 and of_sources["x+crf"]._replace(y=0) == Line(percent, 0, 1, dash=1)


def test_of_many_classes_the_lowest_have_bars_and_of_one_class_there_are_none():
    ious = {"background": 0.9, "absent": None, **{f"c{n:02d}": n / 100 for n in range(40)}}
    at = Headline(Path(), {"sources": {"x": {"fixed": {"class_iou": ious}}}}, "x", "fixed")
    run = {"name": "run", "classes": [*ious][1:], "headline": at, "evaluation": {}}
    bars = ", ".join(f"c{n:02d} {n}.0" for n in reversed(range(30)))
    assert f"run: IoU of each class, the 30 lowest of 41: {bars}" in curves.plot_classes(run)
    labels = {"classes": {name: {"average_precision": iou} for name, iou in (("cat", 0.5), ("dog", 0.25))}}
    of_labels = {**run, "classes": ["cat", "dog"], "evaluation": {"labels": labels}}
    of_labels["headline"] = Headline(Path(), {"sources": {"x": {"fixed": {}}}}, "x", "fixed")
    assert "run: average precision of each class: cat 50.0, dog 25.0" in curves.plot_classes(of_labels)
    assert curves.plot_classes({**of_labels, "evaluation": {}}) is None
    assert curves.plot_classes({**run, "classes": ["smoke"]}) is None


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
