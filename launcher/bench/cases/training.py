"""Whole trainings: images per second with the loader, cost of a checkpoint, time to stop, options that other cases
leave out, and NCCL."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn

from launcher.bench.stage import Found, Stage
from launcher.training.gradients import SharedGradient
from launcher.training.graph import Gradient

CONFIG = """
name: bench/{name}
data: {{train: data/train, image_size: {px}, global_batch_size: 4, scale: [0.5, 2.0], flip: 0.5, workers: {workers}}}
model: {model}
method: {method}
train: {{steps: {steps}, log_every: {log_every}, precision: bf16, graph: true}}
cam: {{kinds: [class_map]}}
launch: {{processes: 1, device: {device}}}
tracking: {{to: []}}
"""
MSEE = "{{name: toco, timm_name: {vit}}}", "{{name: msee, seg_from: 0, crop_px: {crop_px}}}"
FROZEN = "{{name: frozen, timm_name: {vit}}}", "{{name: frozen, seg_from: 0, agree_from: 0}}"

FEATURES = {
    "msee": (MSEE, []),
    "msee, fp16": (MSEE, ["train.precision=fp16"]),
    "msee, average": (MSEE, ["train.ema_decay=0.999"]),
    "msee, accumulate 2": (MSEE, ["train.accumulate=2"]),
    "msee, checkpointing": (MSEE, ["model.checkpointing=true"]),
    "frozen": (FROZEN, []),
    "frozen, average, fp16": (FROZEN, ["train.ema_decay=0.999", "train.precision=fp16"]),
}


def training(stage: Stage) -> Found:
    """`wsss train` of M-SEE on synthetic photographs: images/s by loader workers, seconds of a save, seconds from
    SIGTERM to the end of the process, and whether the run continues."""
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, stage)
        for workers in (1,) if stage.smoke else (2, 4, 8):
            config = write_config(folder, stage, f"workers{workers}", MSEE, stage.size(150, 4), workers)
            wsss(folder, "train", str(config))
            last = read_metrics(folder, config.stem, "train/images_per_s")[-1]
            save_s = read_metrics(folder, config.stem, "train/save_s")[-1]
            found[f"{workers} workers"] = {"images_s": round(last, 1), "save_s": round(save_s, 2)}
        steps = stage.size(400, 24)
        config = write_config(folder, stage, "stopped", MSEE, steps, stage.size(4, 1))
        found["SIGTERM"] = stop_and_go_on(folder, config, steps)
    return found


def features(stage: Stage) -> Found:
    """`wsss train` for a few steps with each of FEATURES: images/s, the first and the last loss of a log window, and
    whether the run takes more steps when it is asked to."""
    found = Found()
    steps = stage.size(100, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, stage)
        for number, (what, (method, overrides)) in enumerate(FEATURES.items()):
            config = write_config(folder, stage, f"feature{number}", method, steps, stage.size(4, 1))
            try:
                wsss(folder, "train", str(config), *overrides)
                speed, losses = (
                    read_metrics(folder, config.stem, f"train/{metric}") for metric in ("images_per_s", "loss")
                )
                row = {"images_s": round(speed[-1], 1), "first": round(losses[0], 4), "last": round(losses[-1], 4)}
                wsss(folder, "train", f"runs/bench/{config.stem}", "--extend", str(steps * 3 // 2))
                found[what] = {**row, "went_on": read_metrics(folder, config.stem, "train/loss")[len(losses) :] != []}
            except RuntimeError as error:  # an option that fails on a new GPU must not prevent the others
                found[what] = {"error": str(error)[-400:]}
    return found


def make_shards(folder: Path, stage: Stage) -> None:
    """Synthetic photographs in FOLDER/data/train."""
    sides = ["--images", str(stage.size(512, 64)), "--size", str(stage.size(500, 64)), "--shards", "64"]
    wsss(folder, "shards", "synthetic", "--out", "data", "--split", "train", *sides)


def write_config(folder: Path, stage: Stage, name: str, method: tuple[str, str], steps: int, workers: int) -> Path:
    """FOLDER/NAME.yaml, the config of the run bench/NAME."""
    px = stage.size(448, 64)
    content = {"vit": stage.vit, "crop_px": px * 96 // 448 // 16 * 16 or 16}
    model, options = (part.format(**content) for part in method)
    whole = {"name": name, "px": px, "model": model, "method": options, "steps": steps, "workers": workers}
    whole |= {"log_every": stage.size(50, 2), "device": stage.device.type}
    (folder / f"{name}.yaml").write_text(CONFIG.format(**whole))
    return folder / f"{name}.yaml"


def wsss(folder: Path, *arguments: str) -> str:
    """Run a `wsss` command in a separate folder; returns its output."""
    done = subprocess.run(command_line(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wsss {arguments[0]}: code {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return done.stdout


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *arguments]


def environment() -> dict[str, str]:
    """The environment in which Python finds this tree first, wherever the command runs."""
    here = str(Path(__file__).parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}


def read_metrics(folder: Path, run: int | str, name: str) -> list[float]:
    """The values that a run of this case logged under a name, in order."""
    path = folder / "runs/bench" / str(run) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line[name] for line in lines if name in line]


def stop_and_go_on(folder: Path, config: Path, steps: int) -> Found:
    """Send SIGTERM to a run that has logged once; then run the same command again to its end."""
    arguments = ["train", str(config)]
    with (folder / "stopped.log").open("w") as log:
        process = subprocess.Popen(command_line(*arguments), cwd=folder, env=environment(), stdout=log, stderr=log)
        until = time.monotonic() + 120
        while not read_metrics(folder, "stopped", "train/images_per_s") and time.monotonic() < until:
            time.sleep(0.1)
        asked = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    found = {"stopped_s": round(time.perf_counter() - asked, 2), "code": code}
    saved = sorted((folder / "runs/bench/stopped").glob("step_*"))
    wsss(folder, *arguments)
    ended = (folder / f"runs/bench/stopped/step_{steps:07d}").is_dir()
    return {**found, "saved_step": int(saved[-1].name.removeprefix("step_")), "went_on_to_the_end": ended}


def recorded_steps(stage: Stage) -> Found:
    """A step recorded within a process group, its gradient averaged after each replay, as on several GPUs: the largest
    difference to the gradient of the plain step, and the time of both."""
    method, batch = stage.method("msee", 2, stage.size(224, 64))
    shared = SharedGradient([p for p in method.parameters() if p.requires_grad])
    found, wholes = Found(), []
    for name in ("plain", "recorded") if stage.cuda else ("plain",):
        run = stage.gradient(method, "bf16", graph=name == "recorded")

        def update(run: Gradient = run) -> None:
            shared.whole.zero_()
            run(batch, 10)
            shared.average()

        found[f"{name} step"] = stage.clock(update, 8, 6)
        wholes.append(shared.whole.clone())
    return {**found, "largest difference": (wholes[0] - wholes[-1]).abs().max().item()}


def one_rank(stage: Stage) -> Found:
    """A group of one process with NCCL and gloo: DDP, SyncBatchNorm, sums on device and host, objects."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if stage.cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            if stage.cuda:
                net = convert_sync_batchnorm(net)
            wrapped = nn.parallel.DistributedDataParallel(net.to(stage.device), gradient_as_bucket_view=True)
            wrapped(torch.rand(2, 3, 16, 16, device=stage.device)).sum().backward()
            found = Found(ddp=all(p.grad is not None for p in net.parameters()))
            for device in {stage.device, torch.device("cpu")}:
                for dtype in (torch.float32, torch.float64, torch.int64):
                    value = torch.ones(3, dtype=dtype, device=device)
                    dist.all_reduce(value)
                    found[f"{device.type} {dtype}".replace("torch.", "")] = value.tolist() == [1, 1, 1]
            objects: list = [None]
            dist.all_gather_object(objects, {"a": 1})
            found["objects"] = objects == [{"a": 1}]
            vote = torch.zeros(1)
            found["vote"] = stage.clock(lambda: dist.all_reduce(vote))
            return found | recorded_steps(stage)
        finally:
            dist.destroy_process_group()
