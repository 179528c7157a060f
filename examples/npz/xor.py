import torch
from torch import nn


class Xor(nn.Module):
    """Tells whether one of two bits is set, and the other not."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.out = nn.Linear(2, 1)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(bits)))
