"""What the dimensions of weights count: told by the model's own modules, else by their biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from pytest_ckptcompat.recipes.per_tensor import outputs_dim

from .fusing import APART, FUSED

if TYPE_CHECKING:
    from collections.abc import Collection

    from .budget import Budget
    from .templates import Shapes

Modules = Mapping[str, nn.Module]
NO_MODULES: Modules = MappingProxyType({})


class Layer(NamedTuple):
    """How to read a weight of two dimensions or more.

    Attributes:
        outputs: the dimension that counts outputs; None where nothing tells.
        groups: of a convolution in the model; 0 where nothing tells.
    """

    outputs: int | None
    groups: int = 0

    @property
    def takes_all(self) -> bool:
        """Whether every output sees every input, for all that is known."""
        return self.groups <= 1


def layers_of(checkpoint: Shapes, model: Shapes, modules: Modules, budget: Budget) -> dict[str, Layer]:
    """How to read the weights that both have."""
    found = {}
    for key, old in budget.each(checkpoint.items()):
        new = model.get(key)
        if old is not None and new is not None and len(old) == len(new) > 1:
            weight = _WEIGHT.fullmatch(key)
            module = modules.get(weight[1] or "") if weight else None
            if weight and not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                found[key] = _layer(key, module, checkpoint, model)
    return found


def _layer(key: str, module: nn.Module | None, checkpoint: Shapes, model: Shapes) -> Layer:
    if isinstance(module, _ConvNd):
        return Layer(1 if module.transposed and module.groups == 1 else 0, module.groups)
    if isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag)):
        return Layer(0, 1)
    return Layer(outputs_dim(key, checkpoint.get, model.get))


_WEIGHT = re.compile(
    r"(?:(.*)\.)?(?:weight|weight_[gv]|weight_orig|parametrizations\.weight\.original[01]?)", re.DOTALL
)
"""A layer's weight, as it is or in the parts of a weight norm or a spectral norm; before it, the module."""


def module_of(key: str) -> str:
    """The module of a weight; ``""`` for anything else."""
    module, _, leaf = key.rpartition(".")
    return module if leaf in ("weight", "bias", "running_mean", "running_var") else ""


def unitwise(name: str, units: tuple[int, int], checkpoint: Shapes, modules: Modules) -> bool:
    """Whether a norm treats units of which some are copies as it treated the old ones.

    Args:
        name: the module's path.
        units: how many there were, and how many there are to be.
        checkpoint: the checkpoint's keys.
        modules: the model's.
    """
    module, (old, new) = modules.get(name), units
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return new % old == 0  # else some units count more than others in its statistics
    return isinstance(module, (_NormBase, nn.PReLU)) or f"{name}.running_mean" in checkpoint


def projects(key: str, keys: Collection[str]) -> bool:
    """Whether it is of queries, keys or values: rows of heads, and shapes do not tell where each begins."""
    module, _, leaf = key.rpartition(".")
    name = module.rpartition(".")[2]
    parent = module.removesuffix(name)
    return name in FUSED or any(
        name in names and all(f"{parent}{each}.{leaf}" in keys for each in names) for names in APART
    )
