"""SETR: a transformer from scratch on large patches, and a convolutional decoder back to pixels; the upper bound.

Shapes: B images, C = K + 1 classes with background 0, D channels, N tokens, h x w grids, H x W pixels.
"""

import torch
from torch import Tensor, nn

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, Outputs, require_counts
from wsss.models.embedding import resize_positions
from wsss.models.segmentation import SegmentationNetwork, segmentation_outputs


class SETR(SegmentationNetwork):
    """Patch tokens with positions -> post-norm transformer -> spread -> (3x3 conv, BN, ReLU, twice the size) x n -> C.

    `spread` gives each token spread x spread positions of the decoder's first map by a linear layer. With the
    defaults a 512 px image has 16 x 16 tokens, a first map of 32 x 32 x 1024 and scores at every pixel.
    Sides are cut to multiples of the patch size, as ViT does; the position table is resized to the grid. Weights
    are random.

    Args:
        num_classes: K, without background.
        image_size: square side whose grid the position table has; other sizes work, with a resized table.
        dropout: of the transformer's layers.
        spread: decoder positions per token and side, 1 = one.
        widths: channels of the decoder's stages, each of which doubles the grid.

    Raises:
        ValueError: sizes that do not divide each other; says which.

    Source: smoke paper, upper bound of Table 4.2, with its code's sizes (D-40); the decoder is Zheng et al. 2021's
    (SETR-PUP).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        patch_size: int = 32,
        image_size: int = 512,
        hidden_dim: int = 1024,
        mlp_dim: int = 1024,
        layers: int = 6,
        heads: int = 16,
        dropout: float = 0.0,
        spread: int = 2,
        widths: tuple[int, ...] = (512, 256, 128, 64),
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        require_counts(layers=layers, spread=spread, heads=heads, patch_size=patch_size, mlp_dim=mlp_dim)
        for whole, part, names in (
            (image_size, patch_size, "model.image_size and model.patch_size"),
            (hidden_dim, heads, "model.hidden_dim and model.heads"),
            (patch_size, spread * 2 ** len(widths), "model.patch_size and spread * 2 ** (number of model.widths)"),
        ):
            if whole < part or whole % part:
                raise ValueError(f"{names} are {whole} and {part}; wanted the first to be a multiple of the second")
        super().__init__(feature_dim=widths[-1], stride=patch_size, num_classes=num_classes, mean=mean, std=std)
        self.patch_embed = nn.Conv2d(3, hidden_dim, kernel_size=patch_size, stride=patch_size)
        self.side = image_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, hidden_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        blocks = [  # each made anew: nn.TransformerEncoder would copy one initialisation to all
            nn.TransformerEncoderLayer(hidden_dim, heads, mlp_dim, dropout, "gelu", batch_first=True)
            for _ in range(layers)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.spread = nn.Sequential()
        if spread > 1:
            self.spread = nn.Sequential(nn.Conv2d(hidden_dim, hidden_dim * spread**2, 1), nn.PixelShuffle(spread))
        ins = [hidden_dim, *widths[:-1]]
        self.decoder = nn.Sequential(*(enlarge(*dims) for dims in zip(ins, widths, strict=True)))

    def forward(self, image: Tensor) -> Outputs:
        patches_BDhw = self.patch_embed(self.normalise(image))
        grid = (patches_BDhw.shape[-2], patches_BDhw.shape[-1])
        table_1ND = resize_positions(self.pos_embed, (self.side, self.side), grid)
        tokens_BND = self.blocks(patches_BDhw.flatten(2).transpose(1, 2) + table_1ND)
        tokens_BDhw = tokens_BND.transpose(1, 2).unflatten(2, grid)
        features_BDhw = self.decoder(self.spread(tokens_BDhw))
        return segmentation_outputs(self.head(features_BDhw), features_BDhw)


def enlarge(in_dim: int, out_dim: int) -> nn.Sequential:
    """(B, in_dim, h, w) -> (B, out_dim, 2h, 2w)."""
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_dim),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )
