import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from shards import files


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "figures.json"
    files.write_whole(path, "ä")
    assert path.read_bytes() == "ä".encode()
    with pytest.raises(ZeroDivisionError), files.appearing(path) as temporary:
        temporary.write_text("half")
        assert path.read_bytes() == "ä".encode()
        1 / 0  # noqa: B018
    files.write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert [found.name for found in tmp_path.iterdir()] == ["figures.json"]


def test_a_disk_that_takes_no_bytes_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    files.write_whole(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    said, replace = [], Path.replace
    monkeypatch.setattr(files, "sync_to_disk", lambda path: said.append(("synced", path.suffix or "folder")))
    monkeypatch.setattr(Path, "replace", lambda self, to: (said.append(("named", to.name)), replace(self, to)))
    files.write_whole(tmp_path / "figures.json", "{}")
    assert said == [("synced", ".tmp"), ("named", "figures.json"), ("synced", "folder")]


def test_what_may_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"?")
    assert files.read_regular(tmp_path / "file") == b"?"
    for what in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_regular(what)
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "none")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.appearing(tmp_path / "figures.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_temporary_name_is_hidden_and_begins_with_the_name_of_the_file(tmp_path):
    for name in ("a.tar", ".a.tar"):  # who removes what a killed process left looks for `.a.tar.*`
        with files.temporary_name(tmp_path / name) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".a.tar.") and temporary.suffix == ".tmp"


def refusing(number, only=lambda *_: True):
    def refuse(*arguments):
        if only(*arguments):
            raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES])
def test_a_file_system_that_syncs_no_folders_is_used_as_it_is(tmp_path, monkeypatch, number):
    """SMB, sshfs, VirtualBox, some FUSE."""
    monkeypatch.setattr(os, "fsync", refusing(number, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)))
    files.write_whole(tmp_path / "figures.json", "new")
    assert (tmp_path / "figures.json").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_the_disk_fails_to_sync_is_told(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(number, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)))
    with pytest.raises(OSError, match=os.strerror(number)):
        files.write_whole(tmp_path / "figures.json", "new")


@pytest.mark.parametrize("of_process", [False, True])
def test_a_lock_is_held_busy_or_not_offered(tmp_path, monkeypatch, of_process):
    call = "lockf" if of_process else "flock"
    with open(tmp_path / "lock", "w") as file:
        assert files.take_lock(file.fileno(), of_process=of_process) is True
        for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            monkeypatch.setattr(fcntl, call, refusing(number))
            assert files.take_lock(file.fileno(), wait_s=600, of_process=of_process) is None  # at once
        for number in (errno.EAGAIN, errno.EACCES):
            monkeypatch.setattr(fcntl, call, refusing(number))
            assert files.take_lock(file.fileno(), wait_s=0.1, of_process=of_process) is False
        monkeypatch.setattr(fcntl, call, refusing(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            files.take_lock(file.fileno(), of_process=of_process)


def test_each_refusal_is_told_by_its_own_cause(tmp_path):
    def told(number, path=tmp_path / "x"):
        return files.tell_refusal(OSError(number, os.strerror(number), str(path)), path)

    full = OSError(errno.ENOSPC, "No space left on device")  # as where a buffer is written
    assert files.tell_refusal(full, None) == "[Errno 28] No space left on device; make room on this disk"
    assert "MB are free there; make room" in told(errno.ENOSPC) and "quota" in told(errno.EDQUOT)
    for number, remedy in ((errno.EROFS, "read-only"), (errno.ENAMETOOLONG, "shorter"), (errno.EACCES, "permissions")):
        assert remedy in told(number) and "make room" not in told(number)
    assert told(errno.EPIPE) == "[Errno 32] Broken pipe: '" + str(tmp_path / "x") + "'"
    (tmp_path / "runs").symlink_to("/nonexistent/scratch")
    assert "runs is a link to /nonexistent/scratch, which does not exist" in told(errno.EEXIST, tmp_path / "runs/a")
    (tmp_path / "file").touch()
    assert "file is a file, not a folder" in told(errno.ENOTDIR, tmp_path / "file/a/b")
