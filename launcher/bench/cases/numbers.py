"""Whether a step gives the same results here as on the CPU and each time, and whether the host waits for the device."""

import os
import traceback
from dataclasses import replace

import torch

from launcher.bench.stage import PRECISIONS, Found, Stage
from launcher.config.sections import Precision
from launcher.processes.precision import in_precision


def waits(stage: Stage) -> Found:
    """Whether, and where, a step makes the host wait for the device."""
    if not stage.cuda:
        return {"skipped": "needs a GPU"}
    found = Found()
    for name, px in (("msee", 224), ("toco", 224), ("distill", 224), ("classify", 224), ("affinity", 256)):
        update = stage.update(*stage.method(name, 2, px), "bf16")
        update()
        stage.wait()
        torch.cuda.set_sync_debug_mode("error")
        try:
            update()
            found[name] = "none"
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            found[name] = f"{error}: " + " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def parity(stage: Stage) -> Found:
    """One M-SEE step here and on the CPU: largest relative difference of a loss, and cosine of the gradients."""
    runs: dict[str, tuple[torch.device, Precision]] = {"cpu": (torch.device("cpu"), "ieee")}
    runs |= {precision: (stage.device, precision) for precision in PRECISIONS}
    results = {}
    for name, (device, precision) in runs.items():
        method, batch = replace(stage, device=device, smoke=True).method("msee", 2, stage.size(224, 64))
        with in_precision(precision, device.type):
            losses = method(batch, 10)
        losses["loss"].backward()
        flat = torch.cat([p.grad.flatten().double().cpu() for p in method.parameters() if p.grad is not None])
        results[name] = {part: loss.item() for part, loss in losses.items()}, flat
    found, (expected, gradient) = Found(), results["cpu"]
    for name, (losses, flat) in results.items():
        off = {part: abs(loss - expected[part]) / max(abs(expected[part]), 1e-6) for part, loss in losses.items()}
        worst = max(off, key=off.__getitem__)
        cosine = torch.nn.functional.cosine_similarity(flat, gradient, dim=0).item()
        found[name] = {"gradient_cosine": round(cosine, 7), "worst": worst, "off": off[worst], "loss": off["loss"]}
    return found


def determinism(stage: Stage) -> Found:
    """Whether a step done twice is bit-equal, with and without deterministic algorithms, and what those cost."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = Found()
    for name, classes in (("msee", 20), ("distill", 1), ("classify", 1)):
        for wanted in (False, True):
            torch.use_deterministic_algorithms(wanted, warn_only=True)
            gradients = []
            for _ in range(2):
                method, batch = stage.method(name, 2, stage.size(224, 64), classes)
                torch.manual_seed(0)
                with in_precision("bf16", stage.device.type):
                    loss = method(batch, 10)["loss"]
                loss.backward()
                gradients.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
            equal, off = torch.equal(*gradients), (gradients[0] - gradients[1]).abs().max().item()
            row = stage.clock(stage.update(*stage.method(name, 2, stage.size(224, 64), classes), "bf16"), 6, 2)
            found[f"{name}{', deterministic' if wanted else ''}"] = {"equal": equal, "largest difference": off, **row}
    torch.use_deterministic_algorithms(False)
    return found


def graph_equal(stage: Stage) -> Found:
    """Whether the weights after eight deterministic updates with and without a CUDA graph are bit-equal."""
    if not stage.cuda:
        return {"skipped": "needs a GPU"}
    found = Found()
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name, classes in (("msee", 20), ("distill", 1), ("classify", 1)):
        weights = []
        for graph in (False, True):
            method, batch = stage.method(name, 2, 224, classes)
            update = stage.update(method, batch, "bf16", graph=graph)
            for step in range(8):
                torch.manual_seed(step)
                batch["image"].copy_(stage.photographs(2, 224))
                update()
            weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
        off = (weights[0] - weights[1]).abs().max().item()
        found[name] = {"equal": torch.equal(*weights), "largest difference": off}
    torch.use_deterministic_algorithms(False)
    return found
