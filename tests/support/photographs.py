"""Photographs of different sizes with red cats and blue dogs, and a network that knows the colours."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from launcher.jobs import network_job
from launcher.run import build, folder
from launcher.run.build import Trained
from launcher.run.steps import MODEL
from shards.image_bytes import encode_image
from shards.schema import ClassSet, Sample
from wsss.methods.base import Method
from wsss.models.base import Network, Outputs

PETS = ClassSet(name="pets", classes=("cat", "dog"))
SIZES = ((40, 61), (33, 30), (56, 37), (24, 24))


class Photographs:
    """A red rectangle is a cat, a blue one a dog; some images show both, some none."""

    class_set = PETS

    def __init__(self, split="val", images=8, *, with_masks=True, with_labels=True, classes=PETS.classes):
        self.split, self.images, self.with_masks, self.with_labels = split, images, with_masks, with_labels
        self.class_set = ClassSet(name="pets", classes=tuple(classes))

    def __len__(self):
        return self.images

    def groups(self):
        return [self.key(n) for n in range(self.images)]

    def key(self, n):
        return f"{2007 + len(self.split)}_{n:06d}"  # as VOC names its images

    def __getitem__(self, n):
        rng = np.random.default_rng((n, len(self.split)))
        height, width = SIZES[n % len(SIZES)]
        image = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), dtype=np.uint8)
        label = [(1,), (2,), (1, 2), ()][n % 4]
        for class_id in label:
            x = 1 + (class_id - 1) * width // 2
            mask[4 : height - 6, x : x + width // 2 - 2] = class_id
            image[mask == class_id] = (220, 30, 30) if class_id == 1 else (30, 30, 220)
        mask[:1] = 255 if self.with_masks else 0
        return Sample(
            key=self.key(n),
            image=encode_image(image),
            image_label=label if self.with_labels else (),
            group=self.key(n),
            source="photographs",
            mask=mask if self.with_masks else None,
        )


class Colours(Network):
    """Segments by colour on patches of 8 px; K >= 2, further classes are never seen. Keeps the images it was given."""

    def __init__(self, num_classes=2, aux=True):
        super().__init__(feature_dim=3, stride=8, num_classes=num_classes, mean=(0, 0, 0), std=(1, 1, 1))
        self.num_classes, self.aux = num_classes, aux
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        rgb = F.avg_pool2d(image, 8)
        red, blue = rgb[:, 0] - rgb[:, 1], rgb[:, 2] - rgb[:, 1]
        score = torch.stack([red, blue, *[torch.full_like(red, -1.0)] * (self.num_classes - 2)], dim=1)
        seg_logits = 12 * torch.cat([torch.full_like(red, 0.3)[:, None], score], dim=1)
        class_map = 6 * (score - 0.2)
        maps = {"aux_map": score - 0.4} if self.aux else {}
        return Outputs(class_map.amax(dim=(2, 3)), rgb, class_map, (), maps, seg_logits)


class Segmenting(Method):
    """A method that is judged by its segmentation."""

    segments = True

    def __init__(self, student=None):
        super().__init__()
        self.student = student or Colours()


def stand_in_for_a_run(job, monkeypatch, config_of, class_set, method) -> None:
    """A job reads, instead of a trained run, this method with the config that `config_of(overrides)` gives."""

    def run(path, overrides=()):
        found = SimpleNamespace(folder=path, config=config_of(overrides), class_set=class_set)
        found.at = lambda checkpoint: found
        return found

    for place in (job, folder):  # in the command, and in who does its work
        monkeypatch.setattr(place, "Run", run)
    state = {"sha256": {MODEL: "0"}, "ema_decay": None}
    monkeypatch.setattr(network_job, "read_state", lambda checkpoint: state)
    for place in (job, build):
        monkeypatch.setattr(place, "load_trained", lambda of: Trained(of, method, Path("step_0000004")))
