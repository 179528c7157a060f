"""Repair a recipe that fails, or after which the checkpoint does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.recipe import Recipe

from .budget import Budget
from .changes import NO_MODULES
from .search import Suggestion, left_by, suggest
from .templates import shapes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.base import Operator
    from pytest_ckptcompat.recipes.plan import State

    from .changes import Modules
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
    without a recipe. The other arguments are those of `suggest`.
    """
    budget = Budget()
    for fewer in _fewer(declared.operators):
        if budget.left > 0 and left_by(fewer, differences) == []:
            return Suggestion(fewer)
    grown = _grown(declared, checkpoint, target) if declared.operators else checkpoint
    if grown is None:
        declared, grown = Recipe(), checkpoint
    return suggest(grown, target, differences, modules, budget, source, declared)


def _fewer(operators: Sequence[Operator]) -> Iterator[Recipe]:
    if len(operators) > 1:
        for place in range(len(operators)):
            yield Recipe(*operators[:place], *operators[place + 1 :])
    if operators:
        yield Recipe()


def _grown(declared: Recipe, checkpoint: State, target: State) -> State | None:
    """Apply the recipe. Return None if it does not apply, or if a key that fits without it no longer fits."""
    try:
        grown = declared.apply(checkpoint, target)
    except RecipeError:
        return None
    olds, news, wanted = map(shapes_of, (checkpoint, grown, target))
    spoiled = any(
        shape is not None and olds.get(key) == shape and news.get(key, shape) != shape
        for key, shape in wanted.items()
    )
    return None if spoiled else grown
