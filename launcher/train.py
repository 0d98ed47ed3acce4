"""`accelerate launch -m launcher.train CONFIG [section.key=value ...]`: config -> objects -> Trainer.fit."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.config.file import load_config
from launcher.errors import told
from launcher.processes.group import group_left
from launcher.processes.signals import Stopped, code_of_stop
from launcher.training.run import train


def main(arguments: Sequence[str]) -> None:
    try:
        with group_left():
            train(load_config(Path(arguments[0]), arguments[1:]))
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(stopped, flush=True)
        sys.exit(code_of_stop())


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
