"""Search for a recipe with which a checkpoint would load."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.recipes.operators import copy, drop, tie
from pytest_ckptcompat.recipes.operators import select as select_rows
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.difference import memory

from .budget import Budget, OutOfTime
from .changes import NO_MODULES, Changes
from .folding import folded_norms, folds, set_apart
from .fusing import fuses, stacks
from .renaming import renames
from .reshaping import reshapes
from .submodels import submodels
from .templates import Globs, shapes_of
from .ties import newly_tied, tied, untied
from .variants import variants

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.plan import State

    from .changes import Modules
    from .templates import Shapes

Differences = Callable[[Recipe], Collection[str]]
"""Which keys differ after a recipe: none where the checkpoint then loads."""

MOST_OPERATORS = 250
"""The longest recipe that anybody would read."""
MOST_WORK = 250_000
"""The number of operators times keys that can be applied in about a second."""


@dataclass(frozen=True)
class Suggestion:
    """The suggestion for a checkpoint that does not fit.

    Attributes:
        recipe: a recipe that makes the checkpoint load.
        partial: a recipe that makes a part of it fit; `unexplained` still differ.
        choices: several recipes that make it load, if nothing tells which one is meant.
        unexplained: keys for which nothing was found; all keys if nothing was found at all.
        dropped: patterns of `recipe` that drop floating-point values, which may be trained.
        cut: patterns of `recipe` that drop rows of such values.
        stopped: whether the search ran out of time.
        too_long: the length of the whole recipe, if it was cut to `partial`.
        parts: the kinds of weights that only one side has in parts; these are left alone.
        tied: pairs of keys that the model ties and the checkpoint does not.
        variants: recipes to try if `recipe` does not keep the function, which shapes can't tell.
    """

    recipe: Recipe | None = None
    partial: Recipe | None = None
    choices: tuple[Recipe, ...] = ()
    unexplained: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    stopped: bool = False
    too_long: int = 0
    parts: frozenset[str] = frozenset()
    tied: tuple[tuple[str, str], ...] = ()
    variants: Callable[[], Iterable[Recipe]] = tuple


def suggest(
    checkpoint: State,
    target: State,
    differences: Differences,
    modules: Modules = NO_MODULES,
    budget: Budget | None = None,
    source: State | None = None,
    declared: Recipe | None = None,
) -> Suggestion:
    """Find a recipe that makes the checkpoint, or as much of it as can be explained, load into the model.

    The search uses keys, shapes and the model's modules. It explains wrapper prefixes, renamed modules and
    leaves, renumbered layers, joined or split projections, grown and shrunk rows, other inputs, larger
    kernels, positions of another grid, transposed weights, tied weights, and any combination of these. Keys
    that the model lacks are dropped only if nothing else is left to do. Missing keys are never made up, and
    if two answers are equally good, neither is taken.

    Args:
        checkpoint: the state dict, on the meta device.
        target: the model's state dict.
        differences: recipe -> the keys that still differ; raises `RecipeError` if it does not apply. Called
            only a few times, and always before a recipe is returned.
        modules: the model's modules by path. They tell which dimension of a weight counts outputs, in how
            many groups, and whether the numbers of layers are places or names. Without them, less is
            suggested.
        budget: the time budget.
        source: the state dict of the model that the checkpoint was made for: it shows which keys were tied.
        declared: the recipe that gave `checkpoint`; every recipe that is returned begins with it.
    """
    first = () if declared is None else declared.operators
    return _Search(checkpoint, target, differences, modules, budget or Budget(), source or {}, first).run()


@dataclass
class _Search:
    """A search: what is known, and what was found.

    Attributes:
        found: the operators found so far.
        state: the checkpoint after them, without the keys in `apart`.
        shapes: of `state`.
        apart: keys of the checkpoint that are left alone, and their values.
        lost: those of them that must not be dropped.
        parts: the kinds of weights that these are parts of.
        made: the model's keys that are made from others.
        tied: pairs of keys that the model ties and the checkpoint does not.
    """

    checkpoint: State
    target: State
    differences: Differences
    modules: Modules
    budget: Budget
    source: State
    declared: tuple[Operator, ...]

    def __post_init__(self) -> None:
        self.model = shapes_of(self.target)
        self.found: list[Operator] = []
        self.state, self.shapes = self.checkpoint, shapes_of(self.checkpoint)
        self.apart: dict[str, Any] = {}
        self.lost: set[str] = set()
        self.parts: frozenset[str] = frozenset()
        self.made: set[str] = set()
        self.tied: tuple[tuple[str, str], ...] = ()

    def run(self) -> Suggestion:
        """Try the likeliest operators, then the same with drops, then a part of them."""
        at_first = _differing(self.shapes, self.model)
        if not at_first:
            return Suggestion()
        choices = [each for each in submodels(self.shapes, self.model) if self._left(each) == []]
        if choices:
            return Suggestion(choices=tuple(map(self._recipe, choices)))
        dropped: list[str] = []
        with suppress(OutOfTime, RecipeError):  # what was found until then may be a part
            self._explain()
            dropped = self._dropped()
        found = self.found
        room = min(MOST_OPERATORS, max(MOST_WORK // max(len(self.checkpoint), 1), 1))
        needed = len(found) + len(dropped)
        if needed > room:
            found, dropped = found[:room], []
        left = None
        for drops in ([], dropped) if dropped else ([],):
            operators = [*found, *map(drop, drops)]
            after = self._left(operators)
            if after == []:
                return Suggestion(
                    self._recipe(operators),
                    dropped=self._trained(drops),
                    cut=self._trained(each.key for each in found if isinstance(each, select_rows)),
                    stopped=self.budget.spent,
                    tied=self.tied,
                    variants=partial(self._variants, operators),
                )
            left = left if drops else after
        explains = left is not None and len(left) < len(at_first)
        return Suggestion(
            partial=self._recipe(found) if explains else None,
            unexplained=tuple(left or () if explains else at_first),
            stopped=self.budget.spent,
            too_long=needed if needed > room else 0,
            parts=self.parts,
        )

    def _explain(self) -> None:
        """Find the operators, one kind after the other."""
        self._apply(folds(self.state, self.target))
        model = self._set_apart()
        self._apply(folded_norms(self.shapes, model))
        self._apply(stacks(self.shapes, model))
        fusing, fused, unknown = fuses(self.shapes, model)
        self.found += fusing
        self.apart |= {key: self.state.get(key) for key in fused if key in unknown}
        named = {key: shape for key, shape in fused.items() if key not in unknown}
        wanted = {key: shape for key, shape in model.items() if key not in unknown}
        renaming, self.shapes = renames(named, wanted, self.modules, self.budget)
        self.found += renaming
        self.state = dict(zip(self.shapes, map(self.state.get, named), strict=True))
        self._reshape(wanted)

    def _apply(self, operators: Iterable[Operator]) -> None:
        for operator in list(operators):
            self.budget.check()
            self.state = operator.apply(self.state, self.target)
            self.shapes = shapes_of(self.state)
            self.found.append(operator)

    def _set_apart(self) -> Shapes:
        """Set parts of weights apart. Return the model's other keys."""
        apart = set_apart(self.shapes, self.model, self.budget)
        self.parts, self.lost = frozenset(apart.kinds), apart.checkpoint
        self.apart = {key: value for key, value in self.state.items() if key in self.lost}
        self.state = {key: value for key, value in self.state.items() if key not in self.lost}
        self.shapes = {key: shape for key, shape in self.shapes.items() if key not in self.lost}
        return {key: shape for key, shape in self.model.items() if key not in apart.model}

    def _reshape(self, wanted: Shapes) -> None:
        """Explain changed shapes and ties."""
        each, saved = self.budget.each, self.shapes
        ties = {key: memory(self.target[key]) for key in each(saved) if self.model.get(key) is not None}
        old_ties = {key: memory(value) for key, value in each(self.state.items()) if shape(value) is not None}
        self.found += reshapes(Changes(saved, wanted, self.modules, ties, old_ties, self.budget))
        missing = [key for key, size in wanted.items() if key not in saved and size is not None]
        shared = tied(ties, missing, self.target)
        copies = list(untied(saved, wanted.keys() - set().union(*shared), self.source))
        self.found += [*(tie(keys) for keys in shared), *(copy(*names) for names in copies)]
        self.made = set().union(*shared, *copies)
        self.tied = tuple(newly_tied(ties, old_ties))

    def _dropped(self) -> list[str]:
        """Return patterns for keys that the model lacks, if nothing else is left to do."""
        keys = dict.fromkeys((*self.state, *self.apart))
        if (
            not self.model
            or not self.model.keys() <= keys.keys() | self.made
            or self.lost - self.model.keys()
        ):
            return []
        return Globs(keys, self.budget).cover(key for key in keys if key not in self.model)

    def _trained(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Return those patterns that match floating-point values."""
        real = [key for key, value in (*self.state.items(), *self.apart.items()) if _is_real(value)]
        return tuple(pattern for pattern in patterns if select(pattern, real))

    def _recipe(self, operators: Iterable[Operator]) -> Recipe:
        return Recipe(*self.declared, *operators)

    def _variants(self, operators: Sequence[Operator]) -> Iterator[Recipe]:
        return map(self._recipe, variants(operators, self.checkpoint, self.target))

    def _left(self, operators: Sequence[Operator]) -> list[str] | None:
        return left_by(self._recipe(operators), self.differences) if operators else None


def left_by(recipe: Recipe, differences: Differences) -> list[str] | None:
    """Return the keys that differ after a recipe, or None if it does not apply."""
    try:
        return list(differences(recipe))
    except RecipeError:
        return None


def _differing(checkpoint: Shapes, model: Shapes) -> list[str]:
    """Return the keys that one side lacks or has in another shape, the model's first."""
    differ = [key for key, shape in model.items() if key not in checkpoint or checkpoint[key] != shape]
    return [*differ, *(key for key in checkpoint if key not in model)]


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
