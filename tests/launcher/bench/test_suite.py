import json
import subprocess
import sys

import pytest

from launcher.bench.cases import CASES
from launcher.bench.suite import as_markdown, ask, run_suite
from launcher.errors import ConfigError

RUN = ["machine", "ceilings", "energy", "energy_grid", "par", "parity", "one_rank"]


def test_cases_run_at_toy_sizes_and_leave_a_line_each(tmp_path):
    rows = run_suite(tmp_path, device="cpu", minutes=5, only=RUN, smoke=True)
    assert [row["case"] for row in rows] == RUN
    assert all(row["found"] for row in rows), [row for row in rows if "found" not in row]
    assert [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()] == rows
    found = {row["case"]: row["found"] for row in rows}
    assert found["parity"]["cpu"]["gradient_cosine"] == 1 and found["parity"]["bf16"]["gradient_cosine"] > 0.99
    assert all(value["error"] < 1e-4 for value in found["energy"].values())
    page = (tmp_path / "bench.md").read_text()
    assert all(f"## {name}\n" in page for name in RUN) and "| bf16 |" in page


@pytest.mark.slow
@pytest.mark.timeout(1200)  # CPUs take minutes for a run of float16
def test_every_case_runs_at_toy_sizes(tmp_path):
    rows = run_suite(tmp_path, device="cpu", minutes=20, only=[], smoke=True)
    assert [row["case"] for row in rows] == list(CASES)
    assert all("found" in row for row in rows), [row for row in rows if "found" not in row]


def test_cases_that_do_not_fit_are_skipped_by_name(tmp_path):
    rows = run_suite(tmp_path, device="cpu", minutes=0, only=["machine"], smoke=False)
    assert rows == [{"case": "machine", "skipped": f"0 s are left, it takes about {CASES['machine'][0]}"}]
    assert "skipped: 0 s are left" in (tmp_path / "bench.md").read_text()


def test_a_case_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no case nothing; there are machine, ceilings"):
        run_suite(tmp_path, device="cpu", minutes=1, only=["nothing"], smoke=True)


@pytest.mark.parametrize(
    ("program", "seconds", "why"),
    [
        ("import os; input(); os._exit(7)", 20, "the worker ended with 7"),
        ("input(); print('noise', flush=True); input()", 0.5, "no answer in 0 s"),
    ],
)
def test_a_worker_that_dies_or_hangs_costs_its_case_alone(program, seconds, why):
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True)
    row = ask(worker, "energy", seconds)
    worker.kill()
    worker.wait()
    assert row["case"] == "energy" and why in row["died"]


def test_what_was_found_is_a_table_and_lists():
    rows = [{"case": "x", "found": {"a": {"ms": 1.5, "error": 0.1}, "b": {"ms": 2.5}, "top": [["gemm", 3]], "n": 4}}]
    page = as_markdown([*rows, {"case": "y", "error": "ValueError: no"}])
    for line in (
        "| | ms | error |",
        "| a | 1.5 | 0.1 |",
        "| b | 2.5 |  |",
        "- gemm | 3",
        "- n: 4",
        "error: ValueError: no",
    ):
        assert line in page
