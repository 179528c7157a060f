"""A recipe in place of one that fails, or after which the checkpoint does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.errors import RecipeError
from pytest_ckptcompat.recipe import Recipe

from .layers import NO_MODULES
from .search import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .layers import Modules


def repair(
    declared: Recipe,
    checkpoint: Mapping[str, Any],
    target: Mapping[str, Any],
    verify: Callable[[Recipe], bool],
    modules: Modules = NO_MODULES,
) -> Recipe | None:
    """The recipe without one of its operators, without any, or with more after them; None if none will do.

    Where the recipe does not even apply, what is suggested starts from the checkpoint as it is.

    Args:
        declared: the recipe; an empty one where there is none.
        checkpoint: the old state dict, on the meta device.
        target: the model's.
        verify: whether the checkpoint loads with a recipe that applies.
        modules: the model's modules by their paths.
    """

    def loads(recipe: Recipe) -> bool:
        try:
            return verify(recipe)
        except RecipeError:
            return False

    for fewer in _fewer(declared):
        if loads(fewer):
            return fewer
    try:
        grown: Mapping[str, Any] = declared.apply(checkpoint, target)
    except RecipeError:
        declared, grown = Recipe(), checkpoint
    further = suggest(grown, target, lambda more: loads(_both(declared, more)), modules)
    return None if further is None else _both(declared, further)


def _fewer(recipe: Recipe) -> Iterator[Recipe]:
    for place in range(len(recipe.operators)):
        yield Recipe(*recipe.operators[:place], *recipe.operators[place + 1 :])
    if len(recipe.operators) > 1:
        yield Recipe()


def _both(first: Recipe, then: Recipe) -> Recipe:
    return Recipe(*first.operators, *then.operators)
