"""What a recipe promises, by name, where there are no values to hold it against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.recipes.promises import NEEDED, without_values

from .function import NAME as FUNCTION
from .new_values import FINITE, REPRODUCIBLE, SCALE
from .transfer import GROWN, UNTOUCHED
from .unloaded import NAME as LOADED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.recipes.applied import Applied, Step
    from pytest_ckptcompat.recipes.recipe import Recipe


def unverified(
    recipe: Recipe,
    growth: Applied,
    *,
    old: Mapping[str, Any],
    target: Mapping[str, Any],
    source_model: bool = False,
    inputs: bool = False,
) -> list[Promise]:
    """The promises that `verify` would check, in their order, none of them checked.

    Args:
        recipe: the one declared, or an empty one.
        growth: what it made of `old`.
        old: the old state dict, on the meta device.
        target: the model's, likewise.
        source_model: whether the model that the checkpoint was made for is at hand.
        inputs: whether inputs are declared.
    """
    made = [new for key in growth.touched if isinstance(new := growth.state_dict.get(key), torch.Tensor)]
    touched = growth.touched.keys() & growth.state_dict.keys()
    promises = [
        *_unread(UNTOUCHED, growth.state_dict.keys() - touched),
        *_unread(GROWN, touched),
        *(promise for step in recipe.steps(old, target) for promise in _claimed(step)),
        *_unread(REPRODUCIBLE, recipe.operators),
        *_unread(LOADED, growth.state_dict),
        *_unread(FINITE, made),
        *_unread(SCALE, _extended(growth, old)),
    ]
    if source_model:
        why = (
            f"not claimed: {growth.changes_function}"
            if growth.changes_function
            else NEEDED
            if inputs
            else "no inputs declared"
        )
        promises.append(Promise(FUNCTION, "unchecked", why))
    return promises


def _unread(name: str, what: object) -> Iterator[Promise]:
    """The promise, if there is anything that it is about."""
    if what:
        yield Promise(name, "unchecked", NEEDED)


def _claimed(step: Step) -> list[Promise]:
    if not step.edit.plan:
        return []
    try:
        with without_values():
            return step.operator.prove(step.before, step.after, step.target)
    except Exception:  # of an operator that somebody else wrote, which looks at values by itself
        return [Promise(f"{step.operator}", "unchecked", NEEDED)]


def _extended(growth: Applied, old: Mapping[str, Any]) -> list[str]:
    """Weights that have more rows than the tensor that they come from."""
    pairs = [(key, growth.origin.get(key), growth.state_dict.get(key)) for key in growth.touched]
    return [
        key
        for key, came, new in pairs
        if came is not None
        and isinstance(new, torch.Tensor)
        and new.is_floating_point()
        and new.dim() == old[came].dim() > 1
        and new.numel() > old[came].numel()
    ]
