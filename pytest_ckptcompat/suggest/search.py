"""The search for a recipe with which a checkpoint would load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.recipe import Recipe

from .fusing import fuses
from .layers import NO_MODULES
from .renaming import renames
from .reshaping import reshapes
from .steps import Step, cover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .layers import Modules
    from .templates import Shape, Shapes


def suggest(
    checkpoint: Mapping[str, Any],
    target: Mapping[str, Any],
    verify: Callable[[Recipe], bool],
    modules: Modules = NO_MODULES,
) -> Recipe | None:
    """A recipe that makes the checkpoint load into the model, or None where there is none to be confident of.

    It is told from keys and shapes, and from what the model's modules are: wrapper prefixes, renamed modules
    and leaves, layers that got other numbers, projections that were joined or split, grown and shrunk rows,
    another number of input channels, larger kernels, position embeddings of another grid, transposed weights,
    names of one tensor, and whatever of these come together. Keys that the model lacks are dropped only if
    nothing else is left to be done. What the model needs and the checkpoint lacks is never made up, and where
    two answers are as good as each other, neither is given.

    Args:
        checkpoint: the state dict's keys, each with something that has a shape.
        target: the model's, likewise.
        verify: whether the checkpoint loads with a recipe; asked at most twice, and before one is given.
        modules: the model's modules by their paths. They tell which dimension of a weight counts outputs, in
            how many groups, and whether the numbers of layers are their places or their names; without them,
            less is suggested.
    """
    for steps in _answers(_shapes(checkpoint), target, modules):
        recipe = _recipe(steps)
        if recipe is not None and _verified(recipe, verify):
            return recipe
    return None


def _answers(checkpoint: Shapes, target: Mapping[str, Any], modules: Modules) -> Iterator[list[Step]]:
    model = _shapes(target)
    projections = fuses(checkpoint, model)
    if projections is None:
        return
    fusing, fused = projections
    renaming, renamed = renames(fused, model, modules)
    reshaping = reshapes(renamed, model, modules)
    if reshaping is None:
        return
    ties = _ties(renamed, model, target)
    steps = [*fusing, *renaming, *reshaping, *(Step("tie", (keys,)) for keys in ties)]
    if steps:
        yield steps
    unexpected = [key for key in renamed if key not in model]
    tied = {key for keys in ties for key in keys}
    complete = bool(model) and all(key in renamed or key in tied for key in model)
    if unexpected and complete:
        yield [*steps, *(Step("drop", (pattern,)) for pattern in cover(unexpected, list(renamed)))]


def _ties(renamed: Shapes, model: Shapes, target: Mapping[str, Any]) -> list[list[str]]:
    """Keys that the checkpoint lacks, behind the key that it has of the same tensor of the model."""
    from pytest_ckptcompat.tensors.difference import memory

    missing = [key for key in model if key not in renamed and model[key] is not None]
    if not missing:
        return []
    saved: dict[object, str] = {}
    for key in renamed:
        if model.get(key) is not None:
            saved.setdefault(memory(target[key]), key)
    ties: dict[str, list[str]] = {}
    for key in missing:
        if (first := saved.get(memory(target[key]))) is not None:
            ties.setdefault(first, [first]).append(key)
    return list(ties.values())


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    return {key: _shape(value) for key, value in tensors.items()}


def _shape(value: Any) -> Shape:
    """The shape as a tuple; None for what has none: extra state, parameters that are not initialised yet."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None


def _recipe(steps: list[Step]) -> Recipe | None:
    from pytest_ckptcompat.core.errors import RecipeError
    from pytest_ckptcompat.recipes.operators import OPERATORS
    from pytest_ckptcompat.recipes.recipe import Recipe

    try:
        return Recipe(*(OPERATORS[step.operator](*step.arguments, **step.options) for step in steps))
    except RecipeError:
        return None


def _verified(recipe: Recipe, verify: Callable[[Recipe], bool]) -> bool:
    from pytest_ckptcompat.core.errors import RecipeError

    try:
        return verify(recipe)
    except RecipeError:
        return False


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
