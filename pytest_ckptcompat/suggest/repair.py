"""Repair a recipe that fails, or after which the checkpoint does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.recipe import Recipe

from .budget import Budget
from .layers import NO_MODULES
from .search import Suggestion, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import State

    from .layers import Modules
    from .search import Differences


def repair(
    declared: Recipe,
    checkpoint: State,
    target: State,
    differences: Differences,
    modules: Modules = NO_MODULES,
    source: State | None = None,
) -> Suggestion:
    """Try the recipe without one of its operators, without any, or with more after them.

    If the recipe does not apply, or breaks keys that fit without it, the search starts from the checkpoint
    without a recipe.

    Args:
        declared: the recipe; empty if there is none.
        checkpoint: the old state dict, on the meta device.
        target: the model's state dict.
        differences: recipe -> the keys that still differ; raises `RecipeError` if it does not apply.
        modules: the model's modules by path.
        source: the state dict of the model that the checkpoint was made for, on meta, or None.
    """
    budget = Budget()
    for fewer in _fewer(declared):
        if budget.left > 0 and _loads(fewer, differences):
            return Suggestion(fewer)
    try:
        grown: State = declared.apply(checkpoint, target)
    except RecipeError:
        declared, grown = Recipe(), checkpoint
    if _spoiled(checkpoint, grown, target):
        declared, grown = Recipe(), checkpoint
    found = suggest(grown, target, lambda more: differences(_both(declared, more)), modules, budget, source)
    return replace(
        found,
        recipe=None if found.recipe is None else _both(declared, found.recipe),
        partial=None if found.partial is None else _both(declared, found.partial),
        choices=tuple(_both(declared, each) for each in found.choices),
        variants=lambda: (_both(declared, each) for each in found.variants()),
    )


def _fewer(recipe: Recipe) -> Iterator[Recipe]:
    if len(recipe.operators) > 1:
        for place in range(len(recipe.operators)):
            yield Recipe(*recipe.operators[:place], *recipe.operators[place + 1 :])
    if recipe.operators:
        yield Recipe()


def _loads(recipe: Recipe, differences: Differences) -> bool:
    try:
        return not differences(recipe)
    except RecipeError:
        return False


def _spoiled(checkpoint: State, grown: State, target: State) -> bool:
    """Return whether a key that fits without the recipe no longer fits after it."""
    return any(
        _fits(key, checkpoint, target) and key in grown and not _fits(key, grown, target) for key in target
    )


def _fits(key: str, state: State, target: State) -> bool:
    shapes = [getattr(each.get(key), "shape", None) for each in (state, target)]
    return shapes[0] is not None and shapes[0] == shapes[1]


def _both(first: Recipe, then: Recipe) -> Recipe:
    return Recipe(*first.operators, *then.operators)
