"""Find the model's state dict among several in a checkpoint, by keys and shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.checkpoint import candidates
from pytest_ckptcompat.core.errors import CheckpointError, RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents

Shapes = dict[str, tuple[int, ...]]


def chosen(
    contents: Contents, usual: Checkpoint | None, target: Mapping[str, Any], declared: Recipe | str | None
) -> tuple[Checkpoint | None, str]:
    """Choose the state dict that fits the model.

    Args:
        contents: the header of the checkpoint.
        usual: the state dict that would be chosen without a model; None if several are possible.
        target: the model's state dict.
        declared: the recipe of the check, which is applied to each state dict before the comparison.

    Returns:
        The state dict, and why it was chosen if it is not `usual`. Returns `usual` if several fit, or if none
        fits but several share names with the model.
    """
    recipe = _loaded(declared)
    wanted = _shapes(target)
    if usual is not None and _made(usual, target, recipe) == wanted:
        return usual, ""
    found = candidates(contents)
    if len(found) < 2 and usual is not None:
        return usual, ""
    fitting = [each for each in found if _made(each, target, recipe) == wanted]
    if len(fitting) == 1:
        return fitting[0], f"{_named(fitting[0])}, the only one that fits"
    if usual is None and not fitting:
        alike = [each for each in found if not wanted.keys().isdisjoint(each)]
        if len(alike) == 1:
            why = "the only one with keys of the model"
            return alike[0], f"{_named(alike[0])}, {why}"
    return usual, ""


def _loaded(declared: Recipe | str | None) -> Recipe:
    try:
        return Recipe.load(declared) if isinstance(declared, str) else declared or Recipe()
    except RecipeError:
        return Recipe()  # the recipe stage reports what is wrong


def _made(ckpt: Checkpoint, target: Mapping[str, Any], recipe: Recipe) -> Shapes | None:
    """Return the shapes that the recipe makes of a state dict, or None if it does not apply."""
    if not recipe.operators:
        return {key: spec.shape for key, spec in ckpt.items()}
    try:
        return _shapes(recipe.run(ckpt.meta(), target).state_dict)
    except (CheckpointError, RecipeError):
        return None


def _shapes(state: Mapping[str, Any]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if _has_shape(value)}


def _has_shape(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not torch.nn.parameter.is_lazy(value) and not value.is_nested


def _named(ckpt: Checkpoint) -> str:
    return f"state dict {escape(ckpt.state_dict_key, 60)!r}"
