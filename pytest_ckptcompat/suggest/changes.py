"""The keys whose shapes differ, and what explains them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from .budget import Budget
from .layers import layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .layers import Layer, Modules
    from .steps import Step
    from .templates import Shapes

Sizes = tuple[int, ...]
Change = tuple[Sizes, Sizes]


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
        return layers_of(self.checkpoint, self.model, self.modules, self.budget)

    @cached_property
    def order(self) -> dict[str, int]:
        """The position of each key in the checkpoint."""
        return {key: place for place, key in enumerate(self.checkpoint)}


@dataclass
class Explained:
    """The explanation of one kind of change.

    Attributes:
        steps: key -> the operators that change it, without their key argument.
        joint: operators for several keys at once, with these keys.
        barred: keys of this kind with no known operator; no other kind may try them.
    """

    steps: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    joint: list[tuple[frozenset[str], Step]] = field(default_factory=list)
    barred: set[str] = field(default_factory=set)

    @property
    def keys(self) -> set[str]:
        """The keys that are steps, joint or barred."""
        return self.steps.keys() | self.barred | {key for keys, _ in self.joint for key in keys}


def differing(old: Sizes, new: Sizes) -> list[int]:
    """Return the dimensions in which two shapes differ; none if their lengths differ."""
    if len(old) != len(new):
        return []
    return [dim for dim, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
