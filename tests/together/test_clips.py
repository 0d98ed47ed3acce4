"""Clips from the command to a trained student: numbered frames, batches of pairs, a loss over time, resumed."""

import hashlib

import pytest
from support.tiny import write_tiny_yaml
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.files import RUNS
from launcher.plan.estimate import least_accumulate
from launcher.plan.step import build_without_values
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from launcher.training.trainer import Trainer
from shards.folder import ShardFolder
from shards.schema import ClassSet, DataError, Frame
from shards.sources.drifting import Drifting
from shards.write import write_split

TIME = ("data.train=clips/train", "data.pairs=2", "method.time_weight=0.5", "method.still=0.1", "train.steps=4")
LIGHT = ("data.val=null", "data.tune=null", "tracking.to=[]")


@pytest.fixture
def clips(in_tmp, scenes, finished_runs):
    """Overrides -> the config of a student that learns from clips in the working folder."""
    write_split(Drifting(split="train", num_images=24, size=32, frames=6), in_tmp / "clips", "train", "label")
    yaml = write_tiny_yaml(in_tmp, scenes, "distill")
    return lambda *overrides: load_config(
        yaml, [f"teacher={finished_runs / 'runs/teacher'}", *TIME, *LIGHT, *overrides]
    )


def digest(method):
    state = method.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_a_student_learns_over_time_and_resumes_bit_equal(clips, monkeypatch):
    whole = digest(train(clips("name=whole")))
    losses = [line["train/time_loss"] for line in read_metrics(RUNS / "whole") if "train/time_loss" in line]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)

    plain_step = Trainer.train_step

    def cut_off(self, batches):
        if self.step == 3:
            raise KeyboardInterrupt
        plain_step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(clips("name=cut"))
    assert digest(train(clips("name=cut"))) == whole
    for wrong, error, message in (
        ("data.pairs=null", ConfigError, "compares neighbouring frames: wanted data.pairs"),
        ("train.accumulate=8", ConfigError, "1 images at a time, which do not form pairs"),
        ("data.train=scenes/train", DataError, "scenes/train: no shards here"),
    ):
        with pytest.raises(error, match=message):
            train(clips("name=wrong", wrong))


def test_pairs_that_contradict_other_settings_are_refused(tmp_path, scenes):
    yaml = write_tiny_yaml(tmp_path, scenes, "distill")
    with pytest.raises(ConfigError, match="a damaged frame would be replaced by a frame of another clip"):
        load_config(yaml, ["data.pairs=2", "data.max_skipped=1"])
    with pytest.raises(ConfigError, match="shuffle_teacher: with data.pairs the next image is from the same clip"):
        load_config(yaml, ["data.pairs=2", "method.shuffle_teacher=true"])
    paired, single = load_config(yaml, ["data.pairs=2"]), load_config(yaml, [])
    method = build_without_values(single, ClassSet(name="smoke", classes=("smoke",)))
    assert least_accumulate(paired, method, 1, 1) is None  # one image at a time is no pair
    assert least_accumulate(single, method, 1, 1) == 8


def test_drawn_clips_and_numbered_frames_come_from_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def wsss(*arguments):
        done = CliRunner().invoke(app, ["shards", *map(str, arguments), "--workers", "1"], catch_exceptions=True)
        return done.exception if isinstance(done.exception, DataError) else done

    drawn = ("synthetic", "--out", "d", "--split", "train", "--images", 12, "--size", 32, "--clip-frames", 6)
    assert wsss(*drawn).exit_code == 0
    shards = ShardFolder(tmp_path / "d/train")
    assert shards.frames[shards.number_of_key["train-clip00001-f05"]] == Frame("train-clip00001", 5)
    (tmp_path / "frames").mkdir()
    for number in range(4):
        (tmp_path / f"frames/{number}.jpg").write_bytes(shards.read(number, "jpg"))

    def table(*frames):
        rows = [f"{n}.jpg,{n % 2},{'smoke' if n % 2 else 'background'},v{n // 2},{f}" for n, f in enumerate(frames)]
        (tmp_path / "frames/labels.csv").write_text("\n".join(("image,label,labels,group,at", *rows)))

    given = ("--root", "frames", "--labels", "labels.csv", "--split", "train", "--frame-column", "at")
    table(7, 32, 0, 25)
    for source in ("smoke", "images"):
        assert wsss(source, *given, "--out", source, "--image-folder", "").exit_code == 0
        own = ShardFolder(tmp_path / source / "train")
        assert dict(zip(own.keys, own.frames, strict=True)) == {
            "0": Frame("v0", 7),
            "1": Frame("v0", 32),
            "2": Frame("v1", 0),
            "3": Frame("v1", 25),
        }
    table(7, 7, 0, 25)
    assert "row '1.jpg': frame 7 of 'v0' is already in row '0.jpg'" in str(wsss("smoke", *given, "--out", "e"))
    for wrong in ("late", "1_000", "1.5", 10**20):
        table(7, wrong, 0, 25)
        assert f"'at' is '{wrong}'; wanted the number of the frame" in str(wsss("smoke", *given, "--out", "e"))
    table(7, 8, 0, 25)
    alone = (*given, "--out", "e", "--image-folder", "", "--group-column", "image")
    assert "is a group, and no group has two rows: name the column of the groups" in str(wsss("images", *alone))
