"""What is kept of each image of COCO's 40,137 with 80 classes, so that an evaluation fits any machine."""

import pickle
import tracemalloc

import numpy as np

from launcher.evaluation.confusion import Confusion, Sums
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import LabelPrediction
from shards.schema import ClassSet

COCO = ClassSet(name="many", classes=tuple(f"c{n}" for n in range(80)))


class Guess(LabelPrediction):
    @property
    def probs(self):
        return tuple(np.linspace(0, 1, 80).tolist())


def part_of(shard, images=40):
    """A shard's measure: each image shows two classes, and two are predicted."""
    measure, rng = Confusion(COCO), np.random.default_rng(shard)
    for n in range(images):
        truth, guess = (rng.choice([0, *rng.integers(1, 81, 2)], size=(6, 6)).astype(np.uint8) for _ in range(2))
        key = f"{shard}-{n}"
        measure.add(Guess(guess), Truth(key, key, truth, {}, True, tuple(k in truth for k in range(1, 81))))
    return measure


def test_sums_without_their_zeros_are_what_was_counted():
    sums, more = Sums(5), Sums(5)
    rows = [np.random.default_rng(n).integers(0, 3, (3, 5)) * 10**10 for n in range(6)]
    for row in rows[:2]:
        sums.append(row)
    for row in rows[2:]:
        more.append(row)
    sums.extend(more)
    assert len(sums) == 6 and all((found == row).all() for found, row in zip(sums, rows, strict=True))


def test_what_is_kept_of_an_image_is_about_a_kilobyte_and_as_much_on_its_way():
    sent = pickle.dumps(part_of(0))
    tracemalloc.start()
    whole = Confusion(COCO)
    for _ in range(50):
        whole.extend(pickle.loads(sent))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    matrix = whole.confusion_CC.numpy().nbytes
    assert len(whole.sums) == 2000 and kept / 2000 < 1500 and (len(sent) - matrix) / 40 < 1500
    assert whole.figures_at(0.3)["images"] == 2000
