"""A small vision transformer: which of three shapes does the picture show?"""

import torch
from torch import Tensor, nn

SHAPES = ("square", "disc", "cross")


class ViT(nn.Module):
    """Pictures (n, channels, size, size) -> logits (n, 3).

    Args:
        size: of a picture's side, a multiple of the patch's.
        channels: of a picture.
    """

    width, patch = 32, 8

    def __init__(self, size: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(channels, self.width, self.patch, stride=self.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (size // self.patch) ** 2, self.width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.width,
                4,
                2 * self.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, len(SHAPES))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch_embed(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
