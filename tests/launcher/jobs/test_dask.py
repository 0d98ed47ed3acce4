"""Jobs over two workers of Dask on this machine: workers die, clients die, two clients come at once."""

import socket
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import dask_processes
from support.work import die_once, touch

from launcher.config.sections import LaunchConfig, RefineConfig
from launcher.errors import ConfigError, ImageError, RunError
from launcher.jobs import dask_workers, pool
from launcher.jobs.dask_workers import VARIABLE, Crew, Errand, UnfitWorker, describe
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from shards.schema import DataError

pytest.importorskip("distributed")
ALONE = {"workers": 1, "label": "test"}  # of this machine; a cluster has its own number


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(the file with the address of a scheduler, its two workers)."""
    file = tmp_path_factory.mktemp("dask") / "address"
    scheduler, *workers = [dask_processes.start(file, *role) for role in ((), ("worker",), ("worker",))]
    dask_processes.await_file(file)
    yield file, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


@pytest.fixture
def dask(cluster, monkeypatch):
    """The workers, which all jobs use."""
    monkeypatch.setenv(VARIABLE, cluster[0].read_text())
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.5)
    return cluster[1]


def tars(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.tar")}


def test_cams_and_masks_have_the_bytes_of_this_machine_alone(dask, run, scenes, monkeypatch):
    settings = RefineConfig(cams=("grad",), workers=1)
    infer(run, "val", scenes / "val", [], "over")
    (there,) = refine(run, ["val"], settings, cams="over", name="crf")
    monkeypatch.delenv(VARIABLE)
    assert tars(run / "cams@over/val") == tars(run / "cams/val") and len(tars(run / "cams/val")) == 12
    (here,) = refine(run, ["val"], settings, name="crf")
    assert tars(here) == tars(there) and len(tars(there)) == 12
    assert not list(there.glob(".*"))


def test_a_worker_as_another_environment_has_it_is_refused(dask, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_workers, "describe", lambda: {**describe(), "torch": "0.1"})
    with pytest.raises(
        RunError, match=r"Dask worker tcp://.*: differs from this command: torch 2.* there, 0.1 here; end"
    ):
        list(pool.run_pool(partial(touch, tmp_path), ["a", "b"], workers=1, label="test"))
    assert not list(tmp_path.iterdir())


def test_what_fails_is_named_and_two_clients_get_all_they_asked_for(dask, tmp_path):
    with pytest.raises(DataError, match=r"test: 2 of 2 shards failed:\n  bad1: no good: bad1\n  bad2: no good: bad2"):
        list(pool.run_pool(partial(touch, tmp_path), ["bad1", "bad2"], workers=1, label="test"))
    found, names = {}, [str(n) for n in range(8)]

    def ask(client):
        found[client] = list(pool.run_pool(partial(touch, tmp_path), names, workers=1, label=client))

    clients = [threading.Thread(target=ask, args=(client,)) for client in "ab"]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert [len(pids) for pids in found.values()] == [8, 8]
    assert {*found["a"], *found["b"]} <= {worker.pid for worker in dask}


def test_when_a_client_is_killed_the_workers_stop_and_serve_the_next(cluster, dask, tmp_path):
    client = dask_processes.start(cluster[0], "client")
    while len(list(cluster[0].parent.glob("*.slow"))) < 3:
        assert client.poll() is None
        time.sleep(0.05)
    client.kill()
    client.wait()
    names = [str(n) for n in range(4)]
    assert len(list(pool.run_pool(partial(touch, tmp_path), names, workers=1, label="test"))) == 4
    assert len(list(cluster[0].parent.glob("*.slow"))) < 80


def test_what_a_killed_worker_had_is_done_by_the_other(dask, tmp_path):
    names = [str(n) for n in range(10)]
    pids = list(pool.run_pool(partial(die_once, tmp_path), names, workers=1, label="test"))
    assert len(pids) == 10 and pids[3] in {worker.pid for worker in dask}
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "died"]


def test_where_all_workers_die_the_job_says_so_and_their_replacement_does_the_rest(cluster, dask, tmp_path, capfd):
    for worker in dask:
        worker.kill()
        worker.wait()
    found = []
    names = [str(n) for n in range(4)]
    asking = threading.Thread(target=lambda: found.extend(pool.run_pool(partial(touch, tmp_path), names, **ALONE)))
    asking.start()
    said, deadline = "", time.monotonic() + 60
    while "no worker for" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        said += capfd.readouterr().err
    dask.append(dask_processes.start(cluster[0], "bare worker"))
    asking.join(60)
    assert found == [dask[-1].pid] * 4


def test_where_no_scheduler_answers_is_told(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv(VARIABLE, address)
    monkeypatch.setattr(dask_workers, "ANSWER_S", 0.3)
    with pytest.raises(RunError, match=rf"{VARIABLE}={address}: no Dask scheduler answers there .*`dask scheduler`"):
        list(pool.run_pool(len, ["a"], workers=1, label="test"))


class Client:
    """Of a scheduler with as many workers as one says."""

    def __init__(self, *workers):
        self.workers = list(workers)

    def nthreads(self):
        return {f"w{n}": 1 for n in range(self.workers.pop(0))}

    def get_executor(self, pure):
        return None


def test_a_cluster_without_a_worker_is_waited_for_with_a_line(monkeypatch, capsys):
    now = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(dask_workers.time, "monotonic", lambda: next(now))
    crew = Crew("tcp://x", Client(0, 2, 0))
    for _ in range(3):
        crew.say_if_alone()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == ["tcp://x: no worker for 30 s", "tcp://x: no worker for 30 s"]
    assert "--nthreads 1" in said[0]


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        (None, RunError, "the Dask scheduler is gone or was restarted; finished shards are kept"),
        (ModuleNotFoundError("No module named 'launcher'"), RunError, "cannot load its work .*No module named"),
        (type("KilledWorker", (Exception,), {})("x"), ImageError, "a.tar: every worker that tried it died"),
    ],
)
def test_what_dask_itself_says_is_put_in_our_words(reason, kind, said):
    future = Future()
    future.cancel() if reason is None else future.set_exception(reason)
    if kind is ImageError:
        assert str(Crew("tcp://x", Client()).outcome(future, "a.tar")).startswith(said)
    else:
        with pytest.raises(RunError, match=said):
            Crew("tcp://x", Client()).outcome(future, "a.tar")


def test_workers_of_several_threads_and_without_our_files_are_refused(tmp_path, monkeypatch):
    worker = SimpleNamespace(address="tcp://w", state=SimpleNamespace(nthreads=4))
    monkeypatch.setattr("distributed.get_worker", lambda: worker)
    with pytest.raises(UnfitWorker, match="tcp://w: has 4 threads.*--nthreads 1"):
        Errand(len, describe(), str(tmp_path)).check()
    worker.state.nthreads = 1
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnfitWorker, match="gone'.*this command's folder"):
        Errand(len, describe(), str(tmp_path / "gone")).check()
    Errand(len, describe(), str(tmp_path / "gone")).check(at_a_distance=True)


def test_a_config_that_asks_for_processes_besides_a_cluster_is_refused(run, monkeypatch):
    monkeypatch.setenv(VARIABLE, "tcp://x")
    with pytest.raises(ConfigError, match=f"launch.processes is 2, .*{VARIABLE} is set"):
        refine(run, ["val"], RefineConfig(chain=()), launch=LaunchConfig(processes=2))
