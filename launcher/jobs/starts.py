"""How the job of a network is started: by a launcher's ranks, or by one process that has others on this machine."""

from pathlib import Path

from launcher.config.sections import LaunchConfig
from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.jobs.dask_workers import VARIABLE, scheduler
from launcher.jobs.pool import run_pool
from launcher.jobs.shares import Share, own_share
from launcher.processes import accelerator
from launcher.processes.accelerator import LONGEST_SHARD, count_started, make_accelerator, process_count, uses_cpu
from launcher.run.steps import MODEL


def join_share(config: Config) -> Share:
    """The share of this process: of the ranks that a launcher started, which are joined, or see shares.own_share.

    Raises:
        ConfigError: they cannot be joined, or the config asks for machines or processes that a Dask cluster is instead.
    """
    if count_started() > 1:
        ranks = make_accelerator(config, processes=None, timeout=LONGEST_SHARD)
        return Share(ranks.process_index, ranks.num_processes, "accelerate launch", ranks)
    refuse_both(config.launch)
    return own_share(config.launch)


def join_alike() -> tuple[Share, int]:
    """The share of this process and how many of this machine do it, where there is no config: one per GPU, or one."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count_started() > 1:
        ranks = accelerator.join_started(cpu=not gpus, timeout=LONGEST_SHARD)
        return Share(ranks.process_index, ranks.num_processes, "accelerate launch", ranks), 1
    return own_share(), gpus or 1


def refuse_both(launch: LaunchConfig) -> None:
    """Raise ConfigError where launch.processes or launch.machines would be ignored for a Dask cluster's workers."""
    if scheduler() and (launch.machines > 1 or launch.processes is not None):
        raise ConfigError(
            f"launch.processes is {launch.processes}, launch.machines {launch.machines}, and {VARIABLE} is set: all "
            "workers of that cluster do the work; leave launch.* out, or unset the variable"
        )


def count_here(config: Config, share: Share) -> int:
    """Processes of this machine that do the share: launch.processes, else one per GPU, or this one."""
    if share.ranks is not None or scheduler():
        return 1
    return process_count(config) // config.launch.machines


def count_processes(launch: LaunchConfig) -> int | None:
    """Of this machine, where launch.processes says it."""
    refuse_both(launch)
    return launch.processes and launch.processes // launch.machines


def device_of(config: Config, share: Share) -> str:
    """`cpu` or `cuda`: what those who do the work have. Of a Dask cluster one worker is asked."""
    if scheduler() and share.ranks is None:
        (found,) = run_pool(find_device, [config], workers=1, label="device")
        return found
    return find_device(config)


def find_device(config: Config) -> str:
    return "cpu" if uses_cpu(config) else "cuda"


def stamp_of(checkpoint: Path) -> str:
    """A stamp that distinguishes a checkpoint's weights from earlier ones at the same path, since a worker may outlive
    a training."""
    try:
        about = (checkpoint / MODEL).stat()
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"
