"""An evaluation as the terminal shows it, line by line, and as rows of a report."""

from launcher.evaluation.formats import FEW_GROUPS_NOTE
from launcher.evaluation.rows import collect_notes, tabulate_run
from launcher.evaluation.table import format_evaluation, tabulate_classes

OF_CAM = {
    "fixed": {
        **{"threshold": 0.3, "per_image_iou": 0.25, "per_image_iou_interval": [0.2, 0.3], "per_image_iou_groups": 8},
        **{"pooled_iou": 0.5, "false_alarm_area": 0.97},
    },
    "tuned": {
        **{"threshold": 0.42, "per_image_iou": 0.5, "per_image_iou_interval": [0.4, 0.6], "per_image_iou_groups": 8},
        **{"pooled_iou": 0.6, "false_alarm_area": None},
    },
    **{"protocol": "split val", "untuned": "", "chain": []},
    **{"best_on_val": {"threshold": 0.4, "per_image_iou": 0.55}, "oracle_per_image_iou": 0.75},
}
OF_MASKS = {
    "fixed": {"miou": 0.4, "miou_interval": [0.35, 0.45], "miou_groups": 30, "pixel_accuracy": 0.9},
    **{"tuned": None, "protocol": "argmax", "untuned": "", "chain": []},
}
REPORT = {
    "run": "smoke/student",
    "dataset": {"images": 24, "images_without_truth": 0, "folder": "data/val", "classes": ["smoke"]},
    "sources": {"cam": OF_CAM, "segments": OF_MASKS},
    "headline": {"source": "cam", "choice": "tuned"},
    "classification": {"average_precision": 0.9},
    "gate": {"tuned": 0.37, "tuned_on": "data/tune", "class_f1": 0.8},
    "tune": {"folder": "data/tune", "images_shown": 19},
}
FEW = (
    "tuned values rest on only 19 images of data/tune that show a class; with fewer than 20 they are chance, so the "
    "fixed threshold is used, also in `wsss predict`: hold out more"
)


def test_the_terminal_shows_the_headlines_source_and_what_its_metrics_are_worth():
    assert format_evaluation(REPORT).splitlines() == [
        "smoke/student: 24 images of data/val, metrics in percent",
        "  cam                  threshold 0.30 (fixed)   per-image IoU 25.00 [20.00, 30.00] of 8 groups, "
        "false-alarm area 97.00",
        "* cam                  threshold 0.42 (tuned)   per-image IoU 50.00 [40.00, 60.00] of 8 groups, "
        "false-alarm area – (no image without smoke)",
        "    split val",
        "  1 more with --all, and in evaluation.json: segments",
        "  image labels: average precision 90.0 %",
        "  class F1 80.0 % at a gate of 0.37, chosen on the labels of data/tune",
        f"  {FEW}",
        f"  {FEW_GROUPS_NOTE}",
    ]
    masks = {**REPORT, "sources": {"segments": OF_MASKS}, "headline": {"source": "segments", "choice": "fixed"}}
    assert format_evaluation({**masks, "gate": None}).splitlines()[1:] == [  # nothing was tuned, and groups are enough
        "* segments             label maps               mIoU 40.00 [35.00, 45.00]",
        "    argmax",
        "  image labels: average precision 90.0 %",
    ]
    assert FEW in format_evaluation(masks)  # a gate was


def test_a_report_has_a_row_for_each_threshold_and_marks_that_of_the_headline():
    rows = tabulate_run(REPORT, REPORT["headline"], "smoke")
    names = ("source", "choice", "threshold", "interval", "degenerate", "is_headline")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("cam", "fixed", "0.30 fixed", "[20.0, 30.0] of 8 groups", "smoke is predicted nearly everywhere", False),
        ("cam", "tuned", "0.42 tuned", "[40.0, 60.0] of 8 groups", "", True),
        ("segments", "fixed", "–", "[35.0, 45.0]", "", False),
    ]
    assert {name: figure["text"] for name, figure in rows[1]["figures"].items()} == {
        **{"per_image_iou": "50.0", "pooled_iou": "60.0", "false_alarm_area": "–"},
        **{"best_on_val": "55.0", "oracle_per_image_iou": "75.0"},
    }
    fixed = tabulate_run(REPORT, {"source": "segments", "choice": "fixed"}, "smoke")
    assert [row["is_headline"] for row in fixed] == [False, False, True]
    assert collect_notes(REPORT, "smoke") == [FEW, FEW_GROUPS_NOTE]
    assert collect_notes({**REPORT, "sources": {"segments": OF_MASKS}, "gate": None}, "smoke") == []


def test_the_iou_of_a_class_is_that_at_the_tuned_threshold_and_the_background_has_no_label():
    at = {
        choice: {"class_iou": {"background": 0.9, "cat": iou, "dog": 0.1}}
        for choice, iou in (("fixed", 0.2), ("tuned", 0.3))
    }
    about = {name: {"average_precision": 0.5, "f1": 0.25, "images": 6} for name in ("cat", "dog")}
    evaluation = {"dataset": {"classes": ["cat", "dog"]}, "sources": {"cam": at}, "labels": {"classes": about}}
    assert tabulate_classes(evaluation) == {
        "headings": ["IoU cam", "AP", "F1", "images"],
        "rows": [
            ("background", ["90.0", "–", "–", "–"]),
            ("cat", ["30.0", "50.0", "25.0", "6"]),
            ("dog", ["10.0", "50.0", "25.0", "6"]),
        ],
    }
    assert tabulate_classes({**evaluation, "sources": {}, "labels": {}}) is None
