"""Whole trainings: images per second with the loader, what a checkpoint costs, how soon a run stops, and NCCL."""

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

MSEE = """
name: bench/msee
data: {{train: {data}, image_size: {px}, global_batch_size: 4, scale: [0.5, 2.0], flip: 0.5, workers: {workers}}}
model: {{name: toco, timm_name: {vit}}}
method: {{name: msee, seg_from: 0, crop_px: {crop_px}}}
train: {{steps: {steps}, log_every: {log_every}, precision: bf16, graph: true}}
cam: {{kinds: [class_map]}}
launch: {{processes: 1, device: {device}}}
tracking: {{to: []}}
"""


def training(stage: Stage) -> Found:
    """`wsss train` of M-SEE on synthetic photographs: images/s by loader workers, seconds of a save, seconds from
    SIGTERM to the end of the process, and whether the run continues."""
    found = Found()
    px = stage.size(448, 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = ["--images", str(stage.size(512, 64)), "--size", str(stage.size(500, 64)), "--shards", "64"]
        wsss(folder, "shards", "synthetic", "--out", str(folder / "data"), "--split", "train", *sides)
        config = folder / "msee.yaml"
        content = {"data": folder / "data/train", "vit": stage.vit, "device": stage.device.type, "px": px}
        content |= {"crop_px": px * 96 // 448 // 16 * 16 or 16, "log_every": stage.size(50, 2)}
        for workers in (1,) if stage.smoke else (2, 4, 8):
            steps = stage.size(150, 4)
            config.write_text(MSEE.format(**content, steps=steps, workers=workers))
            wsss(folder, "train", str(config), f"name=bench/{workers}")
            last = read_metrics(folder, workers, "train/images_per_s")[-1]
            save_s = read_metrics(folder, workers, "train/save_s")[-1]
            found[f"{workers} workers"] = {"images_s": round(last, 1), "save_s": round(save_s, 2)}
        steps = stage.size(400, 24)
        config.write_text(MSEE.format(**content, steps=steps, workers=stage.size(4, 1)))
        found["SIGTERM"] = stop_and_go_on(folder, config, steps)
    return found


def wsss(folder: Path, *arguments: str) -> str:
    """Run a command of ours in a folder of its own; its output."""
    done = subprocess.run(command_line(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wsss {arguments[0]}: code {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return done.stdout


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *arguments]


def environment() -> dict[str, str]:
    """This tree first, wherever the command runs."""
    here = str(Path(__file__).parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}


def read_metrics(folder: Path, run: int | str, name: str) -> list[float]:
    """What a run of this case logged under a name, in order."""
    path = folder / "runs/bench" / str(run) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line[name] for line in lines if name in line]


def stop_and_go_on(folder: Path, config: Path, steps: int) -> Found:
    """SIGTERM to a run that has logged once; then the same command again, to its end."""
    arguments = ["train", str(config), "name=bench/stopped"]
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


def one_rank(stage: Stage) -> Found:
    """A group of one process with NCCL beside gloo: DDP, SyncBatchNorm, sums on device and host, objects."""
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
            return found
        finally:
            dist.destroy_process_group()
