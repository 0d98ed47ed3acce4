"""`wsss train`, but the loss of rank 1 is NaN in step 4. Started by test_launched."""

import os
import sys
from pathlib import Path

from launcher.processes.launch import launch_command
from wsss.methods.msee import MSEE

plain = MSEE.forward


def forward(self, batch, step):
    losses = plain(self, batch, step)
    if step == 3 and os.environ.get("RANK") == "1":
        losses["loss"] = losses["loss"] * float("nan")
    return losses


MSEE.forward = forward

if "RANK" in os.environ:
    from launcher.errors import report_user_errors
    from launcher.train import main

    with report_user_errors():
        main(sys.argv[1:])
else:
    from launcher.config.file import load_config
    from launcher.processes.forward import run_and_forward

    yaml, *overrides = sys.argv[2:]
    argv, environment = launch_command(load_config(Path(yaml), overrides), "support.breaks_on_rank_1", sys.argv[2:])
    sys.exit(run_and_forward(argv, {**os.environ, **environment}))
