"""Which shards this process does when a job was started several times: by srun, on several machines, or by a launcher.

The share is every n-th of all shards, whether they exist already or not, so that processes that start at different
times leave none out."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from launcher.config.sections import LaunchConfig
from launcher.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """One of `count` starts of the same job.

    Attributes:
        said_by: what determines the share; "" = nothing, so this process does the whole job.
        ranks: of a launcher, which wait for each other.
    """

    number: int = 0
    count: int = 1
    said_by: str = ""
    ranks: "Accelerator | None" = None

    def take(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.number :: self.count])

    @property
    def opens(self) -> bool:
        """Whether this process makes the output folder and shows progress: of joined ranks the first; else each, which
        is safe, and each has its own log."""
        return self.ranks is None or self.ranks.is_main_process

    def wait(self) -> None:
        if self.ranks is not None:
            self.ranks.wait_for_everyone()

    def gather(self, mine: list[str]) -> list[str]:
        """What all joined ranks have, in their order."""
        if self.ranks is None or self.count == 1:
            return mine
        from accelerate.utils import gather_object

        return [one for of_rank in gather_object([mine]) for one in of_rank]

    def refuse_overwrite(self) -> None:
        """Raise RunError where each start would remove what the others have just made."""
        if self.ranks is None and self.count > 1:
            raise RunError(
                f"--overwrite in each of {self.count} tasks ({self.said_by}) would remove what the others write: "
                "remove the folder once before, or give another --name"
            )


def own_share(launch: LaunchConfig | None = None, environ: Mapping[str, str] | None = None) -> Share:
    """The share of this process, by launch.machines where it says several, else by Slurm's step.

    Raises:
        RunError: Slurm's numbers are none, or do not fit each other.
    """
    if launch is not None and launch.machines > 1:
        return Share(launch.machine_rank, launch.machines, "launch.machines")
    environ = os.environ if environ is None else environ
    if "SLURM_PROCID" not in environ:
        return Share()
    in_step = "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ
    # A batch script and a shell of salloc are told of all tasks, too, but srun has not started them as one of these.
    if not in_step and "SLURM_JOB_ID" in environ:
        return Share()
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    try:
        number, count = int(environ["SLURM_PROCID"]), int(tasks)
    except ValueError:
        number, count = -1, 0
    if not 0 <= number < count:
        raise RunError(
            f"SLURM_PROCID={environ['SLURM_PROCID']!r} of {tasks!r} tasks: wanted 0 to one less than the number of "
            "tasks; start the job with srun, or unset SLURM_PROCID"
        )
    return Share(number, count, "srun") if count > 1 else Share()


def is_first(what: str, launch: LaunchConfig | None = None) -> bool:
    """Whether this process does work that cannot be shared; the other ones end with a line."""
    share = own_share(launch)
    if share.number:
        print(
            f"{what}: only the first of {share.count} tasks ({share.said_by}) does this, with all its cores; this is "
            f"task {share.number}, which ends here",
            file=sys.stderr,
            flush=True,
        )
    return share.number == 0
