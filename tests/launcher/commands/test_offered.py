"""Commands for the cues and sources that installed packages offer."""

import pytest
from support.packages import install
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.jobs.cues import find_cue
from shards.index import Index

SOURCE = '''
from pathlib import Path
from shards.sources.synthetic import Synthetic

def scenes(*, split: str, masks: bool, images: int, side: int = 32):
    """Scenes of others."""
    return Synthetic(split=split, num_images=images, size=side, cooccurrence=0.5, with_masks=masks)

def clashes(*, split: str, masks: bool, out: str): ...
'''
CUE = '''
from dataclasses import dataclass
from launcher.jobs.cues.cue import Cue

@dataclass(frozen=True, kw_only=True)
class Mine(Cue):
    """Cues of others."""
    extension = "mine"
    example = "--size 3"
    size: int = 3
    images_at_a_time = 1
    def identify(self, classes): return {"size": self.size}
    def start(self, device, classes): return lambda images: [str(self.size)] * len(images)
    encode = staticmethod(str.encode)
    decode = staticmethod(bytes.decode)
'''


def wsss(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def offered(tmp_path, monkeypatch):
    offers = {
        "wsss.sources": "scenes = of_others:scenes\nclashes = of_others:clashes\nvoc12 = of_others:f\nbad = gone:x",
        "wsss.cues": "mine = cue_of_others:Mine\nbad = gone:Cue",
        "wsss.methods": "bad = gone:Method",
    }
    install(monkeypatch, tmp_path / "site", "others", offers, {"of_others": SOURCE, "cue_of_others": CUE})


def test_a_source_of_a_package_is_a_command_that_writes_a_split(offered, tmp_path):
    done = wsss("shards", "scenes", "--images", 8, "--out", tmp_path, "--split", "val", "--masks", "--workers", 1)
    assert done.exit_code == 0, done.output
    index = Index.load(tmp_path / "val")
    assert (index.num_samples, index.supervision) == (8, "pixel")
    assert "no such option" in wsss("shards", "scenes", "--imagse", 8).output.lower()


def test_cues_of_a_package_are_a_command_and_are_read_again(offered, scenes, tmp_path, monkeypatch):
    from launcher.jobs.cues.shards import read_cues
    from shards.folder import ShardFolder

    done = wsss("cues", "mine", scenes / "tune", "--size", 5, "--out", tmp_path / "cues")
    assert done.exit_code == 0, done.output
    images = ShardFolder(scenes / "tune")
    name = images.index.shards[0].name
    assert {*read_cues(images, tmp_path / "cues/tune", name)} == {"5"}


def test_help_lists_what_is_offered_and_says_what_is_not_usable(offered):
    for group, name in (("shards", "scenes"), ("cues", "mine")):
        said = " ".join(wsss(group, "--help").output.split())
        assert f"{name} " in said and "of others" in said
        assert "Not usable" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["shards", "bad", "--x", "1"],
            "wsss.sources: 'bad' of package 'others' 0.1 .* cannot be imported: .*'import gone'",
        ),
        (["cues", "bad"], "wsss.cues: 'bad' of package 'others' 0.1 .* cannot be imported"),
        (["shards", "voc12", "--root", "x"], "wsss.sources: 'voc12' is offered by wsss itself and by package 'others'"),
        (["shards", "clashes", "--out", "x"], "wsss.sources: 'clashes' takes split, masks, out; wanted"),
    ],
)
def test_what_cannot_run_says_why(offered, words, said):
    error = wsss(*words).exception
    with pytest.raises(ConfigError, match=said):
        raise error


def test_a_config_that_names_a_broken_package_is_refused_with_its_name(offered, tiny_yaml):
    with pytest.raises(ConfigError, match=r"wsss.methods: 'bad' of package 'others' 0.1 \(gone:Method\) cannot be"):
        load_config(tiny_yaml("classify"), ["method.name=bad"])
    with pytest.raises(ConfigError, match=r"wsss.cues: 'bad' of package 'others' 0.1 \(gone:Cue\) cannot be"):
        find_cue("bad")
