"""Where the tree lies, the environment in which tests start its programs, and what these start."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}:{ROOT / 'tests'}"  # in this order: tests/ has folders named as the packages


def environment(extra):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "OMP"))}
    return {**clean, **extra, "PYTHONPATH": PYTHONPATH}


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]
