"""The keys whose shapes differ, what their dimensions count, and the operators that explain them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from pytest_ckptcompat.recipes.operators import select
from pytest_ckptcompat.recipes.per_tensor import outputs_dim

from .budget import Budget
from .fusing import APART, FUSED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.per_tensor import KeyWise

    from .templates import Shapes

Sizes = tuple[int, ...]
Change = tuple[Sizes, Sizes]
Operators = tuple["KeyWise[Any]", ...]
"""Operators on one tensor, with `ANY` for its key; none if nothing explains its change."""
ANY = "*"
MOST_LISTED = 1000
"""The most rows that a suggestion lists; nobody would read more."""
Modules = Mapping[str, nn.Module]
NO_MODULES: Modules = MappingProxyType({})


@dataclass(frozen=True)
class Changes:
    """The keys of a checkpoint, already renamed to the model's, and of the model.

    Attributes:
        checkpoint: the checkpoint's keys and shapes.
        model: the model's keys and shapes.
        modules: the model's modules by path, as far as they are known.
        ties: the model's keys -> an object that tied keys share.
        old_ties: the same for the checkpoint's keys.
        budget: the time budget for explaining the changes.
    """

    checkpoint: Shapes
    model: Shapes
    modules: Modules = field(default_factory=dict)
    ties: Mapping[str, object] = field(default_factory=dict)
    old_ties: Mapping[str, object] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    @cached_property
    def changed(self) -> dict[str, Change]:
        """Changed keys -> the checkpoint's and the model's shape, in the checkpoint's order."""
        found: dict[str, Change] = {}
        for key, old in self.budget.each(self.checkpoint.items()):
            new = self.model.get(key)
            if old is not None and new is not None and old != new:
                found[key] = old, new
        return found

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers of the weights that both have."""
        found = {}
        for key, old in self.budget.each(self.checkpoint.items()):
            new = self.model.get(key)
            if old is None or new is None or not len(old) == len(new) > 1:
                continue
            if weight := _WEIGHT.fullmatch(key):
                module = self.modules.get(weight[1] or "")
                if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                    found[key] = _layer(key, module, self.checkpoint, self.model)
        return found

    @cached_property
    def order(self) -> dict[str, int]:
        """The position of each key in the checkpoint."""
        return {key: place for place, key in enumerate(self.checkpoint)}


@dataclass
class Explained:
    """The explanation of one kind of change.

    Attributes:
        operators: key -> the operators that change it.
        joint: operators for several keys at once, with these keys.
        barred: keys of this kind with no known operator; no other kind may try them.
    """

    operators: dict[str, Operators] = field(default_factory=dict)
    joint: list[tuple[frozenset[str], Operator]] = field(default_factory=list)
    barred: set[str] = field(default_factory=set)

    def put(self, key: str, operators: Operators) -> None:
        """Explain a key, or bar it if there are no operators."""
        if operators:
            self.operators[key] = operators
        else:
            self.barred.add(key)

    def bar(self, keys: Iterable[str]) -> None:
        """Bar keys, explained or not."""
        for key in keys:
            self.operators.pop(key, None)
            self.barred.add(key)

    @property
    def keys(self) -> set[str]:
        """The keys that are explained or barred."""
        return self.operators.keys() | self.barred | {key for keys, _ in self.joint for key in keys}


def differing(old: Sizes, new: Sizes) -> list[int]:
    """Return the dimensions in which two shapes differ; none if their lengths differ."""
    if len(old) != len(new):
        return []
    return [dim for dim, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]


@cache
def first_rows(dim: int, count: int) -> Operators:
    """Keep the first rows, if a recipe can list them."""
    return (select(ANY, dim=dim, index=tuple(range(count))),) if 0 < count <= MOST_LISTED else ()


# -- layers -------------------------------------------------------------------------------------------------


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
    """Return whether a norm treats copies of units like the originals; `units` are the old and new number."""
    module, (old, new) = modules.get(name), units
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return old > 0 and new % old == 0  # otherwise some units would weigh more in its statistics
    return isinstance(module, (_NormBase, nn.PReLU)) or f"{name}.running_mean" in checkpoint


def projects(key: str, keys: Collection[str]) -> bool:
    """Return whether the key is of queries, keys or values: rows of heads, whose bounds shapes can't tell."""
    module, _, leaf = key.rpartition(".")
    name = module.rpartition(".")[2]
    parent = module.removesuffix(name)
    return name in FUSED or any(
        name in names and all(f"{parent}{each}.{leaf}" in keys for each in names) for names in APART
    )
