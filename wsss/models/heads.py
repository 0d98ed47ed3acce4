"""ToCo's heads: a decoder of patches, and a projection of class tokens.

Shapes: B images, D encoder channels, C classes with background, h x w patch grid, n tokens, E outputs.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LargeFOV(nn.Sequential):
    """Decoder of patch features into class scores: two dilated 3x3 convolutions and a 1x1, none with a bias.

    (B, D, h, w) -> (B, C, h, w). The layers keep torch's own initial weights.

    Args:
        feature_dim: D.
        num_classes: C.
        dim: channels between the layers.
        dilation: of both 3x3 convolutions; the grid keeps its size.

    Source: DeepLab-LargeFOV as M-SEE 5.1 states it (dilation 5); golden `decoder`.
    """

    def __init__(self, feature_dim: int, num_classes: int, *, dim: int = 512, dilation: int = 5) -> None:
        def dilated(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, dim, 3, padding=dilation, dilation=dilation, bias=False)

        last = nn.Conv2d(dim, num_classes, 1, bias=False)
        super().__init__(dilated(feature_dim), nn.ReLU(), dilated(dim), nn.ReLU(), last)


class ProjectionHead(nn.Module):
    """Class tokens (n, D) -> (n, out_dim) for class token contrast.

        x <- mlp(x),   x <- x / ||x||,   z_e = x . v_e / ||v_e||

    The MLP has three linear layers with GELU between them. The rows v_e are normalised (published: weight normalisation
    with its gain fixed to 1), so z is a cosine in [-1, 1].

    Raises:
        ValueError: a width below 1.

    Source: ToCo, section 3.3; golden `ctchead`.
    """

    def __init__(self, feature_dim: int, *, dim: int = 2048, bottleneck: int = 256, out_dim: int = 1024) -> None:
        super().__init__()
        if min(dim, bottleneck, out_dim) < 1:
            raise ValueError(
                f"method: projection_dim is {dim}, bottleneck {bottleneck}, projection_out {out_dim}; wanted 1 or more"
            )
        self.mlp = nn.Sequential(
            nn.Linear(feature_dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, bottleneck)
        )
        self.rows = nn.Parameter(torch.empty(out_dim, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.rows, std=0.02)

    def forward(self, cls_nD: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(cls_nD), dim=-1), F.normalize(self.rows, dim=-1))


def follower_of(student: nn.Module) -> nn.Module:
    """A copy for `move_towards`. Its weights are buffers with the same names as in the student: they are saved, but not
    trained, and ZeRO, which discards changes of weights that its optimizer did not make, does not touch buffers."""
    teacher = copy.deepcopy(student)
    for module in teacher.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return teacher


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, on every weight of a `follower_of` the student."""
    torch._foreach_lerp_(list(teacher.buffers()), list(student.parameters()), 1 - momentum)
