"""A print ends nothing: the terminal is gone, the reader is dead, the disk is full, the output is closed."""

import os
import pty
import subprocess
import sys

import pytest
from support.places import environment

LONG_WORK = """
import sys, time
from launcher.errors import report_user_errors
with report_user_errors():
    from launcher.progress import Progress
    from launcher.tracking.journal import warn
    sys.stdin.readline()  # until the other end is gone
    with Progress(3, "train", "step") as progress:
        for step in range(3):
            time.sleep(0.15)  # longer than a bar waits between two pictures
            print(f"step {step}", flush=True)
            warn("a line above the bar")
            progress.advance()
    open("done", "w").close()
"""
COMMAND = """
import sys
from launcher import __main__ as wsss
def app():
    print("figures")
    sys.exit(int(sys.argv[2]))
wsss.app = app
wsss.main()
"""


def start(code, *words, extra=None, **streams):
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment(extra or {}), stdin=subprocess.PIPE, text=True, **streams
    )


def end(process):
    process.communicate("go\n", timeout=60)
    return process.returncode


def test_work_outlives_its_terminal(in_tmp):
    ours, theirs = pty.openpty()
    process = start(LONG_WORK, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    assert end(process) == 0 and (in_tmp / "done").exists()


def test_a_terminal_that_does_not_say_its_width_shows_a_bar(in_tmp):
    """As that of `docker exec -t` or of a scheduler."""
    ours, theirs = pty.openpty()
    process = start(LONG_WORK, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert end(process) == 0
    assert b"train: " in os.read(ours, 10_000) and (in_tmp / "done").exists()


def test_work_outlives_a_dead_tee(in_tmp):
    process = start(LONG_WORK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.wait(60) == 0 and (in_tmp / "done").exists()


def test_work_outlives_a_full_disk_under_its_log(in_tmp):
    with open("/dev/full", "w") as full:
        assert end(start(LONG_WORK, stdout=full, stderr=full)) == 0
    assert (in_tmp / "done").exists()


def test_work_outlives_closed_outputs(in_tmp):
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", LONG_WORK],
        env=environment({}), stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert end(process) == 0 and (in_tmp / "done").exists()


def test_a_pipe_that_does_not_wait_loses_nothing_to_a_slow_reader(in_tmp):
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = (
        "from launcher.streams import outlive_output\noutlive_output()\n"
        "for line in range(20000): print('a line of some length', line)"
    )
    process = start(code, stdout=write)
    os.close(write)
    with open(read) as file:
        assert sum(1 for _ in file) == 20000
    assert end(process) == 0


def test_a_name_that_the_locale_has_no_signs_for_is_spelled_out(in_tmp):
    code = "from launcher.streams import outlive_output\noutlive_output()\nprint('Łask α')"
    process = start(code, extra={"PYTHONIOENCODING": "latin-1"}, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0].strip().startswith("\\u0141") and process.returncode == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [(["bench", "0"], 1), (["train", "0"], 0), (["infer", "0"], 0), (["train", "3"], 3), (["bench", "3"], 3)],
)
def test_lost_output_is_a_failure_where_it_was_the_product(words, code, in_tmp):
    with open("/dev/full", "w") as full:
        process = start(COMMAND, *words, stdout=full, stderr=subprocess.PIPE)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert ("this command's output could not be written: [Errno 28]" in said) == (words == ["bench", "0"])


def test_nothing_changes_where_output_works(in_tmp):
    process = start(COMMAND, "bench", "0", stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == "figures\n" and process.returncode == 0
