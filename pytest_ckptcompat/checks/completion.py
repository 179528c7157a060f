"""What a check knows besides the state dict, for what a recipe leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.files.folders import kind_of
from pytest_ckptcompat.files.paths import beside, inside
from pytest_ckptcompat.recipes.base import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.recipes.recipe import Recipe

_MOST = 1 << 20
"""Bytes of a file beside a checkpoint; a configuration is much smaller."""


def completed(
    recipe: Recipe, ckpt: Checkpoint, model: nn.Module, source: Callable[[], nn.Module] | None
) -> Recipe:
    """The recipe with what the checkpoint's folder and the models say of what it leaves open.

    Args:
        recipe: the one declared.
        ckpt: the checkpoint, in whose folder small files are looked for.
        model: the new model, on the meta device.
        source: gives the model that the checkpoint was made for, likewise; None if it is not known.

    Raises:
        RecipeError: what they say is not what the recipe says.
    """
    return recipe.completed(Surroundings(lambda name: _read(ckpt, name), model, source or (lambda: None)))


def target_of(recipe: Recipe, schema: nn.Module, build: Callable[[], nn.Module]) -> Mapping[str, Any]:
    """What a recipe is applied for: the model's shapes, or its values where an operator takes some."""
    return (build() if recipe.needs_model else schema).state_dict()


def _read(ckpt: Checkpoint, name: str) -> bytes | None:
    """A small file in the checkpoint's folder; None if there is none."""
    try:
        path = inside(ckpt.path, name) if kind_of(ckpt.path) == "folder" else beside(ckpt.path, name)
        with ckpt.contents.files.open(path) as file:
            return file.read(_MOST)
    except (CheckpointError, OSError):
        return None
