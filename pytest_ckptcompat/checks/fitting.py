"""Fit a recipe to a checkpoint and a model, and compare its result with the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.files.folders import kind_of
from pytest_ckptcompat.files.paths import beside, inside
from pytest_ckptcompat.models.meta_copy import opaque
from pytest_ckptcompat.recipes.base import Surroundings
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.verification.comparison import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

_MOST = 1 << 20
"""The most bytes read from a file beside a checkpoint; a configuration is much smaller."""

_SMALL = 4096
"""The most elements of a tensor whose values a loader may inspect: a version, a scale, a table."""


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


def compared(ckpt: Checkpoint, schema: nn.Module, recipe: Recipe, applied: Applied) -> Comparison:
    """Compare by the model's own strict load, with shapes and, if it looks at values, small values.

    Raises:
        CheckpointError: the values can't be read.
        RecipeError: the recipe does not apply to them.
    """
    comparison = compare(schema, applied.state_dict)
    if not comparison.needs_values and (ckpt.valueless or not opaque(schema)):
        return comparison
    if ckpt.valueless:
        what = "a lock" if ckpt.format == "lock" else "a commit"
        why = f"the model's own loader looks at values, and {what} has none: check against the checkpoint; "
        found = [
            replace(each, message=why + each.message) if each.rule == "load-error" else each
            for each in comparison.findings
        ]
        return replace(comparison, findings=found)
    grown = recipe.run(ckpt.stored(), schema.state_dict()).state_dict
    by_value = opaque(schema)
    for key, value in applied.state_dict.items():
        if isinstance(value, torch.Tensor) and key not in by_value and value.numel() > _SMALL:
            grown[key] = value
        else:
            grown[key] = materialise(grown[key])
    return compare(schema, grown)


def _read(ckpt: Checkpoint, name: str) -> bytes | None:
    """Read a small file in the checkpoint's folder; return None if there is none."""
    try:
        path = inside(ckpt.path, name) if kind_of(ckpt.path) == "folder" else beside(ckpt.path, name)
        with ckpt.contents.files.open(path) as file:
            return file.read(_MOST)
    except (CheckpointError, OSError):
        return None
