"""Several ranks of one run in processes of one forked server, which pays the seconds of the imports once.

`trained` runs in each rank: one training after another in the same process group, each with its losses, gradient
lengths and sample keys per step. No launcher, no tracker: what those add is tested elsewhere.
"""

import importlib
import os
import socket
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from support.server import Server, context

SERVER = Server("torch", "timm", "accelerate", "launcher.train", "deepspeed")
LIMIT_S = float(os.environ.get("TOGETHER_S", 280))


def together(ranks, function, *arguments):
    """[what function(*arguments) returned in each rank]; raises what a rank raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    processes = [
        context.Process(target=in_rank, args=(queue, rank, ranks, port, os.getcwd(), function, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        SERVER.start(process)
    try:
        answers = dict(queue.get(timeout=LIMIT_S)[:2] for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [answer for answer in answers.values() if isinstance(answer, str)]
    assert not failed, failed[0]
    return [answers[rank] for rank in range(ranks)]


def in_rank(queue, rank, ranks, port, folder, function, arguments):
    """What a launcher would set, then the function."""
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(1)
    try:
        queue.put((rank, function(*arguments)))
    except BaseException:
        queue.put((rank, f"rank {rank}: {traceback.format_exc()}"))


def trained(path, runs):
    """[{losses, norms, keys, sum, state}] of several trainings from one YAML, each given by its overrides.

    `sum` is that of the weights' magnitudes, `state` {buffer: sum}.

    An override `nan@STEP` makes rank 1's loss not finite at that step; the answer then has the error as `error`. For
    `recorded@`, `ddp@` and `unequal@` see `bent`.
    """
    from accelerate.state import AcceleratorState

    import launcher.training.run
    from launcher.config.file import load_config
    from launcher.errors import RunError
    from launcher.training.inputs import Inputs
    from launcher.training.update import Update

    without_shm()
    said = []
    plain_batches, plain_guard = Inputs.batches_from, Update.guard
    for overrides in runs:
        AcceleratorState._reset_state(True)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        facts = {"losses": [], "norms": [], "keys": []}
        nan_at = next((int(text.partition("@")[2]) for text in overrides if text.startswith("nan@")), None)

        def batches(self, step, rank, ranks, facts=facts, nan_at=nan_at):
            def noted(begun):  # before the first step, as a loader draws a number when it is begun
                for number, batch in enumerate(begun):
                    facts["keys"].append(list(batch["key"]))
                    if rank == 1 and step + number == nan_at:
                        batch = {**batch, "image_label": batch["image_label"] * float("nan")}
                    yield batch

            return noted(plain_batches(self, step, rank=rank, ranks=ranks))

        def guard(self, step, norm, facts=facts):
            facts["norms"].append(float(norm))
            plain_guard(self, step, norm)

        Inputs.batches_from, Update.guard = batches, guard
        launcher.training.run.begin_run = lambda *_, facts=facts: Notes(facts)
        try:
            with bent(overrides):
                method = launcher.training.run.train(load_config(Path(path), [t for t in overrides if "@" not in t]))
            facts["sum"] = sum(float(p.detach().double().abs().sum()) for p in method.parameters())
            facts["state"] = {name: float(buffer.double().sum()) for name, buffer in method.named_buffers()}
        except RunError as error:
            facts["error"] = str(error)
        said.append(facts)
    return said


def without_shm():
    """DeepSpeed would compile its shared-memory reduction for half a minute first; gloo does the same sums."""
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # as an attribute it is torch itself


@contextmanager
def bent(overrides):
    """Inside, `recorded@`: the trainer takes the way of steps that become graphs, which are none here; `ddp@`: that of
    GPUs without a graph; `unequal@`: the ranks are given unequal initial weights."""
    from launcher.processes import zero
    from launcher.training import run, update

    prepare, build = zero.prepare, run.build_method_and_optimizer

    def built(inputs, accelerator):
        method, optimizer = build(inputs, accelerator)
        for parameter in method.parameters():
            parameter.data += accelerator.process_index
        return method, optimizer

    patches = {
        "recorded@": [(update, "is_recorded", lambda *_, **__: True), (update, "GraphedGradient", NoGraph)],
        "ddp@": [
            (zero, "prepare", lambda *given, wrap: prepare(*given, wrap=True)),
            (update, "SharedGradient", lambda parameters: None),
        ],
        "unequal@": [(run, "build_method_and_optimizer", built)],
    }
    with ExitStack() as stack:
        for where, name, instead in (patch for one in overrides for patch in patches.get(one, ())):
            stack.enter_context(mock.patch.object(where, name, instead))
        yield


class NoGraph:
    """What a GraphedGradient does without a GPU."""

    def __init__(self, gradient, phase_of):
        self.gradient = gradient

    def __call__(self, batch, step):
        return self.gradient(batch, step)


class Notes:
    """A tracker that keeps the losses."""

    def __init__(self, facts):
        self.facts = facts

    def log(self, metrics, step):
        if "train/loss" in metrics:
            self.facts["losses"].append(metrics["train/loss"])

    def image(self, *_): ...

    def artifact(self, *_): ...

    def close(self, *_):
        return True
