"""Fit a checkpoint, a recipe and a model together.

The state dict is chosen by keys and shapes, the recipe completed, and its result compared with the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.checkpoint.checkpoint import candidates
from pytest_ckptcompat.core.errors import AmbiguousError, CheckpointError, RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.folders import kind_of
from pytest_ckptcompat.files.paths import beside, inside
from pytest_ckptcompat.models.meta_copy import opaque
from pytest_ckptcompat.recipes.base import Surroundings
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.verification.comparison import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.recipes.applied import Applied

Shapes = dict[str, tuple[int, ...]]

_MOST = 1 << 20
"""The most bytes read from a file beside a checkpoint; a configuration is much smaller."""

_SMALL = 4096
"""The most elements of a tensor whose values a loader may inspect: a version, a scale, a table."""


class Opened(NamedTuple):
    """A checkpoint whose header was read.

    Attributes:
        contents: the header.
        usual: the state dict that is chosen without a model; None if several are possible.
        ambiguous: the error message if several are possible.
        key: the key of the state dict, if it was given.
    """

    contents: Contents
    usual: Checkpoint | None
    ambiguous: str = ""
    key: str | None = None

    @classmethod
    def by(cls, opener: Callable[[str | None], Checkpoint], key: str | None) -> Opened:
        """Open the checkpoint at a state dict key, or at the usual one for None.

        Raises:
            CheckpointError: the checkpoint can't be read.
        """
        try:
            usual = opener(key)
        except AmbiguousError as error:
            return cls(error.contents, None, str(error), key)
        return cls(usual.contents, usual, "", key)

    def chosen(
        self, target: Mapping[str, Any], declared: Recipe | str | None
    ) -> tuple[Checkpoint | None, str]:
        """Choose the state dict that fits the model after the recipe; return why, if it is not `usual`.

        Returns `usual` if several fit, or if none fits but several share names with the model. A recipe that
        can't be read is reported later.
        """
        recipe = declared if isinstance(declared, Recipe) else Recipe()
        wanted, usual = _shapes(target), self.usual
        if self.key is not None or (usual is not None and _made(usual, target, recipe) == wanted):
            return usual, ""
        found = candidates(self.contents)
        if len(found) < 2 and usual is not None:
            return usual, ""
        fitting = [each for each in found if _made(each, target, recipe) == wanted]
        if len(fitting) == 1:
            return fitting[0], f"{_named(fitting[0])}, the only one that fits"
        alike = [each for each in found if not wanted.keys().isdisjoint(each)]
        if usual is None and not fitting and len(alike) == 1:
            return alike[0], f"{_named(alike[0])}, the only one with keys of the model"
        return usual, ""


def _made(ckpt: Checkpoint, target: Mapping[str, Any], recipe: Recipe) -> Shapes | None:
    """Return the shapes that the recipe makes of a state dict, or None if it does not apply."""
    if not recipe.operators:
        return {key: spec.shape for key, spec in ckpt.items()}
    try:
        return _shapes(recipe.run(ckpt.meta(), target).state_dict)
    except (CheckpointError, RecipeError):
        return None


def _shapes(state: Mapping[str, Any]) -> Shapes:
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {
        key: tuple(value.shape)
        for key, value in tensors.items()
        if not (torch.nn.parameter.is_lazy(value) or value.is_nested)
    }


def _named(ckpt: Checkpoint) -> str:
    return f"state dict {escape(ckpt.state_dict_key, 60)!r}"


def completed(
    recipe: Recipe, ckpt: Checkpoint, model: nn.Module, source: Callable[[], nn.Module] | None
) -> Recipe:
    """Complete a recipe with what small files in the checkpoint's folder and the models, on meta, tell.

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
