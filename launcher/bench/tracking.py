"""The share of a step that tracking takes: the same loop with and without it, in turns, in one run."""

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.tracking import tracker as tracking
from launcher.tracking.protocol import Tracker
from launcher.tracking.sinks import make_sink
from wsss.extras import is_installed

BLOCK = 10  # steps in a row with tracking, then as many without, so that other load of the machine affects both
SETTLE_S = 0.1
URI = "MLFLOW_TRACKING_URI"


def measure(*, steps: int, log_every: int, side_px: int, close_s: float = 5.0) -> dict[str, Any]:
    """Time steps with and without tracking, for TensorBoard and MLflow (a local store, an absent server, a silent
    server), if they are installed.

    Args:
        steps: of each kind, for each place.
        side_px: side of the square images of the timed small network; it determines how long a step takes.
        close_s: how long each tracker may wait at its end, which is not part of a step.

    Returns:
        for each place: share (time in `Tracker.log` per step time), ratio (median tracked step to median untracked
        one), step_ms, log_ms and longest_log_ms.
    """
    step = make_step(side_px)
    for _ in range(BLOCK):
        step()
    found: dict[str, Any] = {"steps": steps, "log_every": log_every}
    waits_s, tracking.CLOSE_S = tracking.CLOSE_S, close_s
    try:
        # an abandoned thread may still write its store there
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, serve_silence() as silent:
            places = [
                ("local sqlite", "mlflow", f"sqlite:///{folder}/mlflow.db"),
                ("absent server", "mlflow", "http://127.0.0.1:9"),
                ("server that never answers", "mlflow", silent),
                ("event files", "tensorboard", ""),
            ]
            for name, sink, uri in places:
                if not is_installed(sink):
                    continue
                with use_store(uri):
                    run = Path(folder) / name.replace(" ", "_")
                    run.mkdir()
                    tracker = tracking.RunTracker(run, sinks=[make_sink(sink)], experiment="bench", resumed_at=0)
                    found[name] = time_loop(step, tracker, steps=steps, log_every=log_every)
                    tracker.close()
    finally:
        tracking.CLOSE_S = waits_s
    return found


def time_loop(step: Callable[[], float], tracker: Tracker, *, steps: int, log_every: int) -> dict[str, float]:
    """Time blocks of steps with and without tracking, in turns; in milliseconds."""
    logs_s, tracked_s, plain_s = [], [], []
    for number in range(2 * steps):
        if number % (2 * BLOCK) == BLOCK:
            time.sleep(SETTLE_S)  # else the thread would still be sending during the untracked steps
        started = time.perf_counter()
        loss = step()
        if number // BLOCK % 2:
            plain_s.append(time.perf_counter() - started)
            continue
        if number % log_every == 0:
            at = time.perf_counter()
            tracker.log({f"train/{name}": loss for name in ("loss", "class_loss", "align_loss", "lr", "rate")}, number)
            logs_s.append(time.perf_counter() - at)
        tracked_s.append(time.perf_counter() - started)
    return {
        "share": sum(logs_s) / sum(tracked_s),
        "ratio": statistics.median(tracked_s) / statistics.median(plain_s),
        "step_ms": 1000 * statistics.median(plain_s),
        "log_ms": 1000 * statistics.median(logs_s),
        "longest_log_ms": 1000 * max(logs_s),
    }


def make_step(side_px: int) -> Callable[[], float]:
    """One training step of a small network on the CPU; returns its loss."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    image_B3HW = torch.rand(8, 3, side_px, side_px)

    def step() -> float:
        loss = network(image_B3HW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


@contextmanager
def use_store(uri: str) -> Iterator[None]:
    """Set MLflow's store inside the block, and restore MLflow's global state afterwards."""
    before = os.environ.get(URI)
    os.environ[URI] = uri
    try:
        yield
    finally:
        os.environ.pop(URI, None)
        if before is not None:
            os.environ[URI] = before


@contextmanager
def serve_silence() -> Iterator[str]:
    """A loopback server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def format_times(found: dict[str, Any]) -> str:
    lines = [f"{found['steps']} steps each, tracked and not in turns, metrics sent every {found['log_every']}"]
    for name, row in found.items():
        if isinstance(row, dict):
            lines.append(
                f"  {name:26s} tracking takes {100 * row['share']:.2f} % of a step of {row['step_ms']:.1f} ms; "
                f"tracked to untracked {row['ratio']:.3f}; "
                f"one log {row['log_ms']:.2f} ms, longest {row['longest_log_ms']:.2f} ms"
            )
    return "\n".join(lines)
