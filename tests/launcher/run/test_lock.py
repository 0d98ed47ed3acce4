"""A run's folder: one writer, whatever the file system offers, and told in one line where it cannot be written."""

import errno
import fcntl
import os
import resource
from pathlib import Path

import pytest

from launcher.errors import RunError, report_user_errors
from launcher.run.lock import only_writer, require_writable


def test_a_file_system_without_locks_is_trained_on_with_a_warning(tmp_path, monkeypatch, capsys):
    """Lustre without flock, NFS without lockd: nobody else trains the run."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with only_writer(tmp_path / "run", wait_s=600):
        pass
    assert capsys.readouterr().err.count("this file system has no locks (mount it with them") == 1


def test_a_lock_that_fails_for_another_reason_is_not_told_as_another_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(RunError, match=r"lock: cannot be locked: .*Input/output error; the disk or the network"):
        only_writer(tmp_path).__enter__()


@pytest.mark.parametrize("how", ["long", "link", "file", "read-only"])
def test_a_folder_that_cannot_be_written_is_told_with_its_reason_and_nothing_is_left(tmp_path, monkeypatch, how):
    runs, name = tmp_path / "runs", "a"
    if how == "long":
        runs.mkdir()
        name, said = "n" * 300, "File name too long.*choose a shorter name"
    elif how == "link":
        runs.symlink_to("/nonexistent/scratch/runs")
        said = "runs is a link to /nonexistent/scratch/runs, which does not exist"
    elif how == "file":
        runs.touch()
        said = "runs is a file, not a folder"
    else:
        runs.mkdir()
        said = "Read-only file system.*choose another place"

        def refuse(path, *_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
    before = sorted(tmp_path.rglob("*"))
    for attempt in (require_writable, lambda run: only_writer(run).__enter__()):
        with pytest.raises(RunError, match=f"cannot be written: .*{said}"):
            attempt(runs / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_trying_leaves_nothing_behind_and_changes_nothing(tmp_path):
    require_writable(tmp_path / "runs/a/b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/kept").touch()
    require_writable(tmp_path / "runs/a")
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["kept"]


def test_what_the_machine_refuses_anywhere_is_one_line_and_a_mistake_of_ours_is_not(capsys):
    with pytest.raises(SystemExit), report_user_errors():
        raise OSError(errno.EROFS, "Read-only file system", "runs/report.html")
    said = capsys.readouterr().err
    assert said.startswith("error: [Errno 30]") and "choose another place" in said and said.count("\n") == 1
    with pytest.raises(FileNotFoundError), report_user_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")


def test_a_lock_that_does_not_fit_on_the_disk_is_told_by_its_name(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(RunError, match=r"lock: cannot be written: .*File too large"):
            only_writer(tmp_path).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
