"""The networks by name. A builder's keyword-only arguments are the options of `model:` in the YAML."""

from collections.abc import Callable

from torch import nn

from wsss.models.cnn import build_cnn
from wsss.models.vit import build_vit

MODELS: dict[str, Callable[..., nn.Module]] = {"vit": build_vit, "cnn": build_cnn}
