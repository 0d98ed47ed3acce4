"""The folder of runs, WSSS_OUTPUTS, MLflow, ports, and whether two processes find each other."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from launcher.doctor.finding import Finding
from launcher.files import OUTPUTS, RUNS, take_lock, temporary_name
from launcher.processes.surroundings import find_ours
from shards.places import remove, require_store, write_at
from shards.remote import is_url, join, place_of
from shards.schema import DataError

DISK_GB, ANSWER_S, TOGETHER_S = 10, 5, 60

TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[1]), world_size=2,
                        timeout=timedelta(seconds=30))
value = torch.ones(1)
dist.all_reduce(value)
dist.destroy_process_group()
sys.exit(value.item() != 2)
"""


def runs_folder() -> list[Finding]:
    """Whether it can be written to and locked, and has room."""
    folder, missing = RUNS, not RUNS.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_name(folder / "doctor") as file:
            file.write_text("?")
            with file.open("a+") as opened:
                held = take_lock(opened.fileno(), of_process=True)
    except OSError as error:
        return [
            Finding(
                "fail",
                "runs",
                f"{folder.absolute()} cannot be written: {error}",
                "start from a folder that can be written",
            )
        ]
    finally:
        if missing and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    free_gb = shutil.disk_usage(folder if folder.exists() else folder.absolute().parent).free / 1e9
    advice = "" if free_gb >= DISK_GB else "a checkpoint of ViT-B takes 1.1 GB, and train.keep of them are kept"
    found = [Finding("warn" if advice else "ok", "runs", f"{folder.absolute()}, {free_gb:,.0f} GB free", advice)]
    if held is None:
        found.append(
            Finding("warn", "locks", "none on this file system", "do not start a run twice: nothing would notice")
        )
    return found


def outputs() -> list[Finding]:
    """Whether files can be written and removed at the place that WSSS_OUTPUTS names, if it is set."""
    asked = os.environ.get(OUTPUTS, "").strip()
    if not asked:
        return []
    try:
        place = place_of(asked)
        require_store(place)
        probe = join(place, f".doctor.{secrets.token_hex(4)}")
        if is_url(place):
            write_at(probe, "?", tries=1)
            remove(probe)
    except DataError as error:
        return [Finding("fail", "outputs", str(error), f"fix it, or unset {OUTPUTS}")]
    return [Finding("ok", "outputs", f"jobs write to {place}")]


def mlflow() -> list[Finding]:
    """The server that MLFLOW_TRACKING_URI names, if it is set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return [Finding("ok", "MLflow", f"{uri or 'a database beside the runs'}")]
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_S) as answer:
            return [Finding("ok", "MLflow", f"{uri} answers {answer.status}")]
    except urllib.error.HTTPError as error:
        return [Finding("warn", "MLflow", f"{uri} answers {error.code} {error.reason}", "MLFLOW_TRACKING_TOKEN?")]
    except OSError as error:
        advice = "runs continue without it; wsss track sync sends what was kept"
        return [Finding("warn", "MLflow", f"{uri}: {error}", advice)]


def port() -> list[Finding]:
    """A free port, at which the processes of one machine meet."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return [Finding("ok", "ports", "free ones on 127.0.0.1")]
    except OSError as error:
        return [Finding("fail", "ports", str(error), "several processes cannot meet: launch.processes=1")]


def two_processes() -> list[Finding]:
    """Two processes add up a number, as those of a run do at every step."""
    with temporary_name(Path.cwd() / "doctor") if os.access(".", os.W_OK) else temporary_name(Path("/tmp/d")) as meet:
        environment = {**os.environ, **find_ours(), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", TWO_PROCESSES]
        started = [
            subprocess.Popen([*command, str(rank), str(meet.absolute())], stderr=subprocess.PIPE, env=environment)
            for rank in range(2)
        ]
        try:
            said = [process.communicate(timeout=TOGETHER_S)[1].decode(errors="replace") for process in started]
        except subprocess.TimeoutExpired:
            said = [f"no answer in {TOGETHER_S} s"]
        finally:
            for process in started:
                process.kill()
    if all(process.returncode == 0 for process in started):
        return [Finding("ok", "two processes", "added up over gloo")]
    last = next((line for text in said for line in reversed(text.strip().splitlines()) if line), "no word")
    loop = "lo0" if sys.platform == "darwin" else "lo"
    advice = f"GLOO_SOCKET_IFNAME={loop}; until it works: launch.processes=1"
    return [Finding("fail", "two processes", last[:200], advice)]
