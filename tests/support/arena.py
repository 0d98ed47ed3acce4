"""Training processes that die at a chosen call of the project's own code, and what they left behind.

A child is forked from a clean server that has imported everything, so that a trial costs little more than its steps.
It counts the calls that launcher/, shards/ and wsss/ make, of Python and of C functions alike, and kills itself with
SIGKILL at the n-th: in the middle of a step, a save, a rename, a line of metrics. The n-th is drawn from a phase of the
run (its start, one of its steps, saves, evaluations), each as likely, since calls are not spread evenly over them.
"""

import json
import multiprocessing.connection
import os
import random
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from support.server import Server, context

ROOMS = tuple(str(Path(__file__).parents[2] / room) + os.sep for room in ("launcher", "shards", "wsss"))
PHASES = ("fit", "train_step", "log", "save", "run_evaluation")  # functions of the Trainer that begin a phase
BOUND_S = 150  # until a process whose partner died must have ended by itself

MSEE = """
model:
  {name: toco, timm_name: vit_tiny_patch16_224, decoder_dim: 8, dilation: 1,
   timm_options: {img_size: 32, patch_size: 8, embed_dim: 16, depth: 3, num_heads: 2}}
method:
  {name: msee, crop_px: 16, crop_num: 2, projection_dim: 8, projection_out: 6, bottleneck: 4, par_iterations: 2,
   par_dilations: [1, 2], seg_from: 3, msee_from: 4, group_size: 2}
"""

SERVER = Server("launcher.train", "launcher.evaluation.judge_masks", "mlflow", "support.arena")


def trained(yaml: Path, overrides: list[str], folder: Path, environment: dict, dies_at: int | None) -> None:
    """Body of a child: train; die at the call of this number.

    Leaves calls_RANK.json: the numbers of the calls at which phases begin, and of the last one.
    """
    os.chdir(folder)
    os.environ.update(environment)
    if "CHAOS_SHOW" not in os.environ:
        with open(os.devnull, "w") as quiet:
            os.dup2(quiet.fileno(), 1)
            os.dup2(quiet.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    from launcher.tracking import tracker as tracking
    from launcher.train import main

    tracking.CLOSE_S = 0.0  # a run that ends does not wait for the MLflow that is not there

    count, begin = 0, [1]

    def counted(frame, event, _):
        nonlocal count
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(ROOMS):
            count += 1
            if event == "call" and frame.f_code.co_name in PHASES:
                begin.append(count)
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(counted)
    try:
        main([str(yaml), *overrides])
    finally:
        sys.setprofile(None)
        Path(f"calls_{os.environ.get('RANK', 0)}.json").write_text(json.dumps([*begin, count]))


def write_msee_yaml(path: Path, tiny: Path) -> Path:
    """The tiny YAML of `classify` with M-SEE and a network for it; all its losses have begun by step 5."""
    kept = [line for line in tiny.read_text().splitlines() if not line.startswith(("model:", "method:"))]
    path.write_text("\n".join(kept) + MSEE)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(yaml, overrides, folder, processes, dies: dict[int, int]) -> list[int]:
    """Train with so many processes; dies = {rank: number of the call at which it dies}. Waits for all to end.

    Returns:
        Exit codes by rank; -9 = killed.

    Raises:
        TimeoutError: a process did not end after another one died.
    """
    shared = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody answers there: metrics.jsonl is what counts
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children = []
    for rank in range(processes):
        environment = {**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})}
        wanted = [*overrides, f"launch.processes={processes}"]
        child = context.Process(target=trained, args=(yaml, wanted, folder, environment, dies.get(rank)))
        SERVER.start(child)
        children.append(child)
    deadline = time.monotonic() + BOUND_S
    while any(child.exitcode is None for child in children):
        multiprocessing.connection.wait([c.sentinel for c in children if c.exitcode is None], timeout=BOUND_S)
        if any(child.exitcode for child in children):  # what torch's elastic agent does when one fails
            for child in children:
                child.terminate()
            for child in children:
                child.join(max(0.0, deadline - time.monotonic()))
            break
    if stuck := [child for child in children if child.exitcode is None]:
        for child in stuck:
            child.kill()
            child.join()
        raise TimeoutError(f"{len(stuck)} of {processes} processes had not ended after {BOUND_S} s")
    return [child.exitcode for child in children]


