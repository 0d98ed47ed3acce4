"""What installed packages offer stands beside ours, and what is wrong with one of them harms no other."""

import sys

import pytest
from support.packages import install

from wsss.methods import METHODS
from wsss.metrics.base import METRICS
from wsss.models import MODELS
from wsss.refine import REFINERS, check_options, takes_cue

METHOD = "from wsss.methods.classify import Classify\nclass Mine(Classify): pass\n"


def test_a_package_is_imported_when_its_name_is_read_and_not_before(tmp_path, monkeypatch):
    assert "mine" not in METHODS
    install(monkeypatch, tmp_path, "others", {"wsss.methods": "mine = others_a:Mine"}, {"others_a": METHOD})
    assert "mine" in METHODS and "mine" in list(METHODS) and len(METHODS) == len(list(METHODS))
    assert "others_a" not in sys.modules
    assert METHODS["mine"].__name__ == "Mine"


def test_models_and_refiners_of_packages_are_found_too(tmp_path, monkeypatch):
    source = (
        "def net(num_classes, *, width: int = 3): ...\ndef plain(image, scores): ...\ndef cued(image, s, cue): ...\n"
    )
    offers = {"wsss.models": "net = others_b:net", "wsss.refiners": "plain = others_b:plain\ncued = others_b:cued"}
    install(monkeypatch, tmp_path, "others", offers, {"others_b": source})
    assert MODELS["net"].__name__ == "net"
    assert REFINERS["plain"].__name__ == "plain"
    assert takes_cue("cued") and not takes_cue("plain")


def test_a_packages_refiner_refuses_options_like_ours(tmp_path, monkeypatch):
    source = (
        "def plain(image, scores, *, radius: int = 3): ...\n"
        "def check(*, radius):\n    if radius < 1: raise ValueError(f'radius is {radius}')\n"
        "plain.check = check\n"
        "def lenient(image, scores, *, radius: int = 3): ...\n"
    )
    offers = {"wsss.refiners": "plain = others_r:plain\nlenient = others_r:lenient"}
    install(monkeypatch, tmp_path, "others", offers, {"others_r": source})
    with pytest.raises(ValueError, match="radius is 0"):
        check_options("plain", {"radius": 0})
    check_options("plain", {"radius": 1})
    check_options("lenient", {"radius": 0})
    with pytest.raises(ValueError, match="wanted above 0"):
        check_options("crf", {"gamma": 0.0, "by": None, "iterations": 1})


def test_a_package_that_cannot_be_imported_is_told_when_its_name_is_read_and_harms_no_other(tmp_path, monkeypatch):
    offers = {
        "wsss.methods": "bad = others_c:Mine\ngone = others_none:Mine\nlacks = others_d:Other\nmine = others_d:Mine"
    }
    install(monkeypatch, tmp_path, "others", offers, {"others_c": "1 / 0", "others_d": METHOD})
    assert METHODS["toco"] and METHODS["mine"]
    for name, reason in (("bad", "ZeroDivisionError"), ("gone", "others_none"), ("lacks", "Other")):
        with pytest.raises(ValueError, match=f"wsss.methods: '{name}' of package 'others' 0.1 .* cannot be .*{reason}"):
            METHODS[name]


def test_what_is_of_the_wrong_kind_is_told(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "others", {"wsss.methods": "number = math:pi", "wsss.models": "number = math:pi"})
    with pytest.raises(ValueError, match=r"'number' of package 'others' 0.1 \(math:pi\) is 3.14.*wanted a subclass of"):
        METHODS["number"]
    with pytest.raises(ValueError, match="wanted a function"):
        MODELS["number"]


def test_a_metric_that_is_not_whole_is_told(tmp_path, monkeypatch):
    source = (
        "from wsss.metrics.base import Metric\nclass Half(Metric):\n    meaning = 'x'\n    def compute(self): ...\n"
    )
    install(monkeypatch, tmp_path, "others", {"wsss.metrics": "h = others_m:Half\nn = math:pi"}, {"others_m": source})
    with pytest.raises(ValueError, match=r"'h' of package 'others' .* \(Half\) lacks heading, merge, update"):
        METRICS["h"]
    with pytest.raises(ValueError, match="wanted a subclass of Metric"):
        METRICS["n"]


def test_a_name_that_two_offer_is_refused_with_both(tmp_path, monkeypatch):
    install(
        monkeypatch,
        tmp_path,
        "first",
        {"wsss.methods": "toco = others_e:Mine\nnew = others_e:Mine"},
        {"others_e": METHOD},
    )
    install(monkeypatch, tmp_path, "second", {"wsss.methods": "new = others_e:Mine"})
    find = METHODS.__getitem__
    with pytest.raises(ValueError, match=r"'toco' is offered by wsss itself and by package 'first' 0.1"):
        find("toco")
    with pytest.raises(ValueError, match="'new' is offered by package 'first' 0.1 .* and by package 'second' 0.1"):
        find("new")
    assert find("msee")


def test_a_name_that_nobody_offers_is_a_key_error():
    with pytest.raises(KeyError):
        METHODS["none such"]
