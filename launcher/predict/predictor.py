"""The entry point from Python: `wsss.load(path).predict(image)`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from launcher.errors import ConfigError
from launcher.predict.defaults import settle
from launcher.predict.masks import Prediction, predict_frame
from launcher.predict.model import Model, load_model
from launcher.predict.settings import Settings, Wishes, look_as
from launcher.predict.sources import read_image
from launcher.predict.views import ONE_AT_A_TIME
from shards.image_bytes import decode_image, header_of
from shards.pixels import upright


@dataclass(frozen=True, repr=False)
class Predictor:
    """A trained network and how its maps become masks. Threads may share it; their images go through the network one
    after another."""

    model: Model
    settings: Settings

    def __repr__(self) -> str:
        what = f"{self.model.place} ({self.model.checkpoint}), classes {', '.join(self.classes)}"
        return "\n".join([what, *self.settings.describe()])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.class_set.classes

    def predict(self, image: np.ndarray | Image.Image | str | Path) -> Prediction:
        """The mask of one image.

        Args:
            image: (H, W, 3) uint8 RGB, a picture or a file.

        Raises:
            ValueError: anything else, such as a list, an array of another shape or type, or an image without pixels; a
                file or picture that cannot be read, is damaged, or has a mode that RGB cannot show.
        """
        image_HW3 = array_of(image)
        (looked,) = look_as(self.settings, self.model, [image_HW3])
        return predict_frame(image_HW3, looked, self.settings, self.classes, self.model.config.segment)


def array_of(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        where = getattr(image, "filename", "") or "picture"
        image = upright(decode_image(image, where), header_of(image, where)[1])
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image is a {type(image).__name__}; wanted one picture, file or (H, W, 3) uint8 RGB array: for several, "
            "call predict for each, or use `wsss predict`"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image is {image.shape} {image.dtype}; wanted (H, W, 3) uint8 RGB with at least one pixel")
    return image


def load(path: str | Path, *, device: str = "auto", **options: Any) -> Predictor:
    """A run, or a file of `wsss export`, as a Predictor.

    Args:
        device: `auto`, `cpu` or `cuda`.
        options: of launcher.predict.settings.Wishes: kind, threshold, gate, view, scale, refine, ignore. Defaults are
            those of `wsss predict`.

    Raises:
        RunError: there is no model.
        ConfigError: an option that does not fit the model.
    """
    known = [field.name for field in fields(Wishes)]
    if unknown := sorted({*options} - {*known}):
        raise ConfigError(f"{unknown[0]}: wsss.load has no such option; there are {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):  # a network is built with random weights before its own are loaded
        model = load_model(Path(path), device)
    with ONE_AT_A_TIME:  # this tries what the network gives, while other threads may be predicting
        settings = settle(model, Wishes(**options), clips=False)
    return Predictor(model, settings)
