"""Optimizer state taken through a recipe: each operator carries it as its plan says, or it is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.recipes.plan import Write

from .slots import carried, is_elementwise, unknown_form, unread_part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.recipes.recipe import Recipe

    from .state import State

    Read = Callable[[Any], torch.Tensor]

RESET = "its operator starts it from scratch"


@dataclass(frozen=True)
class Grown:
    """What a recipe made of optimizer state.

    Attributes:
        state: by the new names.
        left_out: new name of a parameter whose state is not carried along -> why.
    """

    state: State
    left_out: Mapping[str, str] = field(default_factory=dict)


def grown(
    recipe: Recipe,
    state: State,
    old: Mapping[str, Any],
    target: Mapping[str, Any],
    read: Read = lambda tensor: tensor,
) -> Grown:
    """The state under the new names, in the new shapes.

    A parameter that is left as it is keeps its state, whatever that holds. Of one that changes, every tensor
    of the parameter's shape is carried along and counts such as ``step`` go on. Its state is left out as a
    whole if a part of it is not understood, if its operator starts it anew, or if only some of the parameters
    that it is made of have state.

    Args:
        recipe: how the weights become the new ones.
        state: by the old names.
        old: the old state dict on the meta device.
        target: key -> anything with a shape and a dtype: what the new model has.
        read: gives the values of whatever stands for a tensor in `state`; asked of what changes alone.
    """
    found = Grown(state)
    with torch.no_grad():
        for step in recipe.steps(old, target):
            writes = (
                write for key in step.before for write in step.edit.plan.get(key, (Write(key, (key,)),))
            )
            found = _step(found, writes, step.before, read)
    return found


def _step(found: Grown, writes: Any, before: Mapping[str, Any], read: Read) -> Grown:
    state: dict[str, Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    for write in writes:
        reasons = [found.left_out[source] for source in write.sources if source in found.left_out]
        slots, reason = ({}, reasons[0]) if reasons else _carried(write, found.state, before, read)
        if reason:
            left_out[write.key] = reason
        elif slots:
            state[write.key] = slots
    return Grown(state, left_out)


def _carried(
    write: Write, state: State, before: Mapping[str, Any], read: Read
) -> tuple[Mapping[str, Any], str]:
    """The state of what one write makes, or why there is none."""
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
            return {}, f"{slot} has another form than the parameter"
        if slots.keys() != sources[0].keys():
            return {}, "the parameters that it is made of have different state"
    made: dict[str, Any] = {}
    for slot, first in sources[0].items():
        values = [slots[slot] for slots in sources]
        made[slot] = first
        if all(is_elementwise(slot, value, shape) for value, shape in zip(values, shapes, strict=True)):
            made[slot] = carried(slot, write, [read(value) for value in values])
            if made[slot] is None:
                return {}, f"what {slot} means is not known"
    return made, ""
