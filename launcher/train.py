"""`accelerate launch -m launcher.train CONFIG [section.key=value ...]`: config -> objects -> Trainer.fit."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.config.file import load_config
from launcher.errors import report_user_errors
from launcher.processes.group import leaving_group
from launcher.processes.signals import Stopped, exit_code_when_stopped
from launcher.training.run import train


def main(arguments: Sequence[str]) -> None:
    try:
        with leaving_group():
            train(load_config(Path(arguments[0]), arguments[1:]), arguments)
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(stopped, flush=True)
        sys.exit(exit_code_when_stopped())


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
