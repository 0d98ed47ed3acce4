"""Scenes whose truth lacks something: no smoke at all, masks ignored everywhere, labels that the mask does not show."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shards.index import Index
from shards.schema import Sample
from shards.sources.synthetic import Synthetic
from shards.write import write_split


@dataclass(frozen=True)
class Chosen:
    """Some scenes of a source, some of them ignored everywhere."""

    source: Synthetic
    numbers: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    @property
    def class_set(self):
        return self.source.class_set

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[self.numbers[index]]
        if index not in self.ignored:
            return sample
        return replace(sample, image_label=(), mask=np.full_like(sample.mask, 255))

    def groups(self) -> list[str]:
        groups = self.source.groups()
        return [groups[number] for number in self.numbers]


def write_scenes(out: Path, split: str, *, smoke: int, clear: int, ignored: int = 0, mislabelled: int = 0) -> Path:
    """OUT/SPLIT, 32 px, in two shards: so many scenes with smoke, without, ignored everywhere, and labelled as smoke
    although their mask shows none, in this order."""
    source = Synthetic(split=split, num_images=64, size=32, with_masks=True)
    shown = [number for number in range(64) if source[number].image_label]
    hidden = [number for number in range(64) if not source[number].image_label]
    numbers = shown[:smoke] + hidden[: clear + ignored + mislabelled]
    first = smoke + clear
    write_split(Chosen(source, tuple(numbers), tuple(range(first, first + ignored))), out, split, "pixel", num_shards=2)
    if mislabelled:  # the writer refuses such a sample; shards of others hold some
        index = Index.load(out / split)
        wrong = {source[number].key for number in numbers[first + ignored :]}
        for shard in index.shards:
            for n, key in enumerate(shard.keys):
                if key in wrong:
                    shard.image_labels[n].append(1)
        index.save(out / split)
    return out / split
