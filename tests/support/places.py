"""Where the tree lies, the environment in which tests start its programs, and what these start."""

import os
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}:{ROOT / 'tests'}"  # in this order: tests/ has folders named as the packages


def environment(extra):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "OMP"))}
    return {**clean, **extra, "PYTHONPATH": PYTHONPATH}


def children(pid):
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []
