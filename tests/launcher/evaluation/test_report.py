"""The report as its readers see it, and what a headline is held against."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.pages import read_page

from launcher.errors import RunError
from launcher.evaluation.class_sums import GroupSums
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.headline import (
    Beside,
    Headline,
    Known,
    chance_of,
    compare,
    describe_headline,
    explain_degenerate,
    hold_against,
    read_headline,
)
from launcher.evaluation.per_image import PER_IMAGE, compare_images, read_ious, write_rows
from launcher.evaluation.pictures import TRUTH_COLOUR, as_tile, at_tile, draw_mask, draw_truth
from launcher.evaluation.report import write_report
from launcher.evaluation.strip import choose_ranks, rank_alarms, rank_images
from launcher.run.folder import Run


@pytest.fixture
def pair(run):
    """The student, evaluated, and a copy of it as a control whose IoUs are a tenth lower."""
    evaluate(run)
    control = Path("runs/control")
    shutil.copytree(run, control)
    (control / "config.yaml").write_text((run / "config.yaml").read_text().replace("name: student", "name: control"))
    rows = list(csv.DictReader((run / "per_image.csv").open()))
    for row in rows:
        row["iou_fixed"] = row["iou_fixed"] and str(float(row["iou_fixed"]) - 0.1)
    with (control / "per_image.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return run, control


def test_the_page_meets_a_phone_the_dark_and_those_who_see_no_pictures(pair):
    _, control = pair
    out = write_report(Path("runs"), control=control, look_up=lambda headline: Known(paper=0.4737))
    page, text = read_page(out), out.read_text()
    words = " ".join(" ".join(page.words).split())
    assert "control control" in words and "(+10.0 [+10.0, +10.0] of " in words and "paper 47.4" in words
    assert "teacher ( wsss infer runs/teacher && wsss evaluate runs/teacher )." in words and "Left out" in words
    assert text.index('class="strip"') < text.index('class="cards"') < text.index("<svg") < text.index("<table")
    assert text.count("<figure") == 6 + 2 and len(page.all("img")) == 8 * 3 + 2  # two false alarms; and two galleries
    assert "worst: IoU" in words and words.index("worst: IoU") < words.index(
        "alarm: ", words.index("worst: ")
    ) < words.index("median: ")
    assert re.search(r"; alarm: the worst of the false alarms on \d+ of the \d+ images without smoke; from top", words)
    assert any("outline of the truth: smoke on" in image["alt"] for image in page.all("img"))
    folded = text[text.index("<details><summary>Every map and mask</summary>") :]
    first, whole = folded.split("The same with all", 1)
    assert "<table>" not in text[: text.index(folded)] and first.count("<th") < 10 < whole.count("<th")
    assert "per‑image IoU</th>" in first  # no heading breaks inside a word
    assert "oracle" in first and "fg/bg mIoU" not in first and "fg/bg mIoU" in whole


def test_a_control_without_figures_is_refused(run):
    evaluate(run)
    Path("runs/teacher").rename("runs/a teacher")
    with pytest.raises(
        RunError, match="--control .*: this run was not evaluated; run `wsss evaluate 'runs/a teacher'`"
    ):
        write_report(run, control=Path("runs/a teacher"))


def test_a_headline_stands_beside_its_control_its_teacher_and_what_learned_nothing(pair):
    run, control = pair
    headline = read_headline(Run(run))
    assert read_headline(Run(Path("runs/teacher"))) is None
    curve = headline.evaluation["sources"][headline.source]["curve"]["per_image_iou"]
    beside = {one.what: one for one in hold_against(headline, "smoke", Known(control=Run(control)))}
    assert list(beside) == ["control control", "smoke everywhere"]  # the teacher was not evaluated
    assert beside["smoke everywhere"].value == curve[0]
    assert beside["control control"].gap == pytest.approx((0.1, 0.1, 0.1), abs=1e-4)
    assert [one.what for one in hold_against(headline, "smoke", Known(control=Run(run)))] == ["smoke everywhere"]
    other = json.loads((control / "evaluation.json").read_text())
    other["dataset"]["fingerprint"] = "other images"
    (control / "evaluation.json").write_text(json.dumps(other))
    for name in ("evaluation.json", "per_image.csv"):
        shutil.copy(run / name, Path("runs/teacher") / name)
    of_teacher, _, paper = hold_against(headline, "smoke", Known(0.4737, Run(control)))
    groups = headline.at["per_image_iou_groups"]
    assert of_teacher.words() == f"its teacher {100 * headline.value:.1f} (+0.0 [+0.0, +0.0] of {groups} groups)"
    assert paper.words() == "paper 47.4"
    at = {**headline.at, "per_image_iou": 0.25, "per_image_iou_interval": [0.2, 0.3], "false_alarm_area": 0.99}
    sources = {headline.source: {headline.choice: {**at, "per_image_iou_groups": 30}}}
    everywhere = replace(headline, evaluation={**headline.evaluation, "sources": sources})
    assert describe_headline(everywhere, "smoke", Known(0.4737)).splitlines()[:2] == [
        f"per-image IoU 25.0 [20.0, 30.0] ({headline.where()})",
        "  smoke is predicted nearly everywhere",
    ]
    assert describe_headline(everywhere, "smoke", Known(0.4737)).endswith("\n  paper 47.4")
    of_map = json.loads((run / "evaluation.json").read_text())
    other_kind = next(kind for kind in of_map["sources"] if kind != headline.source)
    of_map["headline"] = {"source": other_kind, "choice": headline.choice}
    Path("runs/teacher/evaluation.json").write_text(json.dumps(of_map))
    assert hold_against(headline, "smoke", Known())[0].what == f"its teacher {other_kind}"
    Path("runs/teacher").rename("runs/gone")
    assert [one.what for one in hold_against(headline, "smoke", Known())] == ["smoke everywhere"]


def test_runs_are_compared_on_the_images_that_both_have():
    ours = {"a": ("g", 0.5), "b": ("g", 0.75), "alone": ("h", 0.9)}
    theirs = {"b": ("g", 0.25), "a": ("g", 0.25), "other": ("h", 0.1)}
    assert compare_images(ours, theirs) == (0.375, 0.375, 0.375)  # +0.25 and +0.5 of one group
    assert compare_images(ours, {}) is None


def test_images_that_show_a_class_are_read_from_a_table_whose_sources_have_other_columns(tmp_path):
    rows = [
        {"source": "masks", "key": "a", "group": "g", "truth_area": 0.5, "iou_fixed": 0.75},
        {"source": "cam", "key": "a", "group": "g", "truth_area": 0.5, "iou_fixed": 0.25, "iou_tuned": 0.0},
        {"source": "cam", "key": "clear", "group": "g", "truth_area": 0.0, "iou_fixed": None, "iou_tuned": None},
        {"source": "cam", "key": "unknown", "group": "g", "truth_area": None, "iou_fixed": None, "iou_tuned": None},
    ]
    write_rows(tmp_path / PER_IMAGE, rows)
    assert read_ious(tmp_path, "cam", "tuned") == {"a": ("g", 0.0)}
    assert read_ious(tmp_path, "masks", "fixed") == {"a": ("g", 0.75)} and read_ious(tmp_path, "masks", "tuned") == {}


def of(fingerprint="images", curve=(), **at):
    """A headline with these figures."""
    sources = {"cam": {"fixed": at, "curve": {"per_image_iou": curve} if curve else {}}}
    return Headline(Path(), {"sources": sources, "dataset": {"fingerprint": fingerprint}}, "cam", "fixed")


def test_a_headline_says_of_what_it_is_and_within_which_bounds():
    assert of(average_precision=0.5).where() == "image labels" and of(miou=0.5).where() == "cam"
    assert of(per_image_iou=0.5, threshold=0.4).where() == "cam, threshold 0.40 fixed"
    assert of(miou=0.5, miou_interval=[0.4, 0.6], miou_groups=8).interval() == "[40.0, 60.0] of 8 groups"
    nothing = of(images=3)
    assert (nothing.figure, nothing.value, nothing.interval()) == ("", None, "")
    assert describe_headline(nothing, "smoke", Known()) == "no metric of cam"
    assert Beside("x", 0.5, (0.1, -0.05, 0.2), 8).words() == "x 50.0 (+10.0 [-5.0, +20.0] of 8 groups)"


def test_figures_of_other_kinds_or_images_are_not_held_against_each_other(monkeypatch):
    theirs = {
        "same": of(miou=0.3), "other figure": of(pixel_accuracy=0.3), "none": of(miou=None), "not evaluated": None,
        "other images": of("others", miou=0.3),
    }  # fmt: skip
    monkeypatch.setattr("launcher.evaluation.headline.read_headline", theirs.__getitem__)
    assert [compare(of(miou=0.5), name, name) for name in theirs] == [Beside("same", 0.3), None, None, None, None]
    assert compare(of(miou=None), "same", "same") is None


@pytest.mark.parametrize(
    ("figure", "reads", "of_runs"),
    [
        ("per_image_iou", "read_ious", [{"a": ("g", 0.5), "alone": ("h", 0.9)}, {"a": ("g", 0.25)}]),
        (
            "miou",
            "read_class_sums",
            [GroupSums(["g"], np.array([sums])) for sums in ([[4, 4], [4, 4], [4, 4]], [[4, 2], [4, 4], [6, 2]])],
        ),
        ("average_precision", "", []),  # of whole sets: no image has one
    ],
)
def test_each_run_is_compared_at_its_own_source_and_threshold(monkeypatch, figure, reads, of_runs):
    at, dataset = {figure: 0.5, "miou_groups": 1}, {"fingerprint": "images"}
    ours = Headline(Path("ours"), {"sources": {"cam": {"fixed": at}}, "dataset": dataset}, "cam", "fixed")
    theirs = Headline(Path("theirs"), {"sources": {"grad": {"tuned": at}}, "dataset": dataset}, "grad", "tuned")
    monkeypatch.setattr("launcher.evaluation.headline.read_headline", lambda run: theirs)
    if reads:
        found = {(Path("ours"), "cam", "fixed"): of_runs[0], (Path("theirs"), "grad", "tuned"): of_runs[1]}
        monkeypatch.setattr(f"launcher.evaluation.headline.{reads}", lambda *which: found[which])
    gap = {"per_image_iou": 0.25, "miou": 1 - (4 / 6 + 2 / 4) / 2}.get(figure)  # ours are better
    beside = compare(ours, "other", theirs)
    assert (beside.what, beside.value, beside.groups) == ("other grad", 0.5, 1 if reads else None)
    assert beside.gap == (pytest.approx((gap,) * 3) if reads else None)


def test_chance_is_the_class_everywhere_or_the_background_alone():
    assert chance_of(of(per_image_iou=0.5, curve=[0.14, 0.2]), "smoke") == Beside("smoke everywhere", 0.14)
    assert chance_of(of(per_image_iou=0.5), "smoke") is None
    background = chance_of(of(miou=0.5, background_share=0.6, classes_in_truth=3), "the class")
    assert background == Beside("background everywhere", pytest.approx(0.2))
    assert chance_of(of(miou=0.5), "the class") is None


def test_the_chance_of_an_average_precision_is_the_share_of_the_images():
    classes = {"cat": {"images": 2}, "dog": {"images": 6}, "nowhere": {"images": 0}}
    evaluation = {
        "sources": {"x": {"fixed": {"average_precision": 0.9}}},
        "dataset": {"images": 8, "images_without_truth": 0},
        "labels": {"classes": classes},
    }
    assert chance_of(Headline(Path(), evaluation, "x", "fixed"), "the class").value == pytest.approx(0.5)


def test_figures_of_everything_or_of_nothing_are_told():
    assert "everywhere" in explain_degenerate({"threshold": 0.0, "per_image_iou": 0.14}, "smoke")
    assert "everywhere" in explain_degenerate({"threshold": 0.1, "false_alarm_area": 0.95}, "smoke")
    assert "never" in explain_degenerate({"threshold": 0.9, "recall": 0.0, "false_alarm_area": 0.0}, "smoke")
    of_classes = {"background": 0.7, "cat": 0.0, "dog": None}
    assert explain_degenerate({"class_iou": of_classes}, "the class") == "no class is ever predicted correctly"
    assert (
        explain_degenerate({"class_iou": {"background": 0.7, "cat": 0.0}}, "cat") == "cat is never predicted correctly"
    )
    assert explain_degenerate({"class_iou": {**of_classes, "cat": 0.1}}, "the class") == ""
    assert explain_degenerate({"threshold": 0.5, "recall": 0.1, "false_alarm_area": 0.2}, "smoke") == ""
    assert (
        explain_degenerate({"class_iou": {"background": 0.7, "cat": 0.0, "dog": 0.1, "owl": None}}, "the class") == ""
    )
    assert explain_degenerate({"average_precision": 0.5}, "the class") == ""


def test_the_strip_has_the_worst_the_median_and_the_best(pair):
    assert [rank for rank, _ in choose_ranks(range(20))] == ["worst"] * 2 + ["median"] * 2 + ["best"] * 2
    assert [place for _, place in choose_ranks(range(20))] == [0, 1, 9, 10, 18, 19]
    assert choose_ranks(range(3)) == [("worst", 0), ("median", 1), ("best", 2)] and choose_ranks([]) == []
    headline = read_headline(Run(pair[0]))
    ranked, order = rank_images(headline)
    values = [float(said.removeprefix("IoU ")) for _, said in ranked]
    assert order == "IoU" and values == sorted(values)
    mean = 100 * headline.evaluation["sources"][headline.source][headline.choice]["per_image_iou"]
    assert np.mean(values) == pytest.approx(mean, abs=0.06)


def test_without_masks_images_are_ranked_by_the_probability_of_what_their_label_names(tmp_path):
    (tmp_path / "per_image.csv").write_text(
        "source,key,group,p(cat),label(cat),p(dog),label(dog)\nx,a,g,0.9,1,0.1,0\nx,b,g,0.2,1,0.7,1\nx,c,g,0.9,0,0.9,0\ny,d,g,0.1,1,0,0\n"
    )
    evaluation = {"sources": {}, "dataset": {"classes": ["cat", "dog"]}}
    ranked, order = rank_images(Headline(tmp_path, evaluation, "x", "fixed"))
    assert ranked == [("b", "p(cat) 0.20"), ("a", "p(cat) 0.90")] and order == "probability"


def rows_of(tmp_path, *rows):
    (tmp_path / "per_image.csv").write_text("\n".join(("source,key,group," + rows[0], *rows[1:])))


@pytest.mark.parametrize(
    ("classes", "rows", "worst", "told"),
    [
        (
            ["smoke"],
            (
                "probability,truth_area,false_area_fixed",
                *("x,a,g,0.9,0.0,0.02", "x,b,g,0.1,0.0,0.3", "x,c,g,0.1,0.0,0.0", "x,shown,g,0.9,0.2,0.5", "x,?,g,1,,"),
            ),
            [("b", "30.0 %, p 0.10"), ("a", "2.0 %, p 0.90")],
            "alarm: the worst of the false alarms on 2 of the 3 images without smoke",
        ),
        (
            ["cat", "dog"],
            ("p(cat),label(cat),p(dog),label(dog)", "x,a,g,0.9,1,0.9,0", "x,b,g,0.4,0,0.7,0", "x,c,g,0.4,0,0.1,0"),
            [("b", "p(dog) 0.70")],
            "alarm: the worst of the false alarms on 1 of the 2 images without any of the classes",
        ),
        (
            ["cat", "dog"],
            ("truth_area,false_area_fixed", "x,a,g,0.0,0.0", "y,b,g,0.0,0.5"),
            [],
            "no false alarm on the 1 images without any of the classes",
        ),
        (["cat"], ("truth_area,false_area_fixed", "x,a,g,0.4,0.2"), [], ""),
    ],
)
def test_the_worst_false_alarms_are_those_of_images_without_a_class(tmp_path, classes, rows, worst, told):
    rows_of(tmp_path, *rows)
    evaluation = {"sources": {}, "dataset": {"classes": classes}}
    assert rank_alarms(Headline(tmp_path, evaluation, "x", "fixed")) == (worst, told)


def test_truth_and_mask_differ_in_colour_width_and_casing_on_a_grey_sky():
    sky = as_tile(np.full((54, 96, 3), 170, dtype=np.uint8))
    assert sky.shape == (135, 240, 3)
    mask = np.zeros((54, 96), dtype=np.uint8)
    mask[20:40, 30:60] = 1
    mask = at_tile(mask, sky)
    across = {}
    for draw in (draw_truth, draw_mask):
        row = draw(sky, mask, several=False)[75]  # through the left border
        line = [tuple(pixel) for pixel in row[:100].tolist() if tuple(pixel) != (170, 170, 170)]
        across[draw] = line
        assert line[0] == line[-1] and len(set(line)) == 2
    assert across[draw_truth].count(TRUTH_COLOUR) == 3 and len(across[draw_truth]) == 5
    assert len(across[draw_mask]) == 4
    assert sum(across[draw_truth][0]) < 3 * 60 and sum(across[draw_mask][0]) > 3 * 200  # dark, and light
