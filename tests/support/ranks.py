"""Started by test_two_processes under `accelerate launch`: train, then write down what this rank ended with."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from launcher.config.file import load_config
from launcher.training.run import train

method = train(load_config(Path(sys.argv[1]), sys.argv[2:]))
state = method.state_dict()
facts = {
    "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    "sha256": hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest(),
}
Path(f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(facts))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
