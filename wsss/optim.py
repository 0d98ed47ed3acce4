"""Parameter groups and the learning rate of a step."""

from timm.models import group_parameters
from torch import nn

UNDECAYED = ("pos_embed", "cls_token", "reg_token")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    new_lr_factor: float = 1.0,
    head_lr_factor: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups by weight decay and learning rate.

    Args:
        decay_all: decay everything, as ToCo does; else not norms, biases, tokens and position tables: only matrices.
        new_lr_factor: of the learning rate of layers that have no initial weights: all outside a `backbone`. Each
            group carries its own as `lr_factor`.
        head_lr_factor: the same of the classifier alone, the `head` that each network has; None = new_lr_factor.
        layer_decay: of the learning rate of each layer of a `backbone` relative to the next one; its last has all of
            it. What a layer is, timm says for each network.

    Raises:
        ValueError: a layer_decay without a trained backbone of timm, a new_lr_factor without trained layers outside of
            it, a head_lr_factor without a classifier that is trained.
    """
    of_layers = layer_factors(module, layer_decay) if layer_decay != 1 else {}
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if of_layers and not of_layers.keys() & trained.keys():
        raise ValueError("train.layer_decay has no effect: this method trains no layer of a backbone; set it to 1")
    new = [name for name in trained if "backbone" not in name.split(".")]
    if new_lr_factor != 1 and (not new or (head_lr_factor is not None and all(map(is_of_head, new)))):
        raise ValueError(
            "train.new_lr_factor has no effect: the only new layer that is trained, if any, is the classifier, whose "
            "rate train.head_lr_factor sets; set new_lr_factor to 1"
        )
    if head_lr_factor is not None and not any(is_of_head(name) for name in trained):
        raise ValueError("train.head_lr_factor has no effect: this method trains no classifier; set it to null")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = decay_all or (parameter.ndim >= 2 and not name.endswith(UNDECAYED))
        factor = of_layers.get(name, 1.0) if "backbone" in name.split(".") else new_lr_factor
        if head_lr_factor is not None and is_of_head(name):
            factor = head_lr_factor
        groups.setdefault((factor, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1]))
    ]


def is_of_head(name: str) -> bool:
    """Whether a parameter of this name is the classifier's; a `head` inside a backbone is timm's own."""
    parts = name.split(".")
    return "head" in parts and "backbone" not in parts


def layer_factors(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """{parameter of a backbone: layer_decay ** (layers behind its own)}. Raises ValueError where there is no backbone.

    Source: Clark et al. 2020 (ELECTRA); Bao et al. 2022 (BEiT).
    """
    factors: dict[str, float] = {}
    for prefix, part in module.named_modules():
        if prefix.split(".")[-1] == "backbone" and hasattr(part, "group_matcher"):
            layer_of = group_parameters(part, part.group_matcher(coarse=False), reverse=True)
            last = max(layer_of.values())
            factors |= {f"{prefix}.{name}": layer_decay ** (last - layer) for name, layer in layer_of.items()}
    if not factors:
        raise ValueError("train.layer_decay has no effect: this method has no timm backbone; set it to 1")
    return factors


def lr_at(
    step: int, *, lr: float, steps: int, warmup_steps: int = 0, power: float = 0.0, warmup_ratio: float = 1e-6
) -> float:
    """Learning rate used by the update of this step (0-based): linear warm-up, then polynomial decay.

        t < warmup:  lr (1 - (1 - t / warmup) (1 - warmup_ratio))
        t >= warmup: lr (1 - t / steps) ** power       power 0 is a constant rate

    The decay counts from step 0 and is not shifted by the warm-up, so the rate jumps a little where they meet;
    steps from `steps` on keep the last rate.

    Source: ToCo's schedule (D-76, 9; golden lr); the smoke paper's constant 1e-4 is power 0.
    """
    if step < warmup_steps:
        return lr * (1 - (1 - step / warmup_steps) * (1 - warmup_ratio))
    return lr * (1 - min(step, steps - 1) / steps) ** power
