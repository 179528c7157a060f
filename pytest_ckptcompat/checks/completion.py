"""Complete recipes with what a check knows besides the state dict."""

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
"""The most bytes read from a file beside a checkpoint; a configuration is much smaller."""


def completed(
    recipe: Recipe, ckpt: Checkpoint, model: nn.Module, source: Callable[[], nn.Module] | None
) -> Recipe:
    """Complete a recipe with what the checkpoint's folder and the models tell.

    Args:
        recipe: the declared recipe.
        ckpt: the checkpoint. Small files are looked for in its folder.
        model: the new model, on the meta device.
        source: gives the model that the checkpoint was made for, also on the meta device, or None.

    Raises:
        RecipeError: they contradict the recipe.
    """
    return recipe.completed(Surroundings(lambda name: _read(ckpt, name), model, source or (lambda: None)))


def target_of(recipe: Recipe, schema: nn.Module, build: Callable[[], nn.Module]) -> Mapping[str, Any]:
    """Return the recipe's target: the model's shapes, or its values if an operator needs them."""
    return (build() if recipe.needs_model else schema).state_dict()


def _read(ckpt: Checkpoint, name: str) -> bytes | None:
    """Read a small file in the checkpoint's folder; return None if there is none."""
    try:
        path = inside(ckpt.path, name) if kind_of(ckpt.path) == "folder" else beside(ckpt.path, name)
        with ckpt.contents.files.open(path) as file:
            return file.read(_MOST)
    except (CheckpointError, OSError):
        return None
