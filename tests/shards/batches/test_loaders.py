import json
import shutil

import numpy as np
import pytest
import torch

from shards.batches import loaders
from shards.batches.augment import Augment, Squash, View, Whole, resize, resize_mask
from shards.batches.batch import collate, present_classes
from shards.batches.loaders import eval_loader, train_loader, view_of
from shards.batches.order import Slice, StepSampler, epoch_order
from shards.folder import ShardFolder
from shards.image_bytes import encode_mask
from shards.masks import MaskFolder
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.write import write_split, write_tar

AUGMENT = Augment(size=16, min_crop=0.5)


def take(loader, batches):
    iterator = iter(loader)
    return [next(iterator) for _ in range(batches)]


def global_batches(shards, steps, *, ranks, workers, accumulate=1, first_step=0, seed=3, size=8):
    """The samples of each step, put together from all ranks in the order of the contract."""
    per_rank = []
    for rank in range(ranks):
        part = Slice(rank=rank, ranks=ranks, global_batch_size=size, accumulate=accumulate)
        loader = train_loader(shards, AUGMENT, seed=seed, part=part, workers=workers, first_step=first_step)
        per_rank.append(take(loader, steps * accumulate))
    batches = []
    for step in range(steps):
        parts = [per_rank[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(ranks)]
        keys = [key for part in parts for key in part["key"]]
        batches.append((keys, torch.cat([part["image"] for part in parts])))
    return batches


@pytest.fixture(scope="module")
def train(scenes):
    return ShardFolder(scenes / "train", "label")


@pytest.fixture(scope="module")
def reference(train):
    return global_batches(train, 8, ranks=1, workers=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_samples_of_a_step_do_not_depend_on_ranks_and_workers(train, reference, ranks, workers):
    batches = global_batches(train, 8, ranks=ranks, workers=workers)
    assert [keys for keys, _ in batches] == [keys for keys, _ in reference]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(batches, reference, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_three_ranks_share_a_batch_of_nine(train, workers):
    one = global_batches(train, 6, ranks=1, workers=0, size=9)
    three = global_batches(train, 6, ranks=3, workers=workers, size=9)
    assert [keys for keys, _ in three] == [keys for keys, _ in one]


def test_micro_batches_hold_the_samples_of_the_whole_batch(train, reference):
    batches = global_batches(train, 4, ranks=2, workers=0, accumulate=2)
    assert [keys for keys, _ in batches] == [keys for keys, _ in reference[:4]]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_needs_one_integer(train, reference, workers):
    resumed = global_batches(train, 3, ranks=2, workers=workers, first_step=5)
    assert [keys for keys, _ in resumed] == [keys for keys, _ in reference[5:]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(resumed, reference[5:], strict=True))


def test_each_epoch_holds_every_sample_once_in_a_new_order(train, reference):
    keys = [key for batch, _ in reference for key in batch]  # 64 positions of 48 samples
    assert sorted(keys[:48]) == sorted(train.keys)
    assert keys[48:] != keys[:16]
    sizes = [5, 4, 4, 4, 4, 4]
    orders = [epoch_order(sizes, seed=0, epoch=epoch, window=2) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(25)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert epoch_order(sizes, seed=1, epoch=0).tolist() != epoch_order(sizes, seed=0, epoch=0).tolist()


def test_only_a_window_of_shards_is_read_at_a_time():
    order = epoch_order([10] * 12, seed=0, epoch=0, window=3)
    for first in range(0, 120, 30):
        assert len(set(order[first : first + 30] // 10)) == 3


def test_a_batch_larger_than_the_data_goes_on_into_the_next_epoch():
    part = Slice(rank=0, ranks=1, global_batch_size=7)
    sampler = iter(StepSampler([2, 3], seed=0, part=part))
    places = next(sampler) + next(sampler)
    assert [epoch for epoch, _ in places] == [0] * 5 + [1] * 5 + [2] * 4
    assert sorted(number for epoch, number in places if epoch == 1) == [0, 1, 2, 3, 4]


def test_augmentation_is_keyed_by_seed_epoch_and_sample(train):
    def view(seed, first_step):
        part = Slice(rank=0, ranks=1, global_batch_size=48)
        batch = take(train_loader(train, AUGMENT, seed=seed, part=part, workers=0, first_step=first_step), 1)[0]
        return dict(zip(batch["key"], batch["image"], strict=True))

    first, again, next_epoch, other_seed = view(0, 0), view(0, 0), view(0, 1), view(1, 0)
    key = train.keys[0]
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], next_epoch[key])
    assert not torch.equal(first[key], other_seed[key])


def test_a_batch_has_the_contracts_parts(train, reference):
    part = Slice(rank=0, ranks=1, global_batch_size=4)
    batch = take(train_loader(train, AUGMENT, seed=3, part=part, workers=0), 1)[0]
    assert batch["key"] == reference[0][0][:4]
    assert batch["image"].shape == (4, 3, 16, 16) and batch["image"].dtype == torch.uint8
    assert batch["image_label"].shape == (4, 1) and batch["image_label"].dtype == torch.float32
    assert batch["box"].tolist() == [[0, 16, 0, 16]] * 4
    assert batch["image_label"].flatten().tolist() == [
        train.image_label_NK[train.keys.index(key), 0] for key in batch["key"]
    ]


@pytest.mark.parametrize(("method", "processes"), [("forkserver", 2), ("spawn", 0)])
def test_evaluation_starts_no_processes_that_take_seconds(scenes, method, processes, monkeypatch):
    monkeypatch.setattr(loaders, "METHOD", method)
    loader = eval_loader(ShardFolder(scenes / "val"), Squash(size=16), batch_size=2, numbers=range(8), workers=2)
    assert loader.num_workers == processes


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_sample_once_over_all_ranks(scenes, workers):
    val = ShardFolder(scenes / "val", "pixel")
    seen = []
    for rank in range(3):
        numbers = range(rank, len(val), 3)
        loader = eval_loader(val, Squash(size=16), batch_size=4, numbers=numbers, workers=workers)
        seen += [number for batch in loader for number in batch["number"]]
    assert sorted(seen) == list(range(24))


def test_no_batch_of_an_evaluation_crosses_a_shard(scenes):
    """What is computed of a shard must not depend on which others are still to do."""
    val = ShardFolder(scenes / "val", "pixel")
    loader = eval_loader(val, Squash(size=16), batch_size=16, numbers=range(24), workers=0)
    batches = [batch["number"] for batch in loader]
    assert all(len({val.shard_of[number] for number in numbers}) == 1 for numbers in batches)
    assert [number for numbers in batches for number in numbers] == list(range(24))


def test_masks_and_regions_are_read_from_pixel_shards_only(scenes, train):
    val = ShardFolder(scenes / "val", "pixel")
    shown = [n for n in range(len(val)) if val.mask(n).any()]
    assert shown == [n for n in range(len(val)) if val.image_label_NK[n, 0] and val.mask(n).any()]
    assert any(val.regions(n)["chimney"] for n in range(len(val)))
    with pytest.raises(DataError, match="these shards are label-only"):
        train.mask(0)
    assert train.regions(0) == {}
    with pytest.raises(DataError, match="supervision is 'pixel', wanted 'label'"):
        ShardFolder(scenes / "val", "label")


def test_a_shard_cut_short_is_told_before_the_first_step(scenes, tmp_path):
    folder = shutil.copytree(scenes / "train", tmp_path / "train")
    path = folder / "train-00002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-00002.tar: \d+ bytes, the index says \d+ bytes"):
        ShardFolder(folder)
    path.unlink()
    with pytest.raises(DataError, match="train-00002.tar: missing"):
        ShardFolder(folder)


def test_an_image_that_does_not_decode_is_named(scenes, tmp_path):
    folder = shutil.copytree(scenes / "train", tmp_path / "train")
    content = json.loads((folder / "index.json").read_text())
    offset, size = content["shards"][0]["members"]["jpg"][0]
    path = folder / content["shards"][0]["name"]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    shards = ShardFolder(folder)
    with pytest.raises(DataError, match=f"{path.name}: sample '{shards.keys[0]}': image does not decode"):
        shards.image(0)


def test_more_readers_than_shards_are_told(train):
    part = Slice(rank=0, ranks=4, global_batch_size=8)
    with pytest.raises(DataError, match="12 shards in .* cannot feed 4 ranks x 4 workers = 16 readers: .*--shards 64"):
        train_loader(train, AUGMENT, seed=0, part=part, workers=4)


def test_a_batch_that_does_not_divide_is_told():
    with pytest.raises(DataError, match="global batch size 10 does not divide into 2 ranks x 3 micro-batches"):
        Slice(rank=0, ranks=2, global_batch_size=10, accumulate=3)
    with pytest.raises(DataError, match="global batch size 8 does not divide into 4 ranks x 4 micro-batches"):
        Slice(rank=0, ranks=4, global_batch_size=8, accumulate=4)


def test_open_files_stay_bounded(tmp_path):
    from shards.folder import OPEN_FILES
    from shards.sources.synthetic import Synthetic

    source = Synthetic(split="train", num_images=OPEN_FILES + 5, size=32)
    write_split(source, tmp_path, "train", "label", num_shards=OPEN_FILES + 5)
    shards = ShardFolder(tmp_path / "train")
    for number in range(len(shards)):
        shards.image(number)
    assert len(shards._files) == OPEN_FILES


def test_squash_and_augment_by_hand():
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    image[:, 8:] = 200
    rng = np.random.default_rng(0)
    mask = image[..., 0] // 200
    squashed, box, mask_squashed, more = Squash(size=8)(image, mask_HW=mask)
    assert squashed.shape == (8, 8, 3) and box == (0, 8, 0, 8) and not more
    assert squashed[0, 0, 0] == 0 and squashed[0, -1, 0] == 200
    always, _, mask_always, _ = Augment(size=8, flip=1.0)(image, rng, mask)
    never, _, mask_never, _ = Augment(size=8, flip=0.0)(image, rng)
    assert np.array_equal(never, squashed) and np.array_equal(always, squashed[:, ::-1]) and mask_never is None
    assert mask_squashed[0].tolist() == [0] * 4 + [1] * 4 and mask_always[0].tolist() == [1] * 4 + [0] * 4
    untouched, whole, same, _ = Whole()(image, mask_HW=mask)
    assert untouched is image and same is mask and whole == (0, 8, 0, 16)
    part = resize_mask(np.arange(16, dtype=np.uint8).reshape(4, 4), (4, 4), (2, 0, 4, 2))  # as large as it was
    assert part.tolist() == [[2, 2, 3, 3]] * 2 + [[6, 6, 7, 7]] * 2
    right = resize(image, (8, 16), (8, 0, 16, 8))  # its first column lies at 8.25, between pixels at 7.5 and 8.5
    assert right[0, :, 0].tolist() == [150, *[200] * 15] and resize(image, (8, 16)) is image


class Drawn:
    """A generator that gives these: share_y, share_x, at_y, at_x, coin."""

    def __init__(self, *values):
        self.random = lambda count: values[:count]


def test_a_crop_by_hand():
    """Of 16 x 32 pixels 12 x 16 from (4, 8) on: cells of 3 x 4, whose middles lie in rows 5, 8 .. and columns 10 .."""
    rows, columns = (numbers.astype(np.uint8) for numbers in np.indices((16, 32)))
    image = 5 * np.stack([rows, columns, columns], axis=-1)
    for coin, turned in ((0.5, 1), (0.49, -1)):  # flip is 0.5
        augment = Augment(size=4, min_crop=0.5)
        for ids, wanted in ((rows, [[row] * 4 for row in (5, 8, 11, 14)]), (columns, [[10, 14, 18, 22][::turned]] * 4)):
            assert augment(image, Drawn(0.5, 0.0, 1.0, 0.5, coin), ids).mask_SS.tolist() == wanted
        view = augment(image, Drawn(0.5, 0.0, 1.0, 0.5, coin)).image_SS3
        assert view[1:3, 0, 0].tolist() == [40, 55] and view[0, 1:3, 1].tolist() == [68, 88][::turned]  # 13.5, 17.5
    whole = Augment(size=4, flip=0.0)(image, Drawn(0.5, 0.5, 0.5, 0.5, 0.0), columns).mask_SS
    assert whole.tolist() == [[4, 12, 20, 28]] * 4


def test_a_view_of_one_pixel_may_be_flipped(train):
    sample = view_of(
        train, 0, Augment(size=1, flip=1.0), np.random.default_rng(0), lambda _: np.ones((32, 32), np.uint8)
    )
    assert sample["image"].shape == (3, 1, 1) and sample["mask"].tolist() == [[1]]


def test_a_mask_goes_through_the_same_crop_and_flip_as_its_image():
    rng = np.random.default_rng(3)
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[5:30, 20:50] = 255
    for _ in range(5):
        view, _, mask, _ = Augment(size=32, min_crop=0.5)(image, rng, (image[..., 0] > 0).astype(np.uint8))
        assert (mask == (view[..., 0] > 127)).mean() > 0.97 and 0 < mask.mean() < 1


def test_masks_of_a_job_are_read_beside_label_only_shards(scenes, train, tmp_path):
    ids = (0, 1, 255)
    masks = {number: np.full((32, 32), ids[number % 3], dtype=np.uint8) for number in range(len(train))}
    for shard in train.index.shards:
        numbers = train.numbers_of(shard.name)
        write_tar(tmp_path / shard.name, ((train.keys[n], {"png": encode_mask(masks[n])}) for n in numbers))
    mask_of = MaskFolder(tmp_path, train)
    assert all(np.array_equal(mask_of(n), masks[n]) for n in masks)
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    batch = next(iter(train_loader(train, Squash(size=16), seed=0, part=part, workers=0, mask_of=mask_of)))
    assert batch["mask"].shape == (8, 16, 16)
    assert batch["mask"][:, 0, 0].tolist() == [ids[number % 3] for number in batch["number"]]


def test_mask_shards_that_are_missing_or_of_other_images_are_told(train, tmp_path):
    with pytest.raises(DataError, match="12 of 12 mask shards are missing, first train-00000.tar; write them with"):
        MaskFolder(tmp_path, train)
    for shard in train.index.shards:
        write_tar(tmp_path / shard.name, [("other", {"png": encode_mask(np.zeros((2, 2), dtype=np.uint8))})])
    with pytest.raises(DataError, match=f"holds 'other' where the images have '{train.keys[0]}': it belongs to other"):
        MaskFolder(tmp_path, train)(0)


def test_a_mask_with_an_id_that_is_no_class_is_refused_by_name(train, tmp_path):
    for shard in train.index.shards:
        mask = encode_mask(np.full((2, 2), 2, dtype=np.uint8))
        write_tar(tmp_path / shard.name, [(train.keys[n], {"png": mask}) for n in train.numbers_of(shard.name)])
    with pytest.raises(DataError, match=rf"sample '{train.keys[0]}': mask holds class ids \[2\]; wanted 0"):
        MaskFolder(tmp_path, train)(0)


def test_training_from_labels_refuses_shards_with_masks_unless_masks_are_asked_for(scenes):
    val = ShardFolder(scenes / "val")
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    with pytest.raises(DataError, match="holds masks .* reads label-only shards"):
        train_loader(val, AUGMENT, seed=0, part=part, workers=0)
    batch = next(iter(train_loader(val, AUGMENT, seed=0, part=part, workers=0, mask_of=val.mask)))
    assert batch["mask"].shape == (8, 16, 16)


def test_a_class_that_no_image_shows_is_refused_unless_it_may_lack(tmp_path):
    clear = Synthetic(split="clear", num_images=2, size=32, smoke_rate=0.0)
    write_split(clear, tmp_path, "clear", "label", num_shards=1, may_lack_classes=True)
    shards, part = ShardFolder(tmp_path / "clear"), Slice(rank=0, ranks=1, global_batch_size=2)
    with pytest.raises(DataError, match="clear: no image is labelled smoke among 2"):
        train_loader(shards, AUGMENT, seed=0, part=part, workers=0)
    (batch,) = take(train_loader(shards, AUGMENT, seed=0, part=part, workers=0, may_lack_classes=True), 1)
    assert batch["image_label"].tolist() == [[0.0], [0.0]]


def test_present_classes_by_hand():
    image_label = torch.tensor([[0.0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0]])
    present = present_classes(image_label)
    assert present.tolist() == [[1, 3, -1], [-1, -1, -1], [0, 1, 3], [2, -1, -1]]
    assert present.dtype == torch.int64
    assert present_classes(torch.zeros(2, 4)).tolist() == [[-1], [-1]]


def test_present_classes_say_the_same_as_the_image_label():
    image_label = (torch.rand(50, 20) > 0.9).float()
    present = present_classes(image_label)
    back = torch.zeros(50, 21).scatter_(1, present % 21, 1.0)  # -1 goes to column 20
    assert torch.equal(back[:, :20], image_label) and present.shape[1] == image_label.sum(dim=1).max()


def test_a_batch_names_the_classes_of_its_images(train):
    part = Slice(rank=0, ranks=1, global_batch_size=8)
    batch = take(train_loader(train, AUGMENT, seed=0, part=part, workers=0), 1)[0]
    assert batch["present"].tolist() == [[0] if shown else [-1] for shown in batch["image_label"][:, 0]]
    assert {0, -1} == set(batch["present"].flatten().tolist())


def also(**more):
    """A transform that gives further arrays."""
    return lambda image, rng, mask=None: View(image, (0, 32, 0, 32), None, more)


def test_what_a_transform_gives_beside_the_view_joins_the_batch(train):
    transform = also(colour=np.arange(3, dtype=np.float32), mirrored=np.array(True))
    samples = [view_of(train, number, transform, np.random.default_rng(0)) for number in (0, 1)]
    batch = collate(samples)
    assert torch.equal(batch["colour"], torch.tensor([[0.0, 1, 2]] * 2))
    assert torch.equal(batch["mirrored"], torch.tensor([True, True]))


def test_a_transform_cannot_replace_what_every_sample_has(train):
    with pytest.raises(DataError, match="gives 'box', a name that every sample already has"):
        view_of(train, 0, also(box=np.zeros(4)), np.random.default_rng(0))
