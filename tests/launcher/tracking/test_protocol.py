"""A tracker of somebody else's needs to know nothing of ours; mypy reads this file too (setup.cfg)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import launcher.training.run
from launcher.config.whole import Config
from launcher.tracking.protocol import NoTracker, Tracker
from launcher.tracking.sink import Sink
from launcher.tracking.sinks import SINKS, make_sink
from launcher.tracking.tracker import RunTracker


class Notes:
    """Keeps in lists what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []
        self.images: list[tuple[int, str]] = []
        self.ended: list[str | None] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.lines.append((step, metrics))

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.images.append((step, name))

    def artifact(self, path: Path) -> None: ...

    def model(self, path: Path, name: str, alias: str) -> None: ...

    def tell(self, **about: Any) -> None: ...

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        self.ended.append(status)
        return True


TRACKERS: list[type[Tracker]] = [Notes, NoTracker, RunTracker]  # for mypy
PLACES: list[Sink] = [make_sink(name) for name in SINKS]


def test_trainer_and_validator_need_no_more_than_the_protocol(
    in_tmp: Path, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setattr(launcher.training.run, "begin_run", lambda *_: notes)
    launcher.training.run.train(tiny_config("classify"))
    assert [step for step, metrics in notes.lines if "train/loss" in metrics] == [2, 4]
    assert [step for step, metrics in notes.lines if "val/average_precision" in metrics] == [4]
    assert notes.images == [(0, "gallery"), (4, "gallery")] and notes.ended == ["FINISHED"]
