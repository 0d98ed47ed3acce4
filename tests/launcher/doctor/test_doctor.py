"""Each check on a machine that has what it looks for, and on one that has not."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.doctor import machine, places
from launcher.doctor.config import checks_of
from launcher.doctor.finding import Finding, format_findings, run_checks
from launcher.files import RUNS


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


def test_a_check_that_fails_itself_is_a_finding_and_hides_no_other():
    def breaks():
        raise OSError("no")

    found = run_checks([breaks, machine.python])
    assert [(one.state, one.what) for one in found] == [("fail", "breaks"), ("ok", "Python")]
    assert found[0].found == "OSError: no"


def test_the_table_has_advice_below_and_counts_at_the_end():
    text = format_findings([Finding("ok", "a", "1"), Finding("warn", "longer", "2", "do it")])
    assert text.splitlines() == [
        "ok    a       1",
        "warn  longer  2",
        "              -> do it",
        "",
        "1 ok, 1 warn, 0 fail",
    ]


def test_packages_that_are_missing_or_out_of_bounds_are_named_with_the_command(monkeypatch):
    wanted = ["numpy>=1.26", "torch>=99", "nowhere>=2", "never; extra == 'all'", "old; python_version < '3'"]
    monkeypatch.setattr(machine, "requires", lambda name: wanted)
    found = machine.packages()
    assert [(one.what, one.advice) for one in found] == [
        ("package torch", "pip install 'torch>=99'"),
        ("package nowhere", "pip install 'nowhere>=2'"),
    ]
    monkeypatch.setattr(machine, "requires", lambda name: wanted[:1])
    assert [(one.state, one.found) for one in machine.packages()] == [("ok", "all 1 within their bounds")]


def test_small_shared_memory_long_paths_and_few_files_are_told(monkeypatch):
    monkeypatch.setattr(machine.os.path, "isdir", lambda path: True)  # a Mac has no /dev/shm
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 64e6}))
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: "/x" * 40)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (256, 256))
    found = [*machine.shared_memory(), *machine.open_files()]
    assert states(found) == ["warn"] * 3
    assert [one.advice for one in found] == [
        "containers: --shm-size=8g; or data.workers=0",
        "sockets need a shorter path: TMPDIR=/tmp",
        "ulimit -n 4096",
    ]


def test_on_a_mac_its_gpu_is_said_to_be_idle_and_where_a_compiler_is_found(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = [*machine.devices(), *machine.compiler()]
    assert found[0].found.startswith("Apple's is not used; torch ") and found[1].advice == "xcode-select --install"


def test_a_proxy_that_swallows_what_stays_here_is_told(monkeypatch):
    for name in (*machine.PROXIES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert states(machine.environment()) == ["ok"]
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    ignored, proxy = machine.environment()
    assert "ACCELERATE_MIXED_PRECISION" in ignored.found and proxy.advice == "no_proxy=localhost,127.0.0.1"
    monkeypatch.setenv("no_proxy", "localhost,.example")
    assert states(machine.environment()) == ["ok", "ok"]


def test_a_folder_of_runs_that_cannot_be_written_is_told_and_nothing_is_left(in_tmp):
    assert states(places.runs_folder()) in (["ok"], ["warn"]) and not RUNS.exists()
    RUNS.write_text("a file")
    (found,) = places.runs_folder()
    assert found.state == "fail" and "cannot be written" in found.found


def test_a_place_of_outputs_that_cannot_be_is_told(monkeypatch):
    monkeypatch.delenv("WSSS_OUTPUTS", raising=False)
    assert places.outputs() == []
    monkeypatch.setenv("WSSS_OUTPUTS", "/scratch/runs")
    assert states(places.outputs()) == ["ok"]
    monkeypatch.setenv("WSSS_OUTPUTS", "http://store/runs")
    (found,) = places.outputs()
    assert found.state == "fail" and "object store" in found.found


def test_an_mlflow_server_that_does_not_answer_is_a_warning(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (found,) = places.mlflow()
    assert found.state == "warn" and "wsss track sync" in found.advice
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    assert states(places.mlflow()) == ["ok"]


def test_two_processes_add_up_or_their_last_word_is_told(in_tmp, monkeypatch):
    assert states(places.two_processes()) == ["ok"]
    assert not list(Path().iterdir())
    monkeypatch.setattr(places, "TWO_PROCESSES", "raise OSError('no interface')")
    (found,) = places.two_processes()
    assert (found.state, found.found) == ("fail", "OSError: no interface")


def test_a_config_that_cannot_start_says_why_and_one_that_can_what_it_reads(in_tmp, tiny_yaml):
    (check,) = checks_of(tiny_yaml("classify"), ["data.val=null"])
    found = check()
    assert [(one.state, one.what) for one in found[1:]] == [
        ("ok", "data.train"),
        ("warn", "data.val"),
        ("ok", "data.tune"),
    ]
    (check,) = checks_of(tiny_yaml("classify"), ["data.train=nowhere"])
    (told,) = check()
    assert told.state == "fail" and "nowhere" in told.found


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_ends_with_1_where_something_fails(in_tmp, monkeypatch, broken):
    monkeypatch.setattr(places, "two_processes", lambda: [Finding("fail" if broken else "ok", "two processes", "")])
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == broken
    assert {one["what"] for one in json.loads(done.stdout)} >= {"Python", "GPU", "runs", "two processes"}
