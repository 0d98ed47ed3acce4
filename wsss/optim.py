"""Parameter groups and the learning rate of a step."""

from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights, and what must not decay (norms, biases, tokens, position tables: all but matrices)."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    undecayed_names = ("pos_embed", "cls_token", "dist_token", "reg_token")
    undecayed = [p for name, p in trained if p.ndim < 2 or name.endswith(undecayed_names)]
    decayed = [p for name, p in trained if not (p.ndim < 2 or name.endswith(undecayed_names))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def lr_at(
    step: int, *, lr: float, steps: int, warmup_steps: int = 0, power: float = 0.0, warmup_ratio: float = 1e-6
) -> float:
    """Learning rate used by the update of this step (0-based): linear warm-up, then polynomial decay.

        t < warmup:  lr (1 - (1 - t / warmup) (1 - warmup_ratio))
        t >= warmup: lr (1 - t / steps) ** power       power 0 is a constant rate

    The decay counts from step 0 and is not shifted by the warm-up, so the rate jumps a little where they meet;
    steps from `steps` on keep the last rate.

    Source: ToCo's schedule (spec 3, golden lr); the smoke paper's constant 1e-4 is power 0.
    """
    if step < warmup_steps:
        return lr * (1 - (1 - step / warmup_steps) * (1 - warmup_ratio))
    return lr * (1 - min(step, steps - 1) / steps) ** power
