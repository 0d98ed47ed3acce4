import errno
import fcntl
import multiprocessing
import os
import signal
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
from support.work import begin_pool, die, touch

from launcher.config.sections import RefineConfig
from launcher.errors import RunError
from launcher.evaluation.evaluate import evaluate
from launcher.jobs import output as jobs
from launcher.jobs import pool
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.run.folder import Run
from shards import write
from shards.remote import place_of
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.tars import tar_members
from shards.write import write_tar


@pytest.mark.parametrize("buffered", [0, 1 << 20], ids=["as it is written", "as it is flushed"])
def test_a_full_disk_is_said_once_and_no_further_shard_is_tried(tmp_path, monkeypatch, buffered):
    tried = []

    def full(temporary):
        tried.append(temporary.touch())
        return open("/dev/full", "wb", buffering=buffered)

    monkeypatch.setattr(write, "open_locked", full)
    run = partial(pool.run_pool, workers=1, label="test")
    with pytest.raises(DataError) as told:
        write.write_split(
            Synthetic(split="train", num_images=8, size=32), tmp_path, "train", "label", num_shards=4, run=run
        )
    assert str(told.value).count("No space left on device") == 1 and len(tried) == 1


def test_a_pool_does_every_item_in_other_processes_and_keeps_their_order(tmp_path):
    names = [f"{n}.tar" for n in range(6)]
    pids = list(pool.run_pool(partial(touch, tmp_path), names, workers=2, label="test"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(pids) == 6 and os.getpid() not in pids


def test_one_bad_shard_does_not_hold_up_the_others_and_is_named(tmp_path):
    with pytest.raises(DataError, match=r"test: 2 of 5 shards failed:\n  bad1: no good: bad1\n  bad2: no good: bad2$"):
        list(pool.run_pool(partial(touch, tmp_path), ["a", "bad1", "b", "bad2", "c"], workers=1, label="test"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_of_many_bad_shards_a_few_of_each_kind_are_told_and_the_others_counted():
    ten = [f"bad{n:02d}: no good" for n in range(10)]
    assert pool.tell(ten) == "\n".join(f"  {reason}" for reason in ten)
    like = [f"out/{n}.tar: sample 'a{n}': the mask (/m/a{n}.png) shows {n}" for n in range(13)]
    kinds = [f"{kind}: damaged" for kind in ("png", "tar", "gif", "jpg")]
    assert pool.tell([*like, *kinds]).splitlines() == [
        *(f"  {reason}" for reason in like[:2]),
        "  and 11 more like these",
        *(f"  {reason}" for reason in kinds[:3]),
        "  and 1 of other kinds",
    ]


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=begin_pool, args=(tmp_path,))
    parent.start()
    deadline = time.monotonic() + 120
    while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
        assert parent.is_alive() and time.monotonic() < deadline
        time.sleep(0.1)
    workers = [psutil.Process(int(path.read_text())) for path in tmp_path.iterdir()]
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_a_worker_that_dies_is_an_error_and_no_hang(tmp_path):
    with pytest.raises(DataError, match="shards failed"):
        list(pool.run_pool(partial(die, tmp_path), ["a", "b", "c", "d"], workers=2, label="test"))
    assert not (tmp_path / "b").exists()


def test_a_mistake_of_ours_is_not_dressed_up_as_the_users():
    with pytest.raises(TypeError):
        list(pool.run_pool(len, [3], workers=1, label="test"))


def test_the_rest_of_a_job_needs_no_fewer_workers():
    assert list(pool.run_pool(len, ["aa"], workers=3, label="test")) == [2]


@pytest.mark.parametrize("no_links", [False, True])
def test_a_folder_that_another_process_begins_meanwhile_is_compared(tmp_path, monkeypatch, no_links):
    plain = os.link

    def late(temporary, path):
        path.write_text('{"threshold": 0.3}')
        monkeypatch.setattr(os, "link", plain)
        if no_links:
            raise OSError(errno.EPERM, "Operation not permitted")
        plain(temporary, path)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(RunError, match=r"made with other settings \(threshold: 0.3, now 0.6\)"):
        jobs.open_output(tmp_path, {"threshold": 0.6})
    assert jobs.read_made_of(tmp_path) == {"threshold": 0.3} and len(list(tmp_path.iterdir())) == 1


def test_other_settings_are_named_by_their_option_with_what_to_do(tmp_path):
    jobs.open_output(tmp_path, {"cam": {"kinds": ["grad"], "scales": [1.0]}})
    with pytest.raises(RunError, match=r"\(cam.scales: \[1.0\], now \[1.0, 2.0\]\); --overwrite replaces it, --name"):
        jobs.open_output(tmp_path, {"cam": {"kinds": ["grad"], "scales": [1.0, 2.0]}})


def test_a_folder_that_does_not_say_what_made_it_is_told(tmp_path):
    (tmp_path / "job.json").write_text('{"thres')
    (tmp_path / "a.tar").touch()
    with pytest.raises(RunError, match=r"job.json: is not JSON .* remove the folder"):
        jobs.open_output(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/out: cannot be written: .*/file is a file, not a folder"):
        jobs.open_output(tmp_path / "file/out", {})
    with pytest.raises(RunError, match="file: cannot be made: something else has this name"):
        jobs.open_output(tmp_path / "file", {})


def test_a_disk_that_takes_no_job_json_is_left_without_a_folder_of_unknown_make(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "create_at", refuse)
    with pytest.raises(RunError, match=r"out: cannot be written: .*MB are free there; make room"):
        jobs.open_output(tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", ["", "\0\0\0", '{"thres', "[]"])
def test_a_folder_without_a_shard_whose_description_a_power_cut_took_is_begun_anew(tmp_path, left, capsys):
    (tmp_path / "job.json").write_text(left)
    jobs.open_output(tmp_path, {"threshold": 0.6})
    assert jobs.read_made_of(tmp_path) == {"threshold": 0.6}
    assert "moved to job.json.damaged" in capsys.readouterr().err


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_an_output_folder_needs_no_hard_links(tmp_path, monkeypatch, refusal):
    def refuse(*_):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", refuse)
    jobs.open_output(tmp_path / "out", {"threshold": 0.6})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["job.json"]
    with pytest.raises(RunError, match="made with other settings"):
        jobs.open_output(tmp_path / "out", {"threshold": 0.3})


def test_what_killed_writers_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    out = tmp_path / "out"
    jobs.open_output(out, {})
    (out / ".a.tar.0123abcd.tmp").write_bytes(b"half a shard")

    def samples():
        yield "first", {"json": b"{}"}
        assert len(list(out.glob(".*.tmp"))) == 2
        jobs.open_output(out, {})  # as a second start of the job does
        (own,) = out.glob(".*.tmp")
        assert own.name.startswith(".b.tar.")
        yield "second", {"json": b"{}"}

    write_tar(out / "b.tar", samples())
    assert sorted(path.name for path in out.iterdir()) == ["b.tar", "job.json"]
    assert [key for key, *_ in tar_members(out / "b.tar")] == ["first", "second"]


def test_a_temporary_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    plain = fcntl.flock

    def swept_first(file, how):
        monkeypatch.setattr(fcntl, "flock", plain)
        write.sweep_unfinished(tmp_path)
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    write_tar(tmp_path / "a.tar", [("key", {"json": b"{}"})])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_nothing_to_do_is_no_error():
    assert list(pool.run_pool(len, [], workers=2, label="test")) == []


def test_an_output_folder_is_made_once_and_refuses_other_settings(tmp_path):
    out = tmp_path / "out"
    jobs.open_output(out, {"threshold": 0.3, "shards": "x"})
    jobs.open_output(out, {"threshold": 0.3, "shards": "x"})
    with pytest.raises(RunError, match=r"made with other settings \(threshold: 0.3, now 0.5\)"):
        jobs.open_output(out, {"threshold": 0.5, "shards": "x"})
    (out / "a.tar").touch()
    assert jobs.list_missing(out, ["a.tar", "b.tar"]) == ["b.tar"]
    with pytest.raises(RunError, match="1 of 2 shards are missing, first b.tar"):
        jobs.require_all(out, ["a.tar", "b.tar"])


def test_what_killed_writers_left_of_other_files_is_swept_once_nobody_can_still_write_it(tmp_path):
    (tmp_path / ".job.json.00ff.tmp").touch()
    old = tmp_path / ".job.json.0123.tmp"
    old.touch()
    os.utime(old, (0, 0))
    jobs.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".job.json.00ff.tmp"]


def test_a_disk_without_room_for_what_is_missing_ends_the_job_before_it_is_full(run, monkeypatch):
    settings = RefineConfig(cams=("grad",), chain=(), workers=1)
    free = []
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    free[:] = [20_000]  # a shard has two images of 32 x 32 pixels: 12 need more, which the first image tells
    with pytest.raises(
        RunError, match=r"12 shards are missing, of about 0\.0 MB each: 0\.1 MB are needed, 0\.0 MB are free"
    ):
        refine(run, ["val"], settings)
    assert not list((run / "masks/grad+threshold/val").glob("*.tar"))
    free[:] = [10**9]
    (out,) = refine(run, ["val"], settings)
    for path in sorted(out.glob("*.tar"))[:3]:
        path.unlink()
    free[:] = [20_000]  # three take about 30 kB, as those that are there tell
    with pytest.raises(RunError, match=r"3 shards are missing, .* what is finished is kept"):
        refine(run, ["val"], settings)
    assert len(list(out.glob("*.tar"))) == 9


def test_the_room_that_is_wanted_is_that_of_what_is_missing_by_hand(tmp_path, monkeypatch):
    free = [600]
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    (tmp_path / "a").write_bytes(bytes(100))
    room = jobs.Room(starts=2)
    room.add(tmp_path, ["a", "b", "c", "d", "e", "f"], likely_bytes=7)  # 5 are missing, of 100 bytes as the one there
    room.add(tmp_path / "masks", ["x", "y"], likely_bytes=50)
    room.add(place_of("s3://bucket/masks"), ["x"], likely_bytes=10**9)  # a store has room
    room.check()
    free[0] = 599
    with pytest.raises(RunError, match="7 shards are missing"):
        room.check()
    (tmp_path / "b").write_bytes(bytes(200))
    free[0] = 549  # now 3 of 150 bytes, since the other start has finished one too, and 2 of 50
    with pytest.raises(RunError, match="5 shards are missing"):
        room.finish(tmp_path, "b")
    free[0] = 250
    room.finish(tmp_path, "removed meanwhile")  # 1 of 150 and 2 of 50
    free[0] = 100
    room.finish(tmp_path, "d")
    free[0] = 99
    with pytest.raises(RunError, match="masks: 2 shards are missing"):
        room.check()


def test_a_bit_that_flips_in_a_finished_shard_and_still_decodes_is_found_told_and_made_anew(run, capsys):
    settings = RefineConfig(cams=("grad",), chain=(), workers=1)
    (out,) = refine(run, ["val"], settings)
    for folder, again in ((out, evaluate), (run / "cams/val", lambda run: refine(run, ["val"], settings, name="x"))):
        path = folder / "val-00003.tar"
        whole = path.read_bytes()
        at = whole.index(b"NUMPY") + 200  # in the scores
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((DataError, RunError), match=r"val-00003\.tar: its sha256 differs from what was written"):
            again(run)
        path.write_bytes(whole)
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.write_bytes(flipped)
    infer(run, "val", Run(run).config.data.val)
    assert path.read_bytes() == whole and "moved to val-00003.tar.damaged" in capsys.readouterr().err
    assert (run / "cams/val/val-00003.tar.damaged").read_bytes() == flipped


def test_ctrl_c_ends_a_worker_without_a_traceback(monkeypatch):
    for name in ("end_with_parent", "outlive_output"):
        monkeypatch.setattr(pool, name, lambda *_: None)
    monkeypatch.setattr(pool.ProcessPoolExecutor, "submit", lambda *_: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    before = signal.getsignal(signal.SIGINT)
    begun_with = pool.SpawningPool(1).submit(len)
    assert signal.SIGINT in begun_with and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, begun_with)
    try:
        pool.begin_worker(1, None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, begun_with)
        signal.signal(signal.SIGINT, before)
