"""A whole run whose shards are remote, refined by several processes: masks and figures of the same run on a disk."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.store import Store

from launcher.evaluation.evaluate import evaluate
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.training.preflight import preflight
from launcher.training.run import train
from shards.remote import join

pytestmark = pytest.mark.timeout(300)


def run_through(config, folder):
    """Train, CAMs, masks, figures; returns the losses, the digests of the masks and the report."""
    run = Path("runs/teacher")
    preflight(config)
    train(config)
    for split in ("val", "tune"):
        infer(run, split, join(folder, split))
    masks = refine(run, ["val", "tune"], config.refine)
    digests = {
        path.relative_to(run): hashlib.sha256(path.read_bytes()).hexdigest()
        for out in masks
        for path in out.glob("*.tar")
    }
    losses = [json.loads(line).get("train/loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    report = evaluate(run)
    shutil.rmtree("runs")
    return losses, digests, report["sources"]


def test_a_run_from_urls_and_over_processes_gives_masks_and_figures_of_the_same_run_from_a_disk(
    in_tmp, scenes, tiny_config, monkeypatch
):
    monkeypatch.setenv("WSSS_CACHE", str(in_tmp / "cache"))
    store = Store(scenes)
    results = []
    for workers, folder in ((1, scenes), (2, store.url)):
        places = [f"data.{split}={folder}/{split}" for split in ("train", "val", "tune")]
        settings = ["train.steps=2", f"data.workers={workers - 1}", f"refine.workers={workers}"]
        results.append(run_through(tiny_config("classify", *places, *settings), folder))
    store.stop()
    assert results[0] == results[1] and len(results[0][1]) == 24
    asked = store.shards_asked()
    assert len(asked) == len(set(asked)) == 36  # every shard once, whoever read it
