"""The workers of a running Dask cluster as an executor: on whatever machines they are, with one file system, or with
outputs at a URL.

DASK_SCHEDULER_ADDRESS is the address of the scheduler, as for Dask's own commands. It is not a key of the config, since
it determines where the work is done and does not change the result. If a worker dies, others do its shards."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import ImageError, RunError
from launcher.files import RUNS
from launcher.processes.surroundings import PACKAGES, ROOT
from shards.remote import is_url
from wsss.extras import needs

Item = TypeVar("Item")
Result = TypeVar("Result")

VARIABLE = "DASK_SCHEDULER_ADDRESS"
ANSWER_S = 20.0  # that a scheduler may take to answer
START = "start some, each as `dask worker ADDRESS --nthreads 1 --no-nanny` in this environment"
# Packages that what a job writes, or how it is asked for, depends on.
COMPARED = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "scipy", "webdataset", "transformers", "segment-anything"),
    *("pydensecrf2", "accelerate", "pydantic", "dask", "distributed"),
)


class UnfitWorker(RunError):
    """A worker that differs from this process; its results are not used."""


def scheduler() -> str:
    """Address of the Dask scheduler whose workers do the work; "" = processes on this machine do it."""
    return os.environ.get(VARIABLE, "").strip()


class Crew:
    """The workers, as long as a job lasts.

    Attributes:
        executor: submits `there(work)`.
    """

    def __init__(self, address: str, client: Any) -> None:
        self.address, self.client = address, client
        self.executor: Executor = client.get_executor(pure=False)
        self.manned_at = time.monotonic()  # when there was a worker last, or this began

    def there(self, work: Callable[[Item], Result]) -> Callable[[Item], Any]:
        """The work as a worker does it, once it has been compared with this process."""
        return Errand(work, describe(), os.getcwd())

    def outcome(self, future: Future, item: object) -> Any:
        """The outcome for an item: its result, or the error that belongs to it.

        Raises:
            RunError: the workers or the scheduler are not what they should be.
        """
        try:
            result, error = future.result()
        except CancelledError:
            raise RunError(
                f"{self.address}: the Dask scheduler is gone or was restarted; finished shards are kept: start the "
                "same command again"
            ) from None
        except Exception as reason:
            if type(reason).__name__ == "KilledWorker":
                return ImageError(f"{item}: every worker that tried it died, most likely because memory ran out")
            raise RunError(
                f"{self.address}: a worker cannot load its work ({type(reason).__name__}: {reason}); start scheduler "
                "and workers in the environment of this command"
            ) from reason
        if isinstance(error, UnfitWorker):
            raise error
        return result if error is None else error

    def say_if_alone(self) -> None:
        """Print a line while there are no workers; the job waits for them."""
        with suppress(OSError, RuntimeError):  # a scheduler that is away: the futures tell
            if self.client.nthreads():
                self.manned_at = time.monotonic()
                return
            waited_s = time.monotonic() - self.manned_at
            print(f"{self.address}: no worker for {waited_s:.0f} s; {START}", file=sys.stderr, flush=True)


@contextmanager
def dask_crew(address: str) -> Iterator[Crew]:
    """The workers of the scheduler at `address`; what still waits for one is dropped when the block ends.

    Raises:
        MissingPackage: `distributed` is not installed.
        RunError: no scheduler answers there.
    """
    with needs("dask", f", or unset {VARIABLE}"):
        from distributed import Client
    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{VARIABLE}={address}: no Dask scheduler answers there ({error}); start one with `dask scheduler`, or "
            "unset the variable to work on this machine alone"
        ) from error
    crew = Crew(address, client)
    try:
        yield crew
    finally:
        with suppress(Exception):  # of a scheduler that is gone
            crew.executor.shutdown(wait=False)
        client.close(timeout=ANSWER_S)


class Errand:
    """What is sent to a worker: the work, a description of the sending process, and its working folder."""

    def __init__(self, work: Callable[[Any], Any], wanted: dict[str, str], folder: str) -> None:
        self.work, self.wanted, self.folder = work, wanted, folder

    def __call__(self, item: Any) -> tuple[Any, Exception | None]:
        """(result, None) or (None, error): what else is raised is Dask's own."""
        try:
            self.check(at_a_distance=is_url(getattr(item, "out", item)))
            prepare()
            return self.work(item), None
        except Exception as error:
            return None, error

    def check(self, *, at_a_distance: bool = False) -> None:
        """Raise UnfitWorker unless this worker equals the process that sent the work, and has its files.

        Args:
            at_a_distance: the output goes to a URL, so the worker does not need the folder; missing inputs raise their
                own errors.
        """
        from distributed import get_worker

        worker, got = get_worker(), describe()
        where = f"Dask worker {worker.address}"
        if worker.state.nthreads != 1:
            raise UnfitWorker(
                f"{where}: has {worker.state.nthreads} threads, but shards are read by a single thread: start it with "
                "--nthreads 1, and as many workers as there are cores or GPUs"
            )
        different = sorted(name for name in {*got, *self.wanted} if got.get(name) != self.wanted.get(name))
        if different:
            told = ", ".join(f"{name} {got.get(name)} there, {self.wanted.get(name)} here" for name in different[:3])
            raise UnfitWorker(
                f"{where}: differs from this command: {told}; end that worker, start one in this environment, and "
                "start the same command again: finished shards are kept"
            )
        try:
            os.chdir(self.folder)  # relative paths, as of a run's teacher, mean there what they mean here
        except OSError as error:
            if not at_a_distance:
                raise UnfitWorker(
                    f"{where}: {error}: the worker needs this command's folder under the same path"
                ) from error


@lru_cache(maxsize=1)
def describe() -> dict[str, str]:
    """A description of this process, as far as results depend on it: versions, our code, and the folder of runs."""
    installed = {found.metadata["Name"]: found.version for found in distributions()}
    versions = {name: installed[name] for name in COMPARED if name in installed}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **versions, "the code of wsss": digest_code(ROOT), "WSSS_RUNS": str(RUNS)}


def digest_code(root: Path) -> str:
    """Of the names and bytes of all our modules."""
    digest = sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def prepare() -> None:
    """Prepare a worker once, before its first work: what a `wsss` command does at its start, and one thread for
    torch."""
    import torch

    from launcher.processes.group import forget_group
    from launcher.processes.surroundings import without_accelerate

    for name in set(os.environ) - set(without_accelerate(os.environ)):
        del os.environ[name]
    forget_group()
    torch.set_num_threads(1)
