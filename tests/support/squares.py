"""Two classes that a network learns in seconds: red and blue squares."""

import numpy as np

from shards.image_bytes import encode_image
from shards.schema import ClassSet, Sample

PETS = ClassSet(name="pets", classes=("cat", "dog"))


class Squares:
    """Red squares are cats, blue squares dogs; some images show both, some none."""

    class_set = PETS

    def __init__(self, split, images, with_masks):
        self.split, self.images, self.with_masks = split, images, with_masks

    def __len__(self):
        return self.images

    def groups(self):
        return [f"{self.split}{n}" for n in range(self.images)]

    def __getitem__(self, n):
        rng = np.random.default_rng((n, len(self.split)))
        image = rng.integers(90, 110, (32, 32, 3)).astype(np.uint8)
        mask = np.zeros((32, 32), dtype=np.uint8)
        label = [(), (1,), (2,), (1, 2)][n % 4]
        for class_id in label:
            y, x = rng.integers(0, 20), (class_id - 1) * 16
            mask[y : y + 10, x + 2 : x + 12] = class_id
            image[mask == class_id] = (220, 30, 30) if class_id == 1 else (30, 30, 220)
        return Sample(
            key=f"{self.split}{n}",
            image=encode_image(image),
            image_label=label,
            group=f"{self.split}{n}",
            source="squares",
            mask=mask if self.with_masks else None,
        )
