"""The keys whose shapes differ, and the operators that explain them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.recipes.operators import select

from .budget import Budget
from .layers import layers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.per_tensor import KeyWise

    from .layers import Layer, Modules
    from .templates import Shapes

Sizes = tuple[int, ...]
Change = tuple[Sizes, Sizes]
Operators = tuple["KeyWise[Any]", ...]
"""Operators on one tensor, with `ANY` for its key; none if nothing explains its change."""
ANY = "*"
MOST_LISTED = 1000
"""The most rows that a suggestion lists; nobody would read more."""


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
