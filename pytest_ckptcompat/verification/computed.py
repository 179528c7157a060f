"""Keys whose values a recipe computes: a loader that does so too may round and draw in its own way."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.recipes.promises import pieces
from pytest_ckptcompat.recipes.recipe import Recipe, Releases
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipes.applied import Applied

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Of the largest value of a tensor; narrower floats are off by some of their own steps."""

_STEPS = 8
_FEW = 8  # random numbers whose spread says nothing


class Computed:
    """The keys to which a recipe gives other values.

    Args:
        recipe: the recipe.
        old: the state dict that it is applied to.
        target: of the model.
        growth: what it made of them.
    """

    def __init__(
        self, recipe: Recipe, old: Mapping[str, Any], target: Mapping[str, Any], growth: Applied
    ) -> None:
        self._recipe, self._old, self._target = recipe, old, target
        self._touched = growth.touched

    def __contains__(self, key: str) -> bool:
        return key in self._touched

    def how(self, key: str, held: torch.Tensor, value: torch.Tensor) -> str | None:
        """How a loader's values are as good as the recipe's; None: they are not.

        Args:
            key: one of the keys.
            held: the loader's values.
            value: the recipe's, in memory.
        """
        if held.shape != value.shape or not (held.is_floating_point() and value.is_floating_point()):
            return None
        if held.is_meta or held.layout != torch.strided or value.layout != torch.strided:
            return None
        held = held.detach().cpu()
        if _near(held, value, torch.tensor(True)):
            return "computed alike"
        drawn = value != materialise(self._reseeded[key]) if key in self._reseeded else torch.tensor(False)
        if drawn.any() and _near(held, value, ~drawn) and _spread_alike(held[drawn], value[drawn]):
            return "drawn alike"
        return None

    @cached_property
    def _reseeded(self) -> Mapping[str, Any]:
        return _reseeded(self._recipe).run(self._old, self._target).state_dict


def _near(held: torch.Tensor, value: torch.Tensor, where: torch.Tensor) -> bool:
    """Whether the chosen values are equal up to rounding."""
    allowed = max(
        _TOLERANCE.get(dtype, _STEPS * torch.finfo(dtype).eps) for dtype in (held.dtype, value.dtype)
    ) * float(value.abs().max() if value.numel() else 0.0)
    for ours, theirs, some in pieces(held, value, where.expand(value.shape)):
        if not bool((((ours.double() - theirs.double()).abs() <= allowed) | ~some).all()):
            return False
    return True


def _spread_alike(held: torch.Tensor, value: torch.Tensor) -> bool:
    if len(held) < _FEW:
        return bool(held.isfinite().all())
    ratio = float(held.double().std() / value.double().std())
    return 0.5 < ratio < 2


def _reseeded(recipe: Recipe) -> Recipe:
    """The recipe, drawing other random numbers."""
    if isinstance(recipe, Releases):
        return Releases(*(replace(each, recipe=_reseeded(each.recipe)) for each in recipe.releases))
    return Recipe(
        *(
            replace(operator, seed=operator.seed + 1) if hasattr(operator, "seed") else operator  # type: ignore[call-arg]
            for operator in recipe.operators
        )
    )
