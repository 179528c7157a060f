"""Optimizer state taken through a recipe: each operator carries it as its plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.operators.plan import Write

from .state import ELEMENTWISE, SQUARES, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.recipe import Recipe


def grown(recipe: Recipe, state: State, old: Mapping[str, Any], target: Mapping[str, Any]) -> State:
    """The state under the new names, in the new shapes.

    A parameter that is left as it is keeps its state, whatever that holds. Of one that changes, every tensor
    of the parameter's shape is carried along, averages of squares as such; counts such as ``step`` go on. One
    whose operator starts it anew, or that comes from one without state, has none.

    Args:
        recipe: how the weights become the new ones.
        state: by the old names.
        old: the old state dict on the meta device.
        target: key -> anything with a shape and a dtype: what the new model has.
    """
    with torch.no_grad():
        for step in recipe.steps(old, target):
            writes = (
                write for key in step.before for write in step.edit.plan.get(key, (Write(key, (key,)),))
            )
            carried = {write.key: _carried(write, state, step.before) for write in writes}
            state = {key: slots for key, slots in carried.items() if slots}
    return state


def _carried(write: Write, state: State, shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    sources = [state.get(source, {}) for source in write.sources]
    if not sources or not all(sources):
        return {}
    if write.carry is None:
        return sources[0] if write.make is None else {}
    slots: dict[str, Any] = {}
    for slot, first in sources[0].items():
        values = [source.get(slot) for source in sources]
        each_element = all(
            isinstance(value, torch.Tensor) and (slot in ELEMENTWISE or value.shape == shapes[source].shape)
            for source, value in zip(write.sources, values, strict=True)
        )
        slots[slot] = write.carry(slot in SQUARES, *values) if each_element and slot != "step" else first
    return slots
