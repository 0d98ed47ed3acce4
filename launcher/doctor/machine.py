"""Python, packages, devices, memory, limits and the environment of this machine."""

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from launcher.doctor.finding import Finding
from launcher.processes.precision import half_of
from launcher.processes.surroundings import count_cores, without_accelerate

OLDEST_PYTHON = (3, 10)
SHM_MB, FILES, TMPDIR_LENGTH = 1024, 1024, 75
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def python() -> list[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("fail", "Python", found, f"take {'.'.join(map(str, OLDEST_PYTHON))} or newer")]
    return [Finding("ok", "Python", found)]


def packages() -> list[Finding]:
    """The installed versions of all required packages, compared with their bounds."""
    try:
        wanted = [Requirement(text) for text in requires("wsss") or []]
    except PackageNotFoundError:
        return [Finding("warn", "packages", "wsss is not installed", "pip install -e '.[test]' or make install")]
    wrong = []
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        try:
            has = version(one.name)
        except PackageNotFoundError:
            wrong.append(Finding("fail", f"package {one.name}", "missing", f"pip install '{one.name}{one.specifier}'"))
            continue
        if not one.specifier.contains(has, prereleases=True):
            advice = f"pip install '{one.name}{one.specifier}'"
            wrong.append(Finding("fail", f"package {one.name}", f"{has}, wanted {one.specifier}", advice))
    return wrong or [Finding("ok", "packages", f"all {len(needed)} within their bounds")]


def devices() -> list[Finding]:
    import torch

    build = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if torch.version.cuda and shutil.which("nvidia-smi"):
            return [
                Finding(
                    "fail",
                    "GPU",
                    f"{build} sees none",
                    "nvidia-smi is here: the driver and torch do not fit each other",
                )
            ]
        none = "Apple's is not used" if torch.backends.mps.is_available() else "none"
        return [Finding("ok", "GPU", f"{none}; {build} runs on the CPU: small configs (demo, smoke_mini, voc_mini)")]
    found = []
    for number in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(number), torch.cuda.get_device_properties(number).total_memory
        half = half_of(torch.cuda.get_device_capability(number))
        advice = "" if half == "bf16" else f"no bfloat16 units: train.precision={half}"
        found.append(Finding("warn" if advice else "ok", f"GPU {number}", f"{name}, {memory / 2**30:.0f} GiB", advice))
    if len(found) > 1 and not torch.distributed.is_nccl_available():
        found.append(Finding("fail", "NCCL", f"{build} has none", "several GPUs need it: another build of torch"))
    return found


def cores() -> list[Finding]:
    allowed, there = count_cores(), os.cpu_count() or 1
    found = f"{allowed}" if allowed == there else f"{allowed} of the machine's {there} (affinity, cgroup)"
    return [Finding("ok", "cores", found)]


def shared_memory() -> list[Finding]:
    """Where loader processes hand over their batches."""
    found = []
    if os.path.isdir("/dev/shm"):
        free_mb = shutil.disk_usage("/dev/shm").free / 1e6
        advice = "" if free_mb >= SHM_MB else "containers: --shm-size=8g; or data.workers=0"
        found.append(Finding("warn" if advice else "ok", "/dev/shm", f"{free_mb:,.0f} MB free", advice))
    folder = tempfile.gettempdir()
    advice = "" if len(folder) < TMPDIR_LENGTH else "sockets need a shorter path: TMPDIR=/tmp"
    return [*found, Finding("warn" if advice else "ok", "TMPDIR", folder, advice)]


def open_files() -> list[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if soft == resource.RLIM_INFINITY or soft >= FILES else f"ulimit -n {4 * FILES}"
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    return [Finding("warn" if advice else "ok", "open files", shown, advice)]


def compiler() -> list[Finding]:
    """A C compiler, which packages without a wheel and DeepSpeed on CPUs need."""
    names = [name for name in ("g++", "c++", "clang++") if shutil.which(name)]
    if names:
        return [Finding("ok", "compiler", names[0])]
    mac = sys.platform == "darwin"
    advice = "xcode-select --install" if mac else "apt install build-essential python3-dev, for launch.zero on CPUs"
    return [Finding("warn", "compiler", "none", advice)]


def environment() -> list[Finding]:
    """Variables of other tools: those that are ignored, and proxies that would catch this machine's own connections."""
    ignored = sorted(set(os.environ) - set(without_accelerate(os.environ)))
    found = [Finding("ok", "variables", f"ignored: {', '.join(ignored)}" if ignored else "none that interfere")]
    proxies = [name for name in PROXIES if os.environ.get(name)]
    if proxies:
        spared = re.split(r"[, ]+", os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")))
        advice = "" if {"localhost", "127.0.0.1", "*"} & set(spared) else "no_proxy=localhost,127.0.0.1"
        found.append(Finding("warn" if advice else "ok", "proxy", ", ".join(proxies), advice))
    return found
