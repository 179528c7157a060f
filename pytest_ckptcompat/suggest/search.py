"""Search for a recipe with which a checkpoint would load."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.keys import select
from pytest_ckptcompat.recipes.operators import OPERATORS
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.difference import memory

from .budget import Budget, OutOfTime
from .changes import Changes
from .companions import folds, set_apart
from .fusing import fuses
from .layers import NO_MODULES
from .norms import folded_norms
from .patterns import Globs
from .renaming import renames
from .reshaping import reshapes
from .stacking import stacks
from .steps import Step
from .submodels import is_wrapper, submodels
from .ties import newly_tied, tied, untied
from .variants import VARYING, variants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from .layers import Modules
    from .templates import Shape, Shapes

    Differences = Callable[[Recipe], Collection[str]]
    """Which keys differ after a recipe: none where the checkpoint then loads."""

MOST_CHOICES = 4
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
    checkpoint: Mapping[str, Any],
    target: Mapping[str, Any],
    differences: Differences,
    modules: Modules = NO_MODULES,
    budget: Budget | None = None,
    source: Mapping[str, Any] | None = None,
) -> Suggestion:
    """Find a recipe that makes the checkpoint, or as much of it as can be explained, load into the model.

    The search uses keys, shapes and the model's modules. It explains wrapper prefixes, renamed modules and
    leaves, renumbered layers, joined or split projections, grown and shrunk rows, other inputs, larger
    kernels, positions of another grid, transposed weights, tied weights, and any combination of these. Keys
    that the model lacks are dropped only if nothing else is left to do. Missing keys are never made up, and
    if two answers are equally good, neither is taken.

    Args:
        checkpoint: the state dict's keys, with values that have a shape.
        target: the model's state dict, in the same form.
        differences: recipe -> the keys that still differ; raises `RecipeError` if it does not apply. Called
            only a few times, and always before a recipe is returned.
        modules: the model's modules by path. They tell which dimension of a weight counts outputs, in how
            many groups, and whether the numbers of layers are places or names. Without them, less is
            suggested.
        budget: the time budget.
        source: the state dict of the model that the checkpoint was made for, or None. It shows which keys
            were tied.
    """
    return _Search(checkpoint, target, differences, modules, budget or Budget(), source or {}).run()


class _Search:
    """A search: what is known, and what is still unexplained."""

    def __init__(
        self,
        checkpoint: Mapping[str, Any],
        target: Mapping[str, Any],
        differences: Differences,
        modules: Modules,
        budget: Budget,
        source: Mapping[str, Any],
    ) -> None:
        self.raw = checkpoint
        self.checkpoint, self.model = _shapes(checkpoint), _shapes(target)
        self.target = target
        self.modules = modules
        self.budget = budget
        self.source = source
        self.origin: dict[str, str] = {}
        self.kinds: frozenset[str] = frozenset()
        self.lost: frozenset[str] = frozenset()
        self.newly_tied: tuple[tuple[str, str], ...] = ()
        self._differences = differences

    def run(self) -> Suggestion:
        """Try the likeliest steps, then the same with drops, then a part of them."""
        at_first = _apart(self.checkpoint, self.model)
        if not at_first:
            return Suggestion()
        if choices := self._choices():
            return Suggestion(choices=choices)
        steps, renamed, tied = self._steps()
        room = min(MOST_OPERATORS, max(MOST_WORK // max(len(self.checkpoint), 1), 1))
        dropped = self._dropped(renamed, tied)
        needed = len(steps) + len(dropped)
        if needed > room:
            steps, dropped = steps[:room], []
        left: list[str] | None = None
        for drops in ([], dropped) if dropped else ([],):
            recipe = _recipe([*steps, *(Step("drop", (pattern,)) for pattern in drops)])
            if recipe is None or not recipe.operators:
                continue
            after = self._left(recipe)
            if after == []:
                return Suggestion(
                    recipe,
                    dropped=self._trained(drops, renamed),
                    cut=self._trained((s.arguments[0] for s in steps if s.operator == "select"), renamed),
                    stopped=self.budget.spent,
                    tied=self.newly_tied,
                    variants=functools.partial(self._variants, recipe),
                )
            left = left if drops else after
        partial = _recipe(steps) if left is not None and len(left) < len(at_first) else None
        return Suggestion(
            partial=partial,
            unexplained=tuple(at_first if partial is None else left or ()),
            stopped=self.budget.spent,
            too_long=needed if needed > room else 0,
            parts=self.kinds,
        )

    def _choices(self) -> tuple[Recipe, ...]:
        """Return recipes that each take one part of the checkpoint, if several parts are the whole model."""
        prefixes = submodels(self.checkpoint, self.model)
        if len(prefixes) < 2 or sum(map(is_wrapper, prefixes)) == 1:
            return ()
        return tuple(filter(None, map(self._taking, prefixes[:MOST_CHOICES])))

    def _taking(self, prefix: str) -> Recipe | None:
        others = [key for key in self.checkpoint if not key.startswith(prefix)]
        drops = (Step("drop", (pattern,)) for pattern in Globs(self.checkpoint).cover(others))
        recipe = _recipe([*drops, Step("strip_prefix", (prefix,))])
        return None if recipe is None or self._left(recipe) != [] else recipe

    def _steps(self) -> tuple[list[Step], dict[str, Shape], set[str]]:
        """Return the steps, the checkpoint under its final names, and the keys made from other keys.

        If the time is up, return the steps found until then, and no keys.
        """
        steps: list[Step] = []
        try:
            renamed, tied = self._explained(steps)
        except OutOfTime:
            return steps, {}, set()
        return steps, renamed, tied

    def _explained(self, steps: list[Step]) -> tuple[dict[str, Shape], set[str]]:
        folding, folded = folds(self.raw, self.target)
        steps += folding
        apart = set_apart(folded, self.model, self.budget)
        self.kinds = frozenset(apart.kinds)
        seen = {key: shape for key, shape in folded.items() if key not in apart.checkpoint}
        model = {key: shape for key, shape in self.model.items() if key not in apart.model}
        norms, seen = folded_norms(seen, model)
        stacking, stacked = stacks(seen, model)
        fusing, fused, joined = fuses(stacked, model)
        steps += [*norms, *stacking, *fusing]
        hidden = {key for key in fused if key in joined}
        named = {key: shape for key, shape in fused.items() if key not in hidden}
        wanted = {key: shape for key, shape in model.items() if key not in joined}
        renaming, renamed = renames(named, wanted, self.modules, self.budget)
        steps += renaming
        self.origin = dict(zip(renamed, named, strict=True))
        known = [key for key in renamed if self.model.get(key) is not None]
        ties = {key: memory(self.target[key]) for key in self.budget.each(known)}
        old_ties = {
            key: memory(self.raw[old])
            for key, old in self.budget.each(self.origin.items())
            if self.checkpoint.get(old) is not None
        }
        steps += reshapes(Changes(renamed, wanted, self.modules, ties, old_ties, self.budget))
        shared = tied(renamed, wanted, self.target)
        steps += [Step("tie", (keys,)) for keys in shared]
        made = {key for keys in shared for key in keys}
        copies = list(untied(renamed, wanted.keys() - made, self.source))
        steps += [Step("copy", names) for names in copies]
        self.newly_tied = tuple(newly_tied(ties, old_ties))
        rest = {key: folded.get(key) for key in (*apart.checkpoint, *hidden)}
        self.lost = frozenset(apart.checkpoint)
        return {**renamed, **rest}, made.union(key for _, key in copies)

    def _dropped(self, renamed: Mapping[str, Shape], tied: Collection[str]) -> list[str]:
        """Return patterns for keys that the model lacks, if nothing else is left to do."""
        unexpected = [key for key in renamed if key not in self.model]
        complete = bool(self.model) and all(key in renamed or key in tied for key in self.model)
        lost = self.lost.intersection(unexpected)
        if not complete or lost:
            return []
        try:
            return Globs(renamed, self.budget).cover(unexpected)
        except OutOfTime:
            return []

    def _variants(self, recipe: Recipe) -> Iterator[Recipe]:
        """Yield the recipe with a variant of one operator."""
        operators = recipe.operators
        for place, operator in enumerate(operators):
            if not isinstance(operator, VARYING):
                continue
            for others in variants(operator, self.raw, self.target, operators[:place]):
                yield Recipe(*operators[:place], *others, *operators[place + 1 :])

    def _trained(self, patterns: Iterable[str], renamed: Collection[str]) -> tuple[str, ...]:
        """Return those drop patterns that match floating-point values."""
        real = [key for key in renamed if _is_real(self.raw.get(self.origin.get(key, key)))]
        return tuple(pattern for pattern in patterns if select(pattern, real))

    def _left(self, recipe: Recipe) -> list[str] | None:
        """Return the keys that differ after a recipe, or None if it does not apply."""
        try:
            return list(self._differences(recipe))
        except RecipeError:
            return None


def _apart(checkpoint: Shapes, model: Shapes) -> list[str]:
    """Return the keys that one side lacks or has in another shape, the model's first."""
    differ = [key for key, shape in model.items() if key not in checkpoint or checkpoint[key] != shape]
    return [*differ, *(key for key in checkpoint if key not in model)]


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    return {key: _shape(value) for key, value in tensors.items()}


def _shape(value: Any) -> Shape:
    """Return the shape as a tuple, or None if there is none: extra state, uninitialised parameters."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _recipe(steps: Iterable[Step]) -> Recipe | None:
    try:
        return Recipe(*(OPERATORS[step.operator](*step.arguments, **step.options) for step in steps))
    except RecipeError:
        return None
