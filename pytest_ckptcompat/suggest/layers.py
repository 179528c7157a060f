"""Find what the dimensions of weights count, from the model's modules or else from biases."""

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
    """The meaning of a weight with two or more dimensions.

    Attributes:
        outputs: the dimension that counts outputs; None if unknown.
        groups: the groups of a convolution in the model; 0 if unknown.
    """

    outputs: int | None
    groups: int = 0

    @property
    def takes_all(self) -> bool:
        """Whether every output sees every input, as far as is known."""
        return self.groups <= 1


def layers_of(checkpoint: Shapes, model: Shapes, modules: Modules, budget: Budget) -> dict[str, Layer]:
    """Return the layers of the weights that both have."""
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
"""A layer's weight, plain or in parts of a weight norm or spectral norm; group 1 is the module."""


def module_of(key: str) -> str:
    """Return the module of a weight, bias or running statistic, or ``""``."""
    module, _, leaf = key.rpartition(".")
    return module if leaf in ("weight", "bias", "running_mean", "running_var") else ""


def unitwise(name: str, units: tuple[int, int], checkpoint: Shapes, modules: Modules) -> bool:
    """Return whether a norm treats copied units like the originals.

    Args:
        name: the path of the norm.
        units: the old and the new number of units.
        checkpoint: the checkpoint's keys.
        modules: the model's modules.
    """
    module, (old, new) = modules.get(name), units
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return new % old == 0  # otherwise some units would weigh more in its statistics
    return isinstance(module, (_NormBase, nn.PReLU)) or f"{name}.running_mean" in checkpoint


def projects(key: str, keys: Collection[str]) -> bool:
    """Return whether the key is of queries, keys or values: rows of heads, whose bounds shapes can't tell."""
    module, _, leaf = key.rpartition(".")
    name = module.rpartition(".")[2]
    parent = module.removesuffix(name)
    return name in FUSED or any(
        name in names and all(f"{parent}{each}.{leaf}" in keys for each in names) for names in APART
    )
