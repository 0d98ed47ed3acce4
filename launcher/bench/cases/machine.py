"""The GPU itself, and its peak rates."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from launcher.bench.stage import PRECISIONS, Found, Stage
from launcher.processes.precision import in_precision

PACKAGES = ("timm", "accelerate", "triton", "deepspeed", "webdataset")
SHM = "/dev/shm"  # which a Mac has not
ASKED = "name,driver_version,memory.total,clocks.max.sm,power.limit,mig.mode.current,ecc.mode.current"


def machine(stage: Stage) -> Found:
    """Card, driver, versions, cores, shared memory."""
    found: Found = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "shm_gib": round(shutil.disk_usage(SHM).free / 2**30, 1) if os.path.isdir(SHM) else None,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if stage.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        if shutil.which("nvidia-smi"):
            ask = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
            found["card"] = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    return found


def ceilings(stage: Stage) -> Found:
    """Peak rates of products, copies and launches."""
    side, found = stage.size(8192, 256), Found()
    for precision in PRECISIONS:
        x = torch.randn(side, side, device=stage.device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        with in_precision(precision, stage.device.type):
            found[f"{precision}_tflops"] = round(2 * side**3 / stage.clock(lambda x=x: x @ x, 6)["ms"] / 1e9, 1)  # type: ignore[misc]
    x = torch.empty(stage.size(2**30, 2**20), dtype=torch.uint8, device=stage.device)
    y = torch.empty_like(x)
    found["copy_tb_s"] = round(2 * x.numel() / stage.clock(lambda: y.copy_(x))["ms"] / 1e9, 2)
    host = torch.empty(2**25, dtype=torch.uint8, pin_memory=stage.cuda)
    to_device = stage.clock(lambda: host.to(stage.device, non_blocking=True))["ms"]
    found["pinned_gb_s"] = round(host.numel() / to_device / 1e6, 1) if stage.cuda else None
    small = torch.zeros(16, device=stage.device)
    found["launch_us"] = round(stage.clock(lambda: [small.add_(1) for _ in range(200)])["host_ms"] * 5, 2)
    return found
