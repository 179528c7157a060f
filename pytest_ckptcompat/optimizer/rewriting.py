"""An optimizer's state dict written anew: numbered as the new model's optimizer numbers its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .state import Naming, Saved, State


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
