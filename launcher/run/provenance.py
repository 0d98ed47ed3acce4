"""Where a run came from: code, packages, data, machine."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from shards.folder import ShardFolder
from wsss import __version__, registry

PACKAGES = ("torch", "timm", "accelerate", "deepspeed", "webdataset", "mlflow", "pydensecrf2", "segment-anything")


def collect_provenance(shards: ShardFolder, learns_from: dict[str, str], processes: int) -> dict[str, Any]:
    """What run.json holds: where this run came from.

    Args:
        learns_from: see Inputs.learns_from.
    """
    return {
        "class_set": shards.index.class_set,
        "classes": shards.index.classes,
        "dataset_fingerprint": shards.index.fingerprint,
        "learns_from": learns_from,
        "processes": processes,
        "git_commit": git_commit(),
        "command": command_of(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {"wsss": __version__} | versions_of(PACKAGES) | registry.list_packages(),
        "machine": f"{platform.machine()}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}",
    }


def command_of(argv: Sequence[str]) -> str:
    """As a user types it: a training was started as `wsss train`, whatever file of this machine is first of argv."""
    of_training = Path(argv[0]).parts[-2:] == ("launcher", "train.py")
    return shlex.join(["wsss", "train", *argv[1:]] if of_training else argv)


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str:
    """Commit of the code that runs, with '+changes' if files differ from it; 'unknown' outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
