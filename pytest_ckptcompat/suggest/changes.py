"""Keys that both have in other shapes, and what is known about them."""

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
    """A checkpoint under the model's names, and the model.

    Attributes:
        checkpoint: the checkpoint's keys.
        model: the model's.
        modules: its modules by their paths, as far as they are known.
        ties: the model's keys -> what those of one tensor have in common.
        old_ties: likewise the checkpoint's.
        budget: the time for explaining them.
    """

    checkpoint: Shapes
    model: Shapes
    modules: Modules = field(default_factory=dict)
    ties: Mapping[str, object] = field(default_factory=dict)
    old_ties: Mapping[str, object] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    @cached_property
    def changed(self) -> dict[str, Change]:
        """Keys with two shapes, the checkpoint's and the model's, in the checkpoint's order."""
        found: dict[str, Change] = {}
        for key, old in self.budget.each(self.checkpoint.items()):
            new = self.model.get(key)
            if old is not None and new is not None and old != new:
                found[key] = old, new
        return found

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """How to read the weights that both have."""
        return layers_of(self.checkpoint, self.model, self.modules, self.budget)

    @cached_property
    def order(self) -> dict[str, int]:
        """Where each key stands in the checkpoint."""
        return {key: place for place, key in enumerate(self.checkpoint)}


@dataclass
class Explained:
    """What one kind of change is made of.

    Attributes:
        steps: key -> the operators that change it, their keys left out.
        joint: operators about several keys at once, with these keys.
        barred: keys of this kind that no operator is known to change rightly: nothing else may try.
    """

    steps: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    joint: list[tuple[frozenset[str], Step]] = field(default_factory=list)
    barred: set[str] = field(default_factory=set)

    @property
    def keys(self) -> set[str]:
        """The keys that are accounted for."""
        return self.steps.keys() | self.barred | {key for keys, _ in self.joint for key in keys}


def differing(old: Sizes, new: Sizes) -> list[int]:
    """The dimensions in which two shapes differ; none where they have not as many."""
    if len(old) != len(new):
        return []
    return [dim for dim, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
