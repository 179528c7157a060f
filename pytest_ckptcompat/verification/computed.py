"""Compare a loader's values with those that a recipe computes; rounding and random draws may differ."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.recipes.recipe import Recipe, Releases
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipes.applied import Applied

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Relative to a tensor's largest value. Narrower floats may differ by `_STEPS` of their epsilons, float8 by
one."""

_STEPS = 8
_FEW = 8  # too few random numbers to compare their spread


class Computed:
    """The keys whose values a recipe changes: its result on `old` for the model `target` is `growth`."""

    def __init__(
        self, recipe: Recipe, old: Mapping[str, Any], target: Mapping[str, Any], growth: Applied
    ) -> None:
        self._recipe, self._old, self._target, self._growth = recipe, old, target, growth

    def __contains__(self, key: str) -> bool:
        return key in self._growth.touched

    def how(self, key: str, held: torch.Tensor, value: torch.Tensor) -> str | None:
        """Say how the values that a loader's model holds match the recipe's; return None if they don't."""
        if held.shape != value.shape or not (held.is_floating_point() and value.is_floating_point()):
            return None
        if not value.numel():
            return "computed alike"
        if held.is_meta or held.layout != torch.strided or value.layout != torch.strided:
            return None
        tolerance = max(_tolerance(held.dtype), _tolerance(value.dtype))
        held, value = _computable(held.detach().cpu()), _computable(value)
        allowed = tolerance * float(value.abs().nan_to_num(0, 0, 0).max())
        if difference(value, held, allowed) is None:
            return "computed alike"
        if key not in self._reseeded:
            return None
        drawn = value != _computable(materialise(self._reseeded[key]))
        alike = difference(value[~drawn], held[~drawn], allowed) is None
        return "drawn alike" if alike and _spread_alike(held[drawn], value[drawn]) else None

    @cached_property
    def _reseeded(self) -> Mapping[str, Any]:
        return _reseeded(self._recipe).run(self._old, self._target).state_dict


def _tolerance(dtype: torch.dtype) -> float:
    steps = 1 if dtype.itemsize == 1 else _STEPS
    return _TOLERANCE.get(dtype, steps * torch.finfo(dtype).eps)


def _computable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float8 tensor as float32, because torch computes nothing in float8."""
    return tensor.float() if tensor.itemsize == 1 else tensor


def _spread_alike(held: torch.Tensor, value: torch.Tensor) -> bool:
    if len(held) < _FEW:
        return bool(len(held)) and bool(held.isfinite().all())
    ratio = float(held.double().std() / value.double().std())
    return 0.5 < ratio < 2


def _reseeded(recipe: Recipe) -> Recipe:
    """Return the recipe with other seeds."""
    if isinstance(recipe, Releases):
        return Releases(*(replace(each, recipe=_reseeded(each.recipe)) for each in recipe.releases))
    return Recipe(
        *(
            replace(operator, seed=operator.seed + 1) if hasattr(operator, "seed") else operator  # type: ignore[call-arg]
            for operator in recipe.operators
        )
    )
