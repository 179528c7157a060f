"""Optimizer state taken through a recipe: each operator carries it as its plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.operators.plan import Write

from .state import ELEMENTWISE, SQUARES, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.recipe import Recipe


def grown(
    recipe: Recipe,
    state: State,
    old: Mapping[str, Any],
    target: Mapping[str, Any],
    materialise: Callable[[Any], torch.Tensor] = lambda tensor: tensor,
) -> State:
    """The state under the new names, in the new shapes.

    A parameter that is left as it is keeps its state, whatever that holds. Of one that changes, every tensor
    of the parameter's shape is carried along, averages of squares as such; counts such as ``step`` go on. One
    whose operator starts it anew, or that comes from one without state, has none.

    Args:
        recipe: how the weights become the new ones.
        state: by the old names.
        old: the old state dict on the meta device.
        target: key -> anything with a shape and a dtype: what the new model has.
        materialise: gives the values of whatever stands for a tensor in `state`; asked of what changes alone.
    """
    with torch.no_grad():
        for step in recipe.steps(old, target):
            writes = (
                write for key in step.before for write in step.edit.plan.get(key, (Write(key, (key,)),))
            )
            carried = {write.key: _carried(write, state, step.before, materialise) for write in writes}
            state = {key: slots for key, slots in carried.items() if slots}
    return state


def _carried(
    write: Write, state: State, before: Mapping[str, Any], materialise: Callable[[Any], torch.Tensor]
) -> Mapping[str, Any]:
    sources = [state.get(source, {}) for source in write.sources]
    if not sources or not all(sources):
        return {}
    if write.carry is None:
        return sources[0] if write.make is None else {}
    slots: dict[str, Any] = {}
    for slot, first in sources[0].items():
        values = [source.get(slot) for source in sources]
        shapes = [tuple(before[source].shape) for source in write.sources]
        if slot != "step" and all(map(_each_element, [slot] * len(values), values, shapes)):
            slots[slot] = write.carry(slot in SQUARES, *map(materialise, values))
        else:
            slots[slot] = first
    return slots


def _each_element(slot: str, value: Any, shape: tuple[int, ...]) -> bool:
    return hasattr(value, "shape") and (slot in ELEMENTWISE or tuple(value.shape) == shape)
