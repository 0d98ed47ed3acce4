"""data.max_skipped: a damaged sample is replaced by its neighbour; nothing else changes, and everybody is told."""

import json
import shutil

import pytest
import torch

from launcher.errors import RunError, report_user_errors
from launcher.processes.signals import Stopped
from launcher.training import skips
from launcher.training.run import train
from shards.batches.augment import Augment
from shards.batches.loaders import train_loader
from shards.batches.order import Slice, epoch_order
from shards.folder import ShardFolder
from shards.index import Index
from shards.schema import DataError, SampleError

pytestmark = pytest.mark.timeout(300)


def garbage(folder, numbers):
    """Overwrite the images of these samples with zeros."""
    shards = ShardFolder(folder)
    for number in numbers:
        shard = shards.index.shards[shards.shard_of[number]]
        offset, size = shard.members["jpg"][shards.row_of[number]]
        with (folder / shard.name).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))
    return [shards.keys[number] for number in numbers]


@pytest.fixture
def damaged(scenes, tmp_path):
    """(folder, damaged numbers, their keys): two neighbours, and the last sample, whose neighbour is the first."""
    folder, numbers = shutil.copytree(scenes / "train", tmp_path / "train"), [4, 5, 47]
    return folder, numbers, garbage(folder, numbers)


def batches(folder, max_skipped, *, ranks=1, workers=0, first_step=0, steps=6):
    """(keys, images, skipped) of each step of 8, put together from all ranks."""
    parts = []
    for rank in range(ranks):
        part = Slice(rank=rank, ranks=ranks, global_batch_size=8)
        loader = train_loader(
            ShardFolder(folder), Augment(size=16), seed=3, part=part, workers=workers, first_step=first_step,
            max_skipped=max_skipped,
        )  # fmt: skip
        parts.append([batch for batch, _ in zip(loader, range(steps), strict=False)])
    return [
        (
            [key for batch in of_step for key in batch["key"]],
            torch.cat([batch["image"] for batch in of_step]),
            [skip for batch in of_step for skip in batch.get("skipped", [None] * len(batch["key"]))],
        )
        for of_step in zip(*parts, strict=True)
    ]


def test_without_a_budget_the_first_damaged_sample_ends_the_run(damaged):
    with pytest.raises(SampleError, match=r"train-0000\d.tar: sample '.*': image does not decode"):
        batches(damaged[0], 0)


def test_a_budget_that_is_too_small_ends_the_run_with_the_list(damaged):
    folder, _, keys = damaged
    with pytest.raises(SampleError, match="3 damaged samples, data.max_skipped allows 2:") as told:
        batches(folder, 2)
    assert all(f"'{key}'" in str(told.value) for key in keys)
    garbage(folder, range(48))
    with pytest.raises(DataError, match="train: all samples are damaged"):
        batches(folder, 48, steps=1)


def test_a_damaged_sample_is_replaced_by_its_neighbour_and_all_others_stay(damaged, scenes):
    folder, numbers, keys = damaged
    names, replaced = ShardFolder(folder).keys, 0
    for (want, wanted_images, _), (got, images, skipped) in zip(
        batches(scenes / "train", 0), batches(folder, 3), strict=True
    ):
        for place, key in enumerate(want):
            if key in keys:
                neighbour = {4: 6, 5: 6, 47: 0}[numbers[keys.index(key)]]
                assert got[place] == names[neighbour]
                assert (skipped[place]["key"], skipped[place]["replaced_by"]) == (key, names[neighbour])
                assert f"'{key}': image does not decode" in skipped[place]["why"]
                replaced += 1
            else:
                assert (got[place], skipped[place]) == (key, None)
                assert torch.equal(images[place], wanted_images[place])
    assert replaced == 3


