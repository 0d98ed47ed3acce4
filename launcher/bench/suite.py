"""`wsss bench all`: everything worth knowing about a machine, the most informative first, within a budget of minutes.

Each case runs in a worker process that is replaced if the case hangs, crashes or runs out of memory. The result of a
case is written at once as a line of OUT/bench.jsonl; OUT/bench.md is a readable version of all results. A case that
does not fit into the time left is skipped and reported as such.
"""

import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.files import write_whole

RESULT = "result: "  # begins a worker's line with a result
PATIENCE = 3  # a case may take this times its estimate, plus a minute


def run_suite(out: Path, *, device: str, minutes: float, only: Sequence[str], smoke: bool) -> list[dict[str, Any]]:
    """Run the cases; returns their rows.

    Raises:
        ConfigError: there is no such case.
    """
    from launcher.bench.cases import CASES

    if unknown := set(only) - set(CASES):
        raise ConfigError(f"--only: no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    out.mkdir(parents=True, exist_ok=True)
    until, rows = time.monotonic() + 60 * minutes, list[dict[str, Any]]()
    with (out / "bench.jsonl").open("a") as file, (out / "stderr.txt").open("a") as errors:
        worker = None
        for name in dict.fromkeys(only or CASES):
            left, estimate = max(until - time.monotonic(), 0), CASES[name][0]
            if left < estimate and not smoke:
                row: dict[str, Any] = {"case": name, "skipped": f"{left:.0f} s are left, it takes about {estimate:.0f}"}
            else:
                worker = worker or start_worker(device, smoke, errors)
                row = ask(worker, name, min(left, 60 + PATIENCE * estimate))
                if "died" in row:
                    worker.kill()
                    worker = None
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
            outcome = next((f"{key}: {row[key]}" for key in ("skipped", "died", "error") if key in row), "done")
            print(f"{name:16s} {row.get('seconds', 0):6.1f} s  {outcome}", flush=True)
        if worker is not None:
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()
    write_whole(out / "bench.md", as_markdown(rows))
    return rows


def start_worker(device: str, smoke: bool, errors: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "launcher.bench.suite", device, *(["smoke"] if smoke else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)


def ask(worker: subprocess.Popen, name: str, seconds: float) -> dict[str, Any]:
    """The worker's row for a case, or a row that says why there is none."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        print(name, file=worker.stdin, flush=True)
    except BrokenPipeError:
        return {"case": name, "died": f"the worker ended with {worker.wait()}"}
    until = time.monotonic() + seconds
    said = select.poll()  # select.select fails in a process with a thousand open files
    said.register(worker.stdout, select.POLLIN)
    while said.poll(1e3 * max(until - time.monotonic(), 0)):
        line = worker.stdout.readline()
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
        if not line:
            return {"case": name, "died": f"the worker ended with {worker.wait()}; see stderr.txt"}
    return {"case": name, "died": f"no answer in {seconds:.0f} s; the worker was replaced"}


def work(device: str, smoke: bool) -> None:
    """The work of a worker: it reads names of cases and writes a line for each."""
    import torch

    from launcher.bench.cases import CASES
    from launcher.bench.stage import Stage

    stage = Stage(torch.device(device), smoke)
    for line in sys.stdin:
        name, began = line.strip(), time.perf_counter()
        row: dict[str, Any] = {"case": name}
        try:
            row["found"] = CASES[name][1](stage)
        except Exception as error:  # a failed case must not prevent the others
            at = traceback.format_exc(limit=-3)
            row |= {"error": f"{type(error).__name__}: {error}"[:800], "at": at[-1200:]}
        if stage.cuda:
            torch.cuda.empty_cache()
        row["seconds"] = round(time.perf_counter() - began, 1)
        print(RESULT + json.dumps(row), flush=True)


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Every row as a section; results with the same columns as a table."""
    parts = ["# What `wsss bench all` found\n"]
    for row in rows:
        parts.append(f"\n## {row['case']}\n")
        found = row.get("found")
        if found is None:
            parts.append("\n".join(f"{key}: {row[key]}" for key in ("skipped", "died", "error", "at") if key in row))
            continue
        timed = {name: value for name, value in found.items() if isinstance(value, dict)}
        columns = list(dict.fromkeys(column for value in timed.values() for column in value))
        if timed:
            parts.append("| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
            for name, value in timed.items():
                parts.append(f"| {name} | " + " | ".join(str(value.get(column, "")) for column in columns) + " |")
        for name, value in found.items():
            if name in timed:
                continue
            if isinstance(value, list):
                parts.append(f"\n{name}:\n")
                parts += [f"- {' | '.join(map(str, entry))}" for entry in value]
            else:
                parts.append(f"- {name}: {value}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    work(sys.argv[1], "smoke" in sys.argv[2:])
