"""What other programs say of groups of processes, and how long one waits for its own."""

import os
import time
from datetime import timedelta

import pytest
from support.servers import free_port

from launcher import __main__ as wsss
from launcher.errors import ConfigError
from launcher.processes import group, launch
from launcher.processes.accelerator import make_accelerator

FOREIGN = {
    "a pod of a PyTorchJob": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456"},
    "a shell below torchrun": {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"},
    "srun --mpi=pmi2": {"PMI_SIZE": "4", "PMI_RANK": "2"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "set but empty": {"WORLD_SIZE": "", "RANK": ""},
}


@pytest.mark.parametrize("whose", FOREIGN)
def test_a_wsss_command_is_one_process_whatever_the_surroundings_say(whose, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(wsss, "app", lambda: seen.update(os.environ))
    for name, value in FOREIGN[whose].items():
        monkeypatch.setenv(name, value)
    wsss.main()
    assert seen and not set(FOREIGN[whose]) & set(seen)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(name in said for name in FOREIGN[whose])


def test_nothing_is_said_where_nothing_was_found(monkeypatch, capsys):
    monkeypatch.setattr(wsss, "app", lambda: None)
    group.forget_group()
    wsss.main()
    assert capsys.readouterr().err == ""


def test_a_number_of_processes_that_was_not_started_is_told_before_anybody_is_waited_for(tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in FOREIGN["a pod of a PyTorchJob"].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="launch.processes is 1, but WORLD_SIZE is 2"):
        make_accelerator(tiny_config("classify"), processes=1)


def test_partners_that_never_come_are_waited_for_ten_minutes_even_by_a_job(monkeypatch, capfd):
    """A job waits for days for a partner's last shard, but not for its start."""
    monkeypatch.setattr(group, "GROUP_TIMEOUT", timedelta(seconds=1))
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match=r"(?i)timed? ?out"):
        group.join_group("gloo", timedelta(days=7))
    assert "using RANK=0 WORLD_SIZE=2 from the environment: waiting" in capfd.readouterr().err


def test_a_first_machine_without_an_address_is_waited_for_and_then_told(monkeypatch, capsys):
    monkeypatch.setattr(launch, "NAME_S", 0.3)
    monkeypatch.setattr(launch, "LOOK_UP_EVERY_S", 0.1)
    with pytest.raises(ConfigError, match="launch.main_address: 'pod-0.invalid' has no address"):
        launch.await_address("pod-0.invalid")
    assert capsys.readouterr().err.count("has no address yet") == 1


def test_a_first_machine_that_gets_its_address_late_is_found(monkeypatch, capsys):
    answers = [OSError("Name or service not known"), OSError("not yet"), []]

    def look_up(*_):
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer

    monkeypatch.setattr(launch.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    launch.await_address("pod-0")
    assert not answers
