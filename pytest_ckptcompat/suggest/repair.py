"""Repair a recipe that fails, or after which the checkpoint does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.recipe import Recipe

from .budget import Budget
from .layers import NO_MODULES
from .search import Suggestion, suggest
from .templates import shapes_of

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
    return suggest(grown, target, differences, modules, budget, source, declared)


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
    olds, news, wanted = map(shapes_of, (checkpoint, grown, target))
    return any(
        shape is not None and olds.get(key) == shape and key in news and news[key] != shape
        for key, shape in wanted.items()
    )
