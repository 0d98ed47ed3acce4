"""A scheduler and workers of Dask as processes of this machine, which tests may kill.

python -m support.dask_processes FILE            a scheduler, whose address goes to FILE
python -m support.dask_processes FILE worker     a worker of one thread; "bare worker": one that is there sooner
python -m support.dask_processes FILE client     a client that writes a hundred files beside FILE, slowly
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from support.places import environment


def start(file: Path, *role: str) -> subprocess.Popen:
    argv = [sys.executable, "-m", "support.dask_processes", str(file), *role]
    return subprocess.Popen(argv, env=environment({"OMP_NUM_THREADS": "1"}), cwd=file.parent)


def await_file(file: Path, limit_s: float = 120.0) -> str:
    deadline = time.monotonic() + limit_s
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.05)
    return file.read_text()


def slowly(path: Path) -> None:
    time.sleep(0.1)
    path.touch()


def ask(file: Path) -> None:
    from launcher.jobs.dask_workers import VARIABLE
    from launcher.jobs.pool import run_pool

    os.environ[VARIABLE] = await_file(file)
    list(run_pool(slowly, [file.with_name(f"{n}.slow") for n in range(100)], workers=1, label="killed"))


async def serve(file: Path, role: list[str]) -> None:
    from distributed import Scheduler, Worker

    if role:
        if role == ["worker"]:
            import launcher.jobs.refine  # noqa: F401 (what all work needs; the tests wait for it once)

        server = Worker(await_file(file), nthreads=1, local_directory=str(file.parent / "worker"))
        await server
    else:
        server = await Scheduler(host="127.0.0.1", port=0, dashboard=False)
        file.write_text(server.address)
    await server.finished()


if __name__ == "__main__":
    if sys.argv[2:] == ["client"]:
        from support import dask_processes

        dask_processes.ask(Path(sys.argv[1]))
    else:
        asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
