"""Grow optimizer state with a recipe: each operator's plan carries it along, or it is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.recipes.plan import Write

from .slots import carried, is_elementwise, unknown_form, unread_part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.recipes.recipe import Recipe

    from .state import State

    Read = Callable[[Any], torch.Tensor]

RESET = "its operator starts it from scratch"


class Grown(NamedTuple):
    """The state by new names, and the new name of each parameter without its old state -> why."""

    state: State
    left_out: Mapping[str, str]


def grown(
    recipe: Recipe,
    state: State,
    old: Mapping[str, Any],
    target: Mapping[str, Any],
    read: Read = lambda tensor: tensor,
) -> Grown:
    """Return the state under the new names, in the new shapes.

    An unchanged parameter keeps its state, whatever that is. For a changed one, every tensor of the
    parameter's shape is carried along, and counts such as ``step`` continue. The whole state is left out if a
    part of it is unknown, if the operator resets it, or if only some of the source parameters have state.

    Args:
        recipe: the recipe of the weights.
        state: the state by old names.
        old: the old state dict on the meta device.
        target: the new model's state dict.
        read: reads the values of a stored tensor in `state`; called only for what changes.
    """
    left_out: Mapping[str, str] = {}
    with torch.no_grad():
        for step in recipe.steps(old, target):
            before, lost, state, left_out = state, left_out, {}, {}
            for key in step.before:
                for write in step.edit.plan.get(key, (Write(key, (key,)),)):
                    slots, reason = _carried(write, before, lost, step.before, read)
                    if reason:
                        left_out[write.key] = reason
                    elif slots:
                        state[write.key] = slots
    return Grown(state, left_out)


def _carried(
    write: Write, state: State, lost: Mapping[str, str], before: Mapping[str, Any], read: Read
) -> tuple[Mapping[str, Any], str]:
    """Return the state of what one write makes, or why there is none."""
    if reasons := [lost[source] for source in write.sources if source in lost]:
        return {}, reasons[0]
    sources = [state.get(source, {}) for source in write.sources]
    if not any(sources):
        return {}, ""
    if write.make is None:
        return sources[0], ""
    if write.optimizer_transform is None:
        return {}, RESET
    shapes = [tuple(before[source].shape) for source in write.sources]
    for slots, shape in zip(sources, shapes, strict=True):
        if why := unread_part(slots):
            return {}, why
        if slot := unknown_form(slots, shape):
            return {}, f"{slot} does not have the parameter's shape"
        if slots.keys() != sources[0].keys():
            return {}, "its source parameters have different kinds of state"
    made: dict[str, Any] = {}
    for slot, first in sources[0].items():
        values = [slots[slot] for slots in sources]
        made[slot] = first
        if all(is_elementwise(slot, value, shape) for value, shape in zip(values, shapes, strict=True)):
            made[slot] = carried(slot, write, [read(value) for value in values])
            if made[slot] is None:
                return {}, f"the meaning of {slot} is not known"
    return made, ""
