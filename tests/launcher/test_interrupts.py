"""Ctrl-C and SIGTERM: one line, their exit code, in time, whatever becomes of the exception; nothing goes on below."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from support.places import ROOT

COMMAND = """
import multiprocessing, sys, time
from launcher import interrupts
from launcher.interrupts import ending_in_time

class Deaf:
    def __del__(self):
        wait()

def wait():
    print("up", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    how = sys.argv[1]
    with ending_in_time():
        if how == "works":
            multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)).start()
            wait()
        if how == "loses it in a destructor":
            interrupts.GRACE_S = 0.3
            Deaf()
        if how == "imports":
            exec("try: wait()\\nfinally: pass")
        if how == "aborts an import":
            import aborting
        if how == "does not end":
            try:
                wait()
            finally:
                wait()
    time.sleep(60)
"""


ABORTING = """
import os, time
try:
    print("up", flush=True)
    time.sleep(60)
except BaseException:  # as C++ does that does not expect one
    os.abort()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "command.py"
    path.write_text(COMMAND)
    (path.parent / "aborting.py").write_text(ABORTING)
    return path


@pytest.mark.parametrize(
    ("how", "number", "code", "name"),
    [
        ("works", signal.SIGINT, 130, "Ctrl-C"),
        ("works", signal.SIGTERM, 143, "SIGTERM"),
        ("loses it in a destructor", signal.SIGINT, 130, "Ctrl-C"),
        ("imports", signal.SIGINT, 130, "Ctrl-C"),
        ("aborts an import", signal.SIGINT, 130, "Ctrl-C"),
        ("aborts an import", signal.SIGTERM, 143, "SIGTERM"),
        ("does not end", signal.SIGINT, 130, "Ctrl-C"),
    ],
)
def test_a_command_ends_with_one_line_and_nothing_goes_on_below_it(command, how, number, code, name):
    process = subprocess.Popen(
        [sys.executable, command, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run where it is ignored
    )
    assert process.stdout.readline() == "up\n"
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    if how == "does not end":
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)  # the second one ends it at once
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert said.split("\n") == [
        "",
        f"stopped by {name}; what is finished is kept, and the same command does the rest",
        "",
    ]
    assert len(below) >= (how == "works") and not psutil.wait_procs(below, timeout=30)[1]


STUDY = """
import os, sys
from launcher.interrupts import ending_in_time
from launcher.processes.forward import run_below

with ending_in_time():
    run_below([sys.executable, *sys.argv[1:]], os.environ)
    print("the next command")
"""


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_study_leaves_it_to_its_command_to_end_and_to_tell(command, number, code, name):
    process = subprocess.Popen(
        [sys.executable, "-c", STUDY, command, "works"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "up\n"
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # as a terminal does
    printed, said = process.communicate(timeout=30)
    assert process.returncode == code and printed == ""
    assert said.split("\n") == [
        "",
        f"stopped by {name}; what is finished is kept, and the same command does the rest",
        "",
    ]
    assert len(below) >= 2 and not psutil.wait_procs(below, timeout=30)[1]


def test_a_signal_that_somebody_handles_or_ignores_stays_theirs():
    from launcher.interrupts import ending_in_time, interrupt

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ending_in_time():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is interrupt
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