@pytest.mark.parametrize(("ranks", "workers", "first_step"), [(2, 0, 0), (4, 0, 2), (1, 2, 1)])
def test_replacements_do_not_depend_on_ranks_workers_or_restarts(damaged, ranks, workers, first_step):
    folder = damaged[0]
    one = batches(folder, 3)[first_step:]
    other = batches(folder, 3, ranks=ranks, workers=workers, first_step=first_step, steps=6 - first_step)
    for (keys, images, skipped), (keys_2, images_2, skipped_2) in zip(one, other, strict=True):
        assert (keys, skipped) == (keys_2, skipped_2) and torch.equal(images, images_2)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_list_reaches_the_user_from_loader_processes_too(damaged, workers, capsys):
    with pytest.raises(SystemExit), report_user_errors():
        batches(damaged[0], 1, workers=workers)
    said = capsys.readouterr().err
    assert said.startswith("error: 2 damaged samples, data.max_skipped allows 1:") and "Traceback" not in said
    assert sum(f"'{key}'" in said for key in damaged[2]) == 2


@pytest.fixture
def damaged_config(scenes, in_tmp, tiny_config):
    """A run of four steps of 8 that meets two damaged samples, in steps 1 and 4."""
    folder = shutil.copytree(scenes / "train", in_tmp / "train")
    order = epoch_order([len(shard.keys) for shard in Index.load(folder).shards], seed=0, epoch=0)
    keys = garbage(folder, [int(order[2]), int(order[30])])
    return keys, lambda limit, steps=4: tiny_config(
        "classify", f"data.train={folder}", f"data.max_skipped={limit}", f"train.steps={steps}", "data.val=null",
        "data.tune=null", "train.log_every=1",
    )  # fmt: skip


def test_the_log_and_the_last_message_say_how_many_and_a_resumed_run_goes_on_counting(damaged_config, capsys):
    keys, config = damaged_config
    train(config(2, steps=2))
    assert "1 damaged samples were replaced by their neighbours; runs/teacher/skipped.jsonl" in capsys.readouterr().out
    shutil.move("runs/teacher", "runs/before")
    train(config(2))
    said = capsys.readouterr().out
    assert "2 damaged samples were replaced by their neighbours" in said and all(f"'{key}'" in said for key in keys)
    assert said.count("damaged samples replaced:") == 2  # at each step that brought a new one
    run = skips.Path("runs/teacher")
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/skipped_samples"] for line in figures if "train/loss" in line] == [1, 1, 1, 2]
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in listed] == [1, 4]
    assert [line["key"] for line in listed] == keys == list(skips.read_skipped(run))


def test_what_was_replaced_since_the_last_log_is_counted_before_a_checkpoint(damaged_config, monkeypatch):
    """The next start does not meet it again."""
    keys, config = damaged_config
    config = config(2).model_copy(update={"train": config(2).train.model_copy(update={"log_every": 4})})
    monkeypatch.setattr("launcher.training.trainer.Trainer.must_stop", lambda self: True)
    for _ in range(3):
        with pytest.raises(Stopped):
            train(config)
    train(config)
    assert list(skips.read_skipped(skips.Path("runs/teacher"))) == keys


class OneOfTwo:
    is_main_process = True


def test_the_budget_holds_over_all_ranks(tmp_path, monkeypatch):
    a, b, c = ({"key": key, "replaced_by": "d", "why": f"{key} is damaged"} for key in "abc")
    other_rank = [[b], [b, c]]
    monkeypatch.setattr(skips, "gather_object", lambda mine: mine + other_rank.pop(0))
    counted = skips.Skips(tmp_path, 2, OneOfTwo())
    counted.collect({"skipped": [None, a]})
    assert counted.count(1) == {"train/skipped_samples": 2.0}
    with pytest.raises(
        RunError, match=r"3 damaged samples by step 2, data.max_skipped allows 2; .*\n  a .*\n  b .*\n  c"
    ):
        counted.count(2)
    assert len(skips.Skips(tmp_path, 9, OneOfTwo()).known) == 3  # the next start knows them


def test_without_a_budget_ranks_do_not_even_ask_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(skips, "gather_object", None)
    assert skips.Skips(tmp_path, 0, OneOfTwo()).count(1) == {}
