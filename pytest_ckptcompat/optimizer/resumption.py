"""How training resumes from a checkpoint: the owners of the state, its new form, and its groups.

`check` judges a resumption and `apply` writes it, so both always agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.tensors.difference import memory

from .growth import grown
from .naming import Evidence, spelled, tied_names
from .parameter_order import Grouping, evidence
from .slots import unread_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .state import Naming, Saved, State


@dataclass(frozen=True)
class Training:
    """What is known about the old and the new model of an optimizer's state.

    Attributes:
        recipe: the recipe of the weights.
        applied: its result on the old state dict.
        old: the old state dict; only its shapes are used.
        model: the new model.
        source: the model that the checkpoint was made for, or None.
        grouping: how the optimizer groups named parameters; None if no optimizer was given.
        read: returns the values of a stored tensor.
    """

    recipe: Recipe
    applied: Applied
    old: Mapping[str, Any]
    model: nn.Module
    source: nn.Module | None = None
    grouping: Grouping | None = None
    read: Callable[[Any], Any] = lambda value: value

    @cached_property
    def evidence(self) -> Evidence:
        """The possible meanings of the numbers in an optimizer's state."""
        return evidence(self.applied.origin, self.old, self.model, self.source, self.grouping)

    def resumed(self, saved: Saved, names: Naming, state: State) -> Resumption:
        """Resume the state of `saved` by the names of its parameters; its values may have been read.

        Raises:
            LookupError: the groups of the new parameters can't be determined.
        """
        origin = self.applied.origin
        groups = self._groups(names)
        if reason := self._shared(saved, names, groups):
            left_out = {name: reason for group in groups for name in group}
            return Resumption(saved, names, groups, {}, left_out, origin)
        found = grown(self.recipe, self._untied(state), self.old, self.model.state_dict(), self.read)
        tied = tied_names(self.model)
        placed: dict[str, Mapping[str, Any]] = {}
        lost: dict[str, str] = {}
        for key, slots in found.state.items():
            first = placed.setdefault(name := tied.get(key, key), slots)
            if first is not slots and origin.get(key, key) in state:
                lost[key] = f"it is tied to {name} now, which has its own state"
        parameters = dict(self.model.named_parameters())
        left_out = {
            name: reason
            for key, reason in found.left_out.items()
            if (name := tied.get(key, key)) in parameters and name not in placed
        }
        return Resumption(saved, names, groups, placed, left_out | lost, origin)

    def _groups(self, names: Naming) -> Naming:
        parameters = dict(self.model.named_parameters())
        made = None if self.grouping is None else self.grouping(parameters)
        if made is not None:
            return made
        theirs = [] if self.source is None else [[name for name, _ in self.source.named_parameters()]]
        (order,) = spelled(theirs, self.old) or [list(self.old)]
        return _regrouped(names, order, self._came(names, parameters))

    def _came(self, names: Naming, parameters: Iterable[str]) -> dict[str, str | None]:
        """Return new name -> an old parameter of the optimizer that it comes from, or None."""
        flat = [name for group in names for name in group]
        place = {name: number for number, group in enumerate(names) for name in group}
        owner = {memory(self.old[name]): name for name in reversed(flat) if name in self.old}
        all_sources = self.applied.sources
        aliases = {first: name for name, first in tied_names(self.model).items() if name in all_sources}
        came: dict[str, str | None] = {}
        for new in parameters:
            sources = all_sources.get(new) or all_sources.get(aliases.get(new, ""), ())
            olds = [owner.get(memory(self.old[old]), old) for old in sources if old in self.old]
            came[new] = olds[0] if len({place.get(old) for old in olds}) == 1 else None
        return came

    def _untied(self, state: State) -> State:
        """Give tied tensors' state all their names, since the new model may not tie them."""
        owners = {memory(self.old[name]): slots for name, slots in state.items() if name in self.old}
        more = {
            key: owners[place]
            for key, value in self.old.items()
            if key not in state and isinstance(value, torch.Tensor) and (place := memory(value)) in owners
        }
        return {**state, **more}

    def _shared(self, saved: Saved, names: Naming, groups: Naming) -> str:
        """Return why state that is shared by a whole group, as in LBFGS, can't be kept, or ``""``."""
        old_names = [name for group in names for name in group]
        new_names = [name for group in groups for name in group]
        total = sum(self.old[name].numel() for name in old_names)
        having = [
            slots
            for slots in saved.named(names).values()
            if any(_is_history(value, total) for value in slots.values())
        ]
        if len(old_names) < 2 or len(having) != len(names):
            return ""
        came = [self.applied.origin.get(name, name) for name in new_names]
        if came == old_names and self.applied.touched.keys().isdisjoint(new_names):
            return ""
        return "it is one history shared by all parameters"


@dataclass(frozen=True)
class Resumption:
    """The resumed state of one optimizer for the new model.

    Attributes:
        saved: the old state as it is in the file.
        names: the old parameters of each group.
        groups: the new parameters of each group.
        state: new parameter -> its state; a parameter without state starts anew.
        left_out: new key without its old state -> why.
        origin: new key -> the old key that it comes from, or None.
    """

    saved: Saved
    names: Naming
    groups: Naming
    state: State
    left_out: Mapping[str, str]
    origin: Mapping[str, str | None]

    def readable(self) -> Resumption:
        """Without the state of parameters that holds an object which was not read: it can't be written."""
        unread = {name: why for name, slots in self.state.items() if (why := unread_part(slots))}
        state = {name: slots for name, slots in self.state.items() if name not in unread}
        return replace(self, state=state, left_out={**self.left_out, **unread})


def _is_history(value: Any, total: int) -> bool:
    """Return whether a value holds tensors of `total` elements: all parameters in one row."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(tuple(each.shape) == (total,) for each in values if hasattr(each, "shape"))


def _regrouped(names: Naming, order: Sequence[str], came: Mapping[str, str | None]) -> list[list[str]]:
    """Put the new parameters into the groups of the old ones that they come from.

    If an optimizer had (parts of) ``model.parameters()`` in the model's order, the new groups follow the new
    model's order. If it had an order of its own, every place is kept, provided that every old parameter
    became exactly one new one. `order` is that of the old model; `came` has the old name for each new one, in
    the new model's order.

    Raises:
        LookupError: the place of a new parameter can't be determined.
    """
    place = {name: number for number, group in enumerate(names) for name in group}
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys([*order, *place]))}
    groups: list[list[str]] = [[] for _ in names]
    became: dict[str, list[str]] = {}
    for name, old in came.items():
        if old is None and len(names) > 1:
            raise LookupError(
                f"which group {name} belongs to can't be determined: give optimizer= (on the command line "
                "--optimizer), which shows its groups"
            )
        if old is None or old in place:  # others were not in the optimizer, or were frozen
            groups[0 if old is None else place[old]].append(name)
            became.setdefault(old or "", []).append(name)
    if all(sorted(group, key=lambda name: ranks[name]) == list(group) for group in names):
        return groups
    if "" not in became and all(len(became.get(old, [])) == 1 for old in place):
        return [[became[old][0] for old in group] for group in names]
    raise LookupError("the old optimizer had its parameters in its own order")
