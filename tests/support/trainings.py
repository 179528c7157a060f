"""Models and optimizers as some steps of training leave them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checks.apply import apply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from pytest_ckptcompat import Recipe

    Factory = Callable[[Any], torch.optim.Optimizer]

FACTORIES: dict[str, Factory] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": torch.optim.Adagrad,
}


def decay_by_rank(parameters: Any) -> torch.optim.Optimizer:
    """Weight decay for matrices alone; goes by the parameters, and takes no names."""
    parameters = list(parameters)
    return torch.optim.AdamW([
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0},
        {"params": [each for each in parameters if each.ndim > 1]},
    ])  # fmt: skip


def trained(model: nn.Module, factory: Factory, steps: int = 3) -> torch.optim.Optimizer:
    """The model's optimizer after some steps along seeded gradients."""
    optimizer = factory(model.parameters())
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def training(model: nn.Module, factory: Factory = torch.optim.AdamW, steps: int = 3) -> dict[str, Any]:
    """A training checkpoint: the model and its optimizer after some steps, as most people save them."""
    optimizer = trained(model, factory, steps)
    return copy.deepcopy({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()})


def grown(
    folder: Path, content: Any, model: nn.Module, recipe: Recipe, *, key: str | None = None, **arguments: Any
) -> tuple[Any, tuple[str, ...]]:
    """What `apply` makes of a file with this content, loaded by torch, and its notes."""
    torch.save(content, folder / "old.pth")
    written = apply(open_checkpoint(folder / "old.pth", key), model, recipe, folder / "new.pth", **arguments)
    return torch.load(folder / "new.pth", weights_only=True), written.notes
