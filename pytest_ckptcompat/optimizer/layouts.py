"""Write an optimizer's state dict for the new model, in the layout of the old file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .slots import GRADIENTS, SQUARES
from .state import numbered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .resumption import Resumption
    from .state import Group, Naming, State

_ZERO = GRADIENTS | SQUARES | {"acc_delta"}


def state_dict(
    resumption: Resumption, parameters: Mapping[str, torch.Tensor], *, by_name: bool = False
) -> dict[Any, Any]:
    """Return the new state dict; anything else in the old one is kept.

    Numbers are those of the new optimizer. Names are spelled like the old ones. State that is keyed by name
    must cover every parameter, or torch refuses it, so a new parameter gets the state before a first step.
    Numbered state is also keyed `by_name` for distributed checkpoints.

    Raises:
        LookupError: torch could not resume from the result. The message says why.
    """
    saved, groups, options = resumption.saved, resumption.groups, _options(resumption)
    if saved.layout == "numbered" and not by_name:
        if any(group.names for group in saved.groups):
            options = [
                {**own, "param_names": list(group)} for own, group in zip(options, groups, strict=True)
            ]
        made = numbered(groups, options, resumption.state)
        return {**saved.node, **made, "state": {**saved.shared, **made["state"]}}
    spell = _spelling(saved.groups, resumption.names)
    state = {spell(name): dict(slots) for name, slots in _complete(resumption, parameters, options).items()}
    spelled = [([spell(name) for name in group], own) for group, own in zip(groups, options, strict=True)]
    if saved.layout == "flat":
        slots = {f"state.{name}.{slot}": each for name, own in state.items() for slot, each in own.items()}
        return slots | {
            f"param_groups.{name}.{option}": value
            for group, own in spelled
            for name in group
            for option, value in own.items()
        }
    return {
        **saved.node,
        "state": state,
        "param_groups": [{**own, "params": group} for group, own in spelled],
    }


def _options(resumption: Resumption) -> list[Mapping[str, Any]]:
    """Return the options of each new group: those of the old group at its place or of its parameters."""
    saved, names, groups = resumption.saved, resumption.names, resumption.groups
    if len(groups) == len(saved.groups):
        return [group.options for group in saved.groups]
    place = {name: number for number, group in enumerate(names) for name in group}
    found = []
    for group in groups:
        olds = {place[old] for name in group if (old := resumption.origin.get(name, name)) in place}
        if len(olds) != 1:
            raise LookupError(
                f"it has {len(saved.groups)} groups and the new optimizer has {len(groups)}, so that their "
                "options can't be derived"
            )
        found.append(saved.groups[olds.pop()].options)
    return found


def _spelling(groups: tuple[Group, ...], names: Naming) -> Callable[[str], str]:
    """Return how the file spells a parameter's name, which may add or lack a prefix."""
    pairs = [
        (str(identity), name)
        for group, called in zip(groups, names, strict=True)
        for identity, name in zip(group.names or group.ids, called, strict=True)
    ]
    own, name = pairs[0] if pairs else ("", "")
    if name and own.endswith(name):
        return lambda new: own.removesuffix(name) + new
    if own and name.endswith(own):
        return lambda new: new.removeprefix(name.removesuffix(own))
    return lambda new: new


def _complete(
    resumption: Resumption, parameters: Mapping[str, torch.Tensor], options: list[Mapping[str, Any]]
) -> State:
    """Add the state of new parameters, if every old parameter has some."""
    saved, state = resumption.saved, dict(resumption.state)
    listed = {name for group in resumption.groups for name in group}
    left_out = {name: reason for name, reason in resumption.left_out.items() if name in listed - state.keys()}
    if left_out:
        name, reason = next(iter(left_out.items()))
        raise LookupError(
            f"{name} would have none ({reason}), and state that is keyed by name must cover every parameter"
        )
    if not state or not all(saved.state.get(each) for group in saved.groups for each in group.ids):
        return state
    like, slots = next(iter(state.items()))
    for group, own in zip(resumption.groups, options, strict=True):
        for name in group:
            if name not in state and parameters[name].requires_grad:
                state[name] = _first(name, parameters, slots, tuple(parameters[like].shape), own)
    return state


def _first(
    name: str,
    parameters: Mapping[str, torch.Tensor],
    like: Mapping[str, Any],
    shape: tuple[int, ...],
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a parameter's state before its first step, in the form of another parameter's state."""
    made: dict[str, Any] = {}
    for slot, value in like.items():
        is_tensor = hasattr(value, "shape")
        if slot == "step":
            made[slot] = torch.zeros(tuple(value.shape)) if is_tensor else type(value)(0)
        elif slot in _ZERO and is_tensor and tuple(value.shape) == shape:
            dtype = value.dtype if isinstance(value.dtype, torch.dtype) else getattr(torch, value.dtype)
            start = float(own.get("initial_accumulator_value", 0) or 0) if slot == "sum" else 0.0
            made[slot] = torch.full(tuple(parameters[name].shape), start, dtype=dtype)
        else:
            raise LookupError(f"{name} is new, and its initial {slot} is not known")
    return made
