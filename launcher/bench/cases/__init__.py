"""The cases of `wsss bench all`, the most informative first: name -> estimated seconds on an H100, and the function."""

from collections.abc import Callable

from launcher.bench.cases import kernels, machine, numbers, steps, training
from launcher.bench.stage import Found, Stage

CASES: dict[str, tuple[float, Callable[[Stage], Found]]] = {
    "machine": (3, machine.machine),
    "ceilings": (8, machine.ceilings),
    "energy": (15, kernels.energy),
    "par": (15, kernels.par),
    "step_msee_voc": (30, steps.step_msee_voc),
    "waits": (15, numbers.waits),
    "profile": (15, steps.profile),
    "parity": (15, numbers.parity),
    "step_msee_coco": (20, steps.step_msee_coco),
    "graphed": (30, steps.graphed),
    "graph_equal": (10, numbers.graph_equal),
    "training": (60, training.training),
    "features": (150, training.features),
    "one_rank": (15, training.one_rank),
    "step_smoke": (25, steps.step_smoke),
    "determinism": (15, numbers.determinism),
    "inference": (20, steps.inference),
    "batch_sweep": (40, steps.batch_sweep),
    "compiled": (60, steps.compiled),
    "energy_grid": (60, kernels.energy_grid),
}
