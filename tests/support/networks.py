"""Small real networks that the tests of recipes' promises share."""

from __future__ import annotations

import torch
from torch import nn

from pytest_ckptcompat.checks.behaviours import undrawn
from pytest_ckptcompat.tensors import synthetic


class Boxes(nn.Module):
    """The origin story in small: convolutions with BatchNorm and PReLU, a confidence, and boxes."""

    def __init__(self, out2: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.PReLU())
        self.fc = nn.Sequential(nn.Linear(8 * 9, hidden), nn.BatchNorm1d(hidden), nn.PReLU())
        self.out1 = nn.Linear(hidden, 1)
        self.out2 = nn.Linear(hidden, out2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.fc(self.conv2(self.conv1(x)).flatten(1))
        return torch.sigmoid(self.out1(x)), self.out2(x)


class Words(nn.Module):
    """A tiny language model: embedding and head tied, learned positions, one attention block."""

    def __init__(self, vocabulary: int = 11, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(1, 6, width) * 0.1)
        self.block = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        return {"logits": self.head(self.norm(self.block(x)))}


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model as training leaves it: no parameter and no running statistic at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.5)
            else:
                tensor.fill_(1000)
    return model.eval()


class Grown(Boxes):
    """`Boxes` with the story's fourteen outputs."""

    def __init__(self) -> None:
        super().__init__(out2=14)


def load_synthetic(model: nn.Module) -> None:
    """Load synthetic values; integers stay as they were constructed."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for key, value in state.items():
        names.setdefault(id(value), []).append(key)
    model.load_state_dict(synthetic.state_dict(state, names.values(), undrawn(model)))
