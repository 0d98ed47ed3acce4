"""Every shipped config loads, and its networks can be built."""

import pytest
import torch
from support.places import ROOT
from torch.overrides import TorchFunctionMode

from launcher.config.file import load_config
from launcher.config.options import options_of
from launcher.processes.buffers import refuse_unequal_state
from wsss.methods import METHODS
from wsss.methods.base import Frozen
from wsss.models import MODELS

NO_RUNS = ("studies", "accelerate", "kubernetes")
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in NO_RUNS)


def test_there_are_configs():
    assert len(CONFIGS) >= 6


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_loads_and_its_method_can_be_built_at_full_size(path):
    config = load_config(path)
    networks = [built_at_full_size(named) for named in (config.model, config.partner) if named is not None]
    arguments = networks[:1]
    if METHODS[config.method.name].needs_teacher:
        arguments.append(Frozen(MODELS["cnn"](1, timm_name="resnet10t")))
    method = METHODS[config.method.name](*arguments, *networks[1:], **options_of(config.method, METHODS))
    assert sum(p.numel() for p in method.parameters()) > 100_000
    refuse_unequal_state(method, processes=2)


class Undrawn(TorchFunctionMode):
    """Zeros in place of drawn values, which take a second for a ViT-B."""

    DRAWN = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_, torch.nn.init.trunc_normal_)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].zero_() if func in self.DRAWN else func(*args, **(kwargs or {}))


def built_at_full_size(named):
    """The network without its weights; parameters without memory, but for those that probe themselves."""
    options = options_of(named, MODELS)
    options |= dict.fromkeys(name for name in options if name.endswith("weights"))
    if named.name in ("vit", "frozen"):
        with torch.device("meta"):
            return MODELS[named.name](len(options.get("texts", ())) or 1, **options)
    with Undrawn():
        return MODELS[named.name](1, **options)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_begins_with_its_purpose_and_a_command_that_names_it(path):
    head = path.read_text().split("\nname:")[0]
    assert head.startswith("# ") and f"wsss train {path.relative_to(ROOT)}" in head
