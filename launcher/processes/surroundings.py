"""Environment and working folder: what may influence a command (cores, memory), and what not (variables, files)."""

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]  # the folder of our packages
PACKAGES = ("launcher", "shards", "wsss")
CGROUPS = Path("/sys/fs/cgroup")


def count_cores() -> int:
    """Number of cores that this process may use: those that the scheduler bound it to, limited by the quota of its
    control group, which containers and Slurm set; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(Path("/proc/self/cgroup"), CGROUPS))))


def cpu_quota(membership: Path, mounted: Path) -> float:
    """Number of CPUs whose time the control groups of this process allow; inf if none sets a limit.

    Args:
        membership: /proc/self/cgroup, lines ID:CONTROLLERS:PATH.
        mounted: the folder of the groups of version 2, with a folder for each controller of version 1.
    """
    lowest = math.inf
    for folder, is_old in groups_above("cpu", membership, mounted):
        if is_old:
            quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        else:
            quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if quota.strip().isdigit() and period.strip().isdigit():  # else `max` or -1: no limit
            lowest = min(lowest, int(quota) / int(period))
    return lowest


def free_memory() -> float:
    """Bytes of memory that this process may still use, limited by the machine and by its control groups."""
    import psutil

    return min(psutil.virtual_memory().available, memory_left(Path("/proc/self/cgroup"), CGROUPS))


def require_batch(option: str, images: int, side: float) -> None:
    """Raise ConfigError if the float32 images (side x side px) alone take more memory than is free here; a network
    needs more than that.

    Args:
        option: config option, with its value, that sets the number of images.
    """
    wanted, free = 12 * images * side**2, free_memory()
    if wanted > free:
        raise ConfigError(
            f"{option}: {images:,} images of {side:.0f} x {side:.0f} px at a time take {wanted / 1e9:,.1f} GB before a "
            f"network computes anything, and {free / 1e9:,.1f} GB are free here: lower it, or the size of the images"
        )


def memory_left(membership: Path, mounted: Path) -> float:
    """Bytes that the control groups of this process leave it; inf if none sets a limit. Cached files count as used by a
    group, but the kernel drops them when memory is needed, so they are free here.

    Args:
        membership, mounted: see cpu_quota.
    """
    lowest = math.inf
    for folder, is_old in groups_above("memory", membership, mounted):
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_old else ("memory.max", "memory.current")
        limit, taken = (read_text(folder / file).strip() for file in files)
        cached = re.search(r"^inactive_file (\d+)$", read_text(folder / "memory.stat"), re.MULTILINE)
        if limit.isdigit() and taken.isdigit():
            lowest = min(lowest, int(limit) - int(taken) + (int(cached[1]) if cached else 0))
    return lowest


def groups_above(controller: str, membership: Path, mounted: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, whether of version 1) of the control groups of this process and of those above them."""
    for line in read_text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controllers if controllers else mounted
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:  # in a container its own group is the root
            yield folder, bool(controllers)
            if folder == root:
                break


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def without_accelerate(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without Accelerate's own variables, some of which silently change gradients: the config decides
    instead."""
    return {name: value for name, value in environment.items() if not name.startswith("ACCELERATE_")}


def find_ours() -> dict[str, str]:
    """The environment in which `python -m` finds our packages before anything in the working folder.

    Raises:
        ConfigError: Python 3.10, which has no safe path, would run a file of the working folder instead.
    """
    if sys.version_info < (3, 11) and (found := shadows(Path.cwd())):
        raise ConfigError(
            f"{found[0]}: Python {sys.version_info.major}.{sys.version_info.minor} would run it instead of the package "
            "of this name; start from another folder, or use Python 3.11 or newer"
        )
    if ROOT.name in ("site-packages", "dist-packages"):
        return {"PYTHONSAFEPATH": "1"}
    theirs = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and place != str(ROOT)]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *theirs])}


def shadows(folder: Path) -> list[Path]:
    """Entries of a folder with the name of one of our packages that are something else."""
    found = [path for name in PACKAGES for path in (folder / f"{name}.py", folder / name / "__init__.py")]
    return [path for path in found if path.is_file() and path.resolve().parents[1] != ROOT]


def require_ours() -> None:
    """Raise ConfigError if Python finds another package with the name of one of ours: PyPI has other packages called
    `launcher` and `shards`."""
    for name in PACKAGES:
        found = find_spec(name)
        place = Path(found.origin).resolve() if found is not None and found.origin else None
        if place is None or place.parents[1] != ROOT:
            raise ConfigError(
                f"{place or name}: another package called '{name}' was found instead of ours; install wsss into an "
                "environment of its own (python -m venv), or uninstall that one and install wsss again"
            )


def user_name() -> str:
    """The user's name, or the number of a user without a name, as in some containers."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