@dataclass
class Count:
    """What the trials came to.

    Attributes:
        kills: processes killed.
        midway: of these, kills after which the run had to go on from a checkpoint between its first and last step.
        compared: runs that reached their end.
    """

    kills: int = 0
    midway: int = 0
    compared: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = f"{self.compared} finished runs compared, {len(self.failures)} failures"
        said = f"{self.kills} kills, {self.midway} of them midway, {ends}"
        return "\n".join([said, *self.failures])


def losses_of(run: Path) -> dict[int, dict[str, float]]:
    """{step: {loss: value}} of metrics.jsonl, without what depends on the clock. A step logged twice is an error."""
    from launcher.tracking.tracker import read_metrics

    found: dict[int, dict[str, float]] = {}
    for line in read_metrics(run):
        if "train/loss" in line:
            if line["step"] in found:
                raise ValueError(f"{run}: step {line['step']} is logged twice")
            of_clock = {"time", "train/images_per_s", *(name for name in line if name.startswith("system/"))}
            found[line["step"]] = {k: v for k, v in line.items() if k not in of_clock}
    return found


def difference(run: Path, reference: Path) -> str | None:
    """In what a finished run is not, bit for bit, the reference; None if in nothing."""
    import torch
    from safetensors.torch import load_file

    from launcher.run import steps

    if losses_of(run) != losses_of(reference):
        ours, theirs = losses_of(run), losses_of(reference)
        return f"losses differ at steps {[s for s in sorted({*ours, *theirs}) if ours.get(s) != theirs.get(s)]}"
    here, there = steps.newest_complete(run), steps.newest_complete(reference)
    if here.name != there.name:
        return f"ends at {here.name}, not at {there.name}"
    a, b = load_file(here / steps.MODEL), load_file(there / steps.MODEL)
    if unequal := [name for name in a if not torch.equal(a[name], b[name])]:
        return f"weights differ: {unequal[:3]}"
    a, b = (torch.load(f / steps.OPTIMIZER, weights_only=True)["state"] for f in (here, there))
    if not all(torch.equal(a[i][name], b[i][name]) for i in a for name in a[i]):
        return "optimizer states differ"
    return None


def slaughter(yaml: Path, folder: Path, *, processes: int, kills: int, seed: int, overrides=()) -> Count:
    """Kill a run at random calls and start it again until it has ended; again with new runs, until there were so many
    kills midway.

    Every run that reaches its end is compared with one that nobody touched.
    """
    from launcher.run import steps

    draw, count, runs = random.Random(seed), Count(), folder / "runs"
    codes = start(yaml, [*overrides, "name=whole"], folder, processes, {})
    if any(codes):
        raise RuntimeError(f"the undisturbed run ended with {codes}; set CHAOS_SHOW=1 to see why")
    phases = [json.loads((folder / f"calls_{rank}.json").read_text()) for rank in range(processes)]
    last = steps.step_number(steps.newest_complete(runs / "whole"))
    number, began = 0, False
    while count.midway < kills or began:
        run, began, dies = runs / f"cut{number}", True, {}
        if count.midway < kills:
            rank = draw.randrange(processes)
            phase = draw.randrange(len(phases[rank]) - 1)
            dies = {rank: draw.randint(phases[rank][phase], phases[rank][phase + 1])}
        try:
            codes = start(yaml, [*overrides, f"name={run.name}"], folder, processes, dies)
            if -signal.SIGKILL in codes:
                good = steps.checkpoints(run)
                count.kills += 1
                count.midway += bool(good) and 0 < steps.step_number(good[-1]) < last
                continue
            wrong = f"ended with {codes}" if any(codes) else difference(run, runs / "whole")
            count.compared += not any(codes)
        except TimeoutError as error:
            wrong = str(error)
        if wrong:
            count.failures.append(f"{run.name}, {dies}: {wrong}")
        number, began = number + 1, False
    return count
