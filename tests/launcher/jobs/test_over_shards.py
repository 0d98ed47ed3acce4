"""The engine of all jobs, with work that writes a byte or nothing."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.errors import RunError
from launcher.jobs.over_shards import Output, write_outputs
from launcher.jobs.shares import Share
from shards.digests import publish_noted


class Task(NamedTuple):
    out: Path
    name: str
    num_images: int = 1
    made_of: str = ""


def test_a_shard_that_nobody_wrote_is_told_by_the_process_that_has_all_of_them(tmp_path):
    def work(task):
        if task.name != "2.tar":
            (task.out / task.name).write_bytes(b"x")

    def write(share):
        tasks = [Task(tmp_path, f"{n}.tar") for n in range(4)]
        write_outputs([Output(tmp_path, {"a": 1}, tasks)], work, share=share, workers=1, label="job")
        return sorted(path.name for path in tmp_path.glob("*.tar"))

    assert write(Share(0, 2, "srun")) == ["0.tar"]  # the other task has the others
    with pytest.raises(RunError, match=r"1 of 4 shards are missing, first 2.tar; run the job again"):
        write(Share())
    assert not (tmp_path / "shards.json").exists()


def test_a_task_of_srun_looks_for_changed_shards_among_its_own_alone(tmp_path):
    def work(task):
        if not (task.out / task.name).exists():
            (task.out / "new").write_bytes(b"whole")
            publish_noted(task.out / "new", task.out / task.name)

    def write(share):
        tasks = [Task(tmp_path, f"{n}.tar") for n in range(4)]
        write_outputs([Output(tmp_path, {"a": 1}, tasks)], work, share=share, workers=1, label="job")

    write(Share())
    for n in range(4):
        (tmp_path / f"{n}.tar").write_bytes(b"ruined")
    with suppress(RunError):  # the other task has not done its own yet
        write(Share(1, 2, "srun"))
    assert [(tmp_path / f"{n}.tar").read_bytes() for n in range(4)] == [b"ruined", b"whole"] * 2
