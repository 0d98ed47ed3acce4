"""What tests let worker processes do. It imports nothing heavy, since each worker has to."""

import os
import time
from pathlib import Path


def touch(out: Path, name: str) -> int:
    if name.startswith("bad"):
        raise ValueError(f"no good: {name}")
    (out / name).write_text(name)
    return os.getpid()


def die(out: Path, name: str) -> None:
    if name == "b":
        os._exit(1)  # as a segmentation fault in a library would
    time.sleep(0.1)
    (out / name).write_text(name)


def die_once(out: Path, name: str) -> int:
    if name == "3" and not (out / "died").exists():
        (out / "died").touch()
        os._exit(9)
    time.sleep(0.02)
    return touch(out, name)


def wait_forever(out: Path, name: str) -> None:
    (out / name).write_text(str(os.getpid()))
    time.sleep(600)


def begin_pool(out: Path) -> None:
    from functools import partial

    from launcher.jobs.pool import run_pool

    list(run_pool(partial(wait_forever, out), ["a", "b"], workers=2, label="test"))
