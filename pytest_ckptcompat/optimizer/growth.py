"""An optimizer's state dict written anew: numbered as the new model's optimizer numbers its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.recipes.plan import Write

from .state import ELEMENTWISE, SQUARES, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_ckptcompat.recipes.recipe import Recipe

    from .state import Naming, Saved, State


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
    if write.optimizer_transform is None:
        return sources[0] if write.make is None else {}
    slots: dict[str, Any] = {}
    for slot, first in sources[0].items():
        values = [source.get(slot) for source in sources]
        shapes = [tuple(before[source].shape) for source in write.sources]
        if slot != "step" and all(map(_each_element, [slot] * len(values), values, shapes)):
            slots[slot] = write.optimizer_transform(slot in SQUARES, *map(materialise, values))
        else:
            slots[slot] = first
    return slots


def _each_element(slot: str, value: Any, shape: tuple[int, ...]) -> bool:
    return hasattr(value, "shape") and (slot in ELEMENTWISE or tuple(value.shape) == shape)


def rewritten(saved: Saved, groups: Naming, state: State) -> dict[Any, Any]:
    """The state dict of `saved` with other parameters; whatever else it holds is kept.

    Args:
        saved: the old one.
        groups: the names of each group's parameters, in their new order.
        state: by name; a parameter may have none.
    """
    numbers: dict[str, int] = {}
    listed = []
    for group, names in zip(saved.groups, groups, strict=True):
        for name in names:
            numbers[name] = len(numbers)
        own = {"params": [numbers[name] for name in names]}
        listed.append({**group.options, **({"param_names": list(names)} if group.names else {}), **own})
    slots = {numbers[name]: dict(each) for name, each in state.items() if name in numbers}
    return {**saved.node, "state": slots, "param_groups": listed}


def regrouped(
    names: Naming, order: Sequence[str], parameters: Sequence[str], came: Mapping[str, str | None]
) -> list[list[str]]:
    """The new parameters in the groups of the old ones they come from.

    An optimizer that was made from ``model.parameters()``, or parts of it, had them in the model's order; the
    new groups then have the new model's. One with an order of its own keeps every place, if every old
    parameter became one new one.

    Args:
        names: the old names, group by group.
        order: all old names in the old model's order.
        parameters: all new names in the new model's order.
        came: new name -> the old name that it comes from, or None.

    Raises:
        LookupError: it can't be told where a new parameter belongs.
    """
    place = {name: number for number, group in enumerate(names) for name in group}
    ranks = {name: rank for rank, name in enumerate(order)}
    groups: list[list[str]] = [[] for _ in names]
    became: dict[str, list[str]] = {}
    for name in parameters:
        old = came[name]
        if old is None and len(names) > 1:
            raise LookupError(f"which group {name} belongs to can't be told")
        if old is None or old in place:  # others were not the optimizer's, or were frozen
            groups[0 if old is None else place[old]].append(name)
            became.setdefault(old or "", []).append(name)
    if all(sorted(group, key=lambda name: ranks[name]) == list(group) for group in names):
        return groups
    if "" not in became and all(len(became.get(old, [])) == 1 for old in place):
        return [[became[old][0] for old in group] for group in names]
    raise LookupError("the old optimizer had its parameters in an order of its own")
