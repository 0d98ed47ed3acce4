"""What the place where a command runs may say, and what it must not: cores, variables, files in the working folder."""

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]  # where our packages lie
PACKAGES = ("launcher", "shards", "wsss")
CGROUPS = Path("/sys/fs/cgroup")


def count_cores() -> int:
    """Cores that this process may use: those that the scheduler bound it to, and no more than the quota of its
    control group, as containers and Slurm set it; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(Path("/proc/self/cgroup"), CGROUPS))))


def cpu_quota(membership: Path, mounted: Path) -> float:
    """CPUs' worth of time that the control groups of this process leave it, inf where none sets a limit.

    Args:
        membership: /proc/self/cgroup, lines ID:CONTROLLERS:PATH.
        mounted: where the groups of version 2 lie, and a folder for each controller of version 1.
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
    """Bytes of memory that this process may still take: of the machine, and of its control groups."""
    import psutil

    return min(psutil.virtual_memory().available, memory_left(Path("/proc/self/cgroup"), CGROUPS))


def require_batch(option: str, images: int, side: float) -> None:
    """Raise ConfigError if so many images of side x side px, as float32, have more bytes than are free here: what a
    network computes of them is more.

    Args:
        option: of the config, with its value, that says how many these are.
    """
    wanted, free = 12 * images * side**2, free_memory()
    if wanted > free:
        raise ConfigError(
            f"{option}: {images:,} images of {side:.0f} x {side:.0f} px at a time take {wanted / 1e9:,.1f} GB before a "
            f"network computes anything, and {free / 1e9:,.1f} GB are free here: lower it, or the size of the images"
        )


def memory_left(membership: Path, mounted: Path) -> float:
    """Bytes that the control groups of this process leave it, inf where none sets a limit. Files that the kernel keeps
    in memory count for a group, and are given up when it needs room.

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
    """The folders of the control groups that this process is in, and of those above them; of version 1 or not."""
    for line in read_text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controllers if controllers else mounted
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:  # a container sees its own group as the root
            yield folder, bool(controllers)
            if folder == root:
                break


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def without_accelerate(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without Accelerate's own variables, of which some change gradients in silence: the config says
    what they would."""
    return {name: value for name, value in environment.items() if not name.startswith("ACCELERATE_")}


def find_ours() -> dict[str, str]:
    """The environment in which `python -m` finds our packages, and nothing of the working folder before them.

    Raises:
        ConfigError: Python 3.10, which knows no safe path, and a file that it would run instead.
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
    """What in a folder has the name of one of our packages, and is another."""
    found = [path for name in PACKAGES for path in (folder / f"{name}.py", folder / name / "__init__.py")]
    return [path for path in found if path.is_file() and path.resolve().parents[1] != ROOT]


def require_ours() -> None:
    """Raise ConfigError if a package of one of our names is another's, which Python finds before ours: `launcher` and
    `shards` are names that others have on the registry too."""
    for name in PACKAGES:
        found = find_spec(name)
        place = Path(found.origin).resolve() if found is not None and found.origin else None
        if place is None or place.parents[1] != ROOT:
            raise ConfigError(
                f"{place or name}: another package called '{name}' was found instead of ours; install wsss into an "
                "environment of its own (python -m venv), or uninstall that one and install wsss again"
            )


def user_name() -> str:
    """The user's name, or the number of one that has none, as in containers that run as a number."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
