import pytest

from launcher.evaluation.figures import (
    FIGURES,
    find_figure,
    get_figure,
    list_logged_figures,
    order_figures,
    require_known,
)
from launcher.evaluation.formats import DASH, format_interval, format_percent, name_class
from launcher.evaluation.headline import pick_headline
from launcher.evaluation.table import format_classes


def test_a_figure_of_a_region_is_found_by_its_name_and_less_of_it_is_better():
    figure = get_figure("cooling_tower_area")
    assert figure.heading == "cooling tower area" and not figure.higher_is_better and figure.headline
    assert "cooling tower" in figure.meaning.format(one="smoke") and "smoke" in figure.meaning.format(one="smoke")
    assert find_figure("threshold") is None and find_figure("per_image_iou_interval") is None
    with pytest.raises(ValueError, match="there is no metric 'pixel_acuracy'; nearest are pixel_accuracy"):
        get_figure("pixel_acuracy")


def test_figures_keep_the_order_of_the_table_and_regions_follow_the_false_alarms():
    wanted = ["per_image_iou", "false_alarm_area", "false_alarm_area_gated"]
    wanted += ["chimney_area", "mast_area", "tower_area", "oracle_per_image_iou"]
    assert list(order_figures([*reversed(wanted), "images"])) == wanted


def test_the_metrics_that_a_best_checkpoint_may_be_chosen_by_are_logged_and_better_when_high():
    assert list_logged_figures("scores") == ["per_image_iou", "pooled_iou", "precision", "recall"]
    assert list_logged_figures("label maps") == ["miou"]
    assert list_logged_figures("image labels") == ["f1", "average_precision", "class_f1", "accuracy"]


def test_every_meaning_takes_the_name_of_the_class():
    for figure in FIGURES.values():
        assert "{" not in figure.meaning.format(one="fire") + figure.absent.format(one="fire")
        assert "smoke" not in figure.meaning.format(one="fire").replace("the smoke paper", "")


def test_the_class_has_a_name_where_there_is_one():
    assert name_class([["smoke"], ["smoke"]]) == "smoke" and name_class([["forest_fire"]]) == "forest fire"
    assert name_class([["smoke"], ["fire"]]) == name_class([["cat", "dog"]]) == name_class([]) == "the class"


def test_what_does_not_exist_is_a_dash():
    assert format_percent(None) == format_percent(float("nan")) == DASH
    assert format_percent(0.12345) == "12.3" and format_percent(-0.1, digits=2, signed=True) == "-10.00"
    assert format_interval([0.1, 0.25]) == "[10.0, 25.0]" and format_interval(None) == format_interval([None, 1]) == ""
    assert format_interval([float("nan"), 0.2]) == ""


def test_an_interval_of_few_groups_says_how_many_and_one_group_has_none():
    assert format_interval([0.1, 0.25], groups=8) == "[10.0, 25.0] of 8 groups"
    assert format_interval([0.1, 0.25], groups=19).endswith("of 19 groups")
    assert format_interval([0.1, 0.25], groups=20) == format_interval([0.1, 0.25], groups=None) == "[10.0, 25.0]"
    assert format_interval([0.1, 0.1], groups=1) == "(1 group: no interval)"
    assert format_interval([None, None], groups=0) == format_interval(None, groups=8) == ""


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            "val/grad/per_image_iou",
            "where: evaluation gives no metric 'val/grad/per_image_iou'; nearest are val/",
        ),
        ("val/cam/false_alarm_area", "lower is better"),
        ("val/cam/chimney_area", "lower is better"),
        ("nonsense", "nearest are val/cam/per_image_iou, val/cam/recall"),
    ],
)
def test_a_figure_to_keep_the_best_of_must_be_known_and_better_when_high(wanted, said):
    known = ["val/cam/per_image_iou", "val/cam/recall"]
    require_known(known[0], known, "where")
    with pytest.raises(ValueError, match=said):
        require_known(wanted, known, "where")


def test_the_headline_is_the_networks_own_mask_or_the_first_kind_at_the_tuned_threshold():
    tuned, fixed = {"tuned": {"miou": 1}}, {"tuned": None}
    both = {"grad": tuned, "project": tuned}
    for enough in (None, {"images_shown": 20}):  # None: an evaluation that does not say
        assert pick_headline(both, ["project"], enough) == {"source": "project", "choice": "tuned"}
    assert pick_headline(both, ["project"], {"images_shown": 19}) == {"source": "project", "choice": "fixed"}
    for threshold, choice in ((0.0, "fixed"), (0.01, "fixed"), (0.02, "tuned")):  # so low that nothing was found
        at = {"grad": {"tuned": {"threshold": threshold}}}
        assert pick_headline(at, ["grad"], {"images_shown": 20}) == {"source": "grad", "choice": choice}
    assert pick_headline({"grad": fixed, "segments": fixed}, ["grad"], None) == {
        "source": "segments",
        "choice": "fixed",
    }
    assert pick_headline({"grad@ms": fixed}, ["grad"], None) == {"source": "grad@ms", "choice": "fixed"}


def test_of_many_classes_the_weakest_alone_are_shown_and_that_is_said():
    ious = {"background": 0.9, "gone": None, **{f"c{n}": n / 100 for n in range(11)}}

    def shown(names):
        of_names = {name: ious[name] for name in names}
        report = {"dataset": {"classes": names[1:]}, "headline": {"source": "segments"}}
        return format_classes({**report, "sources": {"segments": {"fixed": {"class_iou": of_names}, "tuned": None}}})

    heading, *lines, said = shown([*ious])
    assert heading.split() == ["IoU", "segments"] and said.strip().startswith("(the 10 lowest of 13 classes;")
    assert [line.split() for line in lines] == [[f"c{n}", f"{n}.0"] for n in range(10)]
    assert [line.split()[0] for line in shown([*ious][:10])[1:]] == [*ious][:10]  # ten are all
