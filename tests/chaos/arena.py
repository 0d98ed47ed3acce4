"""Training processes that die at a chosen call of the project's own code, and what they left behind.

A child is forked from a clean server that has imported everything, so that a trial costs little more than its steps.
It counts the calls that launcher/, shards/ and wsss/ make, of Python and of C functions alike, and kills itself with
SIGKILL at the n-th: in the middle of a step, a save, a rename, a line of metrics.
"""

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOMS = tuple(str(Path(__file__).parents[2] / room) + os.sep for room in ("launcher", "shards", "wsss"))
BOUND_S = 150  # until a process whose partner died must have ended by itself

MSEE = """
model:
  {name: toco, timm_name: vit_tiny_patch16_224, decoder_dim: 8, dilation: 1,
   timm_options: {img_size: 32, patch_size: 8, embed_dim: 16, depth: 3, num_heads: 2}}
method:
  {name: msee, crop_px: 16, crop_num: 2, projection_dim: 8, projection_out: 6, bottleneck: 4, par_iterations: 2,
   par_dilations: [1, 2], seg_from: 3, msee_from: 4, group_size: 2}
"""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["launcher.train", "launcher.validate_segmentation", "mlflow", "arena"])


def trained(yaml: Path, overrides: list[str], folder: Path, environment: dict, dies_at: int | None, calls) -> None:
    """Body of a child: train; die at the call of this number. `calls.value` ends as the number of calls."""
    os.chdir(folder)
    os.environ.update(environment)
    if "CHAOS_SHOW" not in os.environ:
        with open(os.devnull, "w") as quiet:
            os.dup2(quiet.fileno(), 1)
            os.dup2(quiet.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    from launcher.train import main

    count = 0

    def counted(frame, event, _):
        nonlocal count
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(ROOMS):
            count += 1
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(counted)
    try:
        main([str(yaml), *overrides])
    finally:
        sys.setprofile(None)
        calls.value = count


def write_msee_yaml(path: Path, tiny: Path) -> Path:
    """The tiny YAML of `classify` with M-SEE and a network for it; all its losses have begun by step 5."""
    kept = [line for line in tiny.read_text().splitlines() if not line.startswith(("model:", "method:"))]
    path.write_text("\n".join(kept) + MSEE)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ended:
    """Exit codes by rank (-9 = killed) and calls by rank (0 where it was killed)."""

    codes: list[int]
    calls: list[int]

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.codes


def start(yaml, overrides, folder, processes, dies: dict[int, int]) -> Ended:
    """Train with so many processes; dies = {rank: number of the call at which it dies}. Waits for all to end.

    Raises:
        TimeoutError: a process did not end after another one died.
    """
    shared = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody answers there: metrics.jsonl is what counts
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children, counters = [], []
    for rank in range(processes):
        environment = {**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})}
        counter = context.Value("q", 0)
        wanted = [*overrides, f"launch.processes={processes}"]
        child = context.Process(target=trained, args=(yaml, wanted, folder, environment, dies.get(rank), counter))
        child.start()
        children.append(child)
        counters.append(counter)
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
    return Ended([child.exitcode for child in children], [counter.value for counter in counters])


@dataclass
class Count:
    """What the trials came to."""

    kills: int = 0
    compared: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = f"{self.kills} kills, {self.compared} finished runs compared, {len(self.failures)} failures"
        return "\n".join([said, *self.failures])


def losses_of(run: Path) -> dict[int, dict[str, float]]:
    """{step: {loss: value}} of metrics.jsonl, without what depends on the clock. A step logged twice is an error."""
    from launcher.tracking import read_metrics

    found: dict[int, dict[str, float]] = {}
    for line in read_metrics(run):
        if "train/loss" in line:
            if line["step"] in found:
                raise ValueError(f"{run}: step {line['step']} is logged twice")
            found[line["step"]] = {k: v for k, v in line.items() if k not in ("time", "train/images_per_s")}
    return found


def difference(run: Path, reference: Path) -> str | None:
    """In what a finished run is not, bit for bit, the reference; None if in nothing."""
    import torch
    from safetensors.torch import load_file

    from launcher import checkpoint

    if losses_of(run) != losses_of(reference):
        ours, theirs = losses_of(run), losses_of(reference)
        return f"losses differ at steps {[s for s in sorted({*ours, *theirs}) if ours.get(s) != theirs.get(s)]}"
    here, there = checkpoint.latest(run), checkpoint.latest(reference)
    if here.name != there.name:
        return f"ends at {here.name}, not at {there.name}"
    a, b = load_file(here / checkpoint.MODEL), load_file(there / checkpoint.MODEL)
    if unequal := [name for name in a if not torch.equal(a[name], b[name])]:
        return f"weights differ: {unequal[:3]}"
    a, b = (torch.load(f / checkpoint.OPTIMIZER, weights_only=True)["state"] for f in (here, there))
    if not all(torch.equal(a[i][name], b[i][name]) for i in a for name in a[i]):
        return "optimizer states differ"
    return None


def slaughter(yaml: Path, folder: Path, *, processes: int, kills: int, seed: int, overrides=()) -> Count:
    """Kill a run at random calls and start it again until it has ended; again with new runs until there were `kills`.

    Every run that reaches its end is compared with one that nobody touched.
    """
    draw, count = random.Random(seed), Count()
    whole = start(yaml, [*overrides, "name=whole"], folder, processes, {})
    if any(whole.codes):
        raise RuntimeError(f"the undisturbed run ended with {whole.codes}; set CHAOS_SHOW=1 to see why")
    number, began = 0, False
    while count.kills < kills or began:
        name, began = f"cut{number}", True
        dies = {}
        if count.kills < kills:
            rank = draw.randrange(processes)
            dies = {rank: draw.randint(1, whole.calls[rank])}
        try:
            ended = start(yaml, [*overrides, f"name={name}"], folder, processes, dies)
        except TimeoutError as error:
            count.failures.append(f"{name}, {dies}: {error}")
            number, began = number + 1, False
            continue
        if ended.killed:
            count.kills += 1
        elif any(ended.codes):
            count.failures.append(f"{name}, {dies}: ended with {ended.codes}")
            number, began = number + 1, False
        else:
            count.compared += 1
            if different := difference(folder / "runs" / name, folder / "runs/whole"):
                count.failures.append(f"{name}: {different}")
            number, began = number + 1, False
    return count
