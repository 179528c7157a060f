"""What an operator makes of a state dict, planned on shapes and carried out on tensors of any kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import memory

Make = Callable[..., torch.Tensor]

State = Mapping[str, Any]
"""Key -> tensor; extra state may be anything."""


@dataclass(frozen=True, slots=True)
class Write:
    """One key of the new state dict.

    Attributes:
        key: its name.
        sources: the old keys that it comes from.
        make: gives its tensor from those of the sources; None: the one source's own tensor, not even copied.
        optimizer_transform: likewise for what an optimizer keeps for every element: called with whether it is
            an average of squares and with the sources' tensors of that kind. None: as the weights if they are
            left as they are, else that state is dropped, and the optimizer starts anew.
        overwrites: whether the key was there before with another tensor, and this is not a mere renaming.
    """

    key: str
    sources: tuple[str, ...]
    make: Make | None = None
    optimizer_transform: Callable[..., torch.Tensor] | None = None
    overwrites: bool = False


Plan = Mapping[str, Sequence[Write]]
"""Old key -> what stands in its place; whatever is not in the plan stays as it is."""


def carry_out(plan: Plan, state: State, operator: object) -> OrderedDict[str, Any]:
    """The new state dict. What no write makes anew is the same object as before; tied tensors stay tied.

    Args:
        plan: what to do.
        state: on any device, stored tensors included: only what a write makes anew is read. Left as it is.
        operator: for the text of an error.

    Raises:
        RecipeError: two keys would get one name.
    """
    new: OrderedDict[str, Any] = OrderedDict()
    came: dict[str, str] = {}
    made: dict[tuple[object, ...], torch.Tensor] = {}
    with torch.no_grad():
        for old in state:
            read: dict[str, Any] = {}  # so that a source of several writes is read once
            for write in plan[old] if old in plan else (Write(old, (old,)),):
                if write.key in new:
                    names = " and ".join(map(escape, (came[write.key], old)))
                    raise RecipeError(
                        f"{operator} gives both {names} the name {escape(write.key)}", key=write.key
                    )
                new[write.key] = _value(write, state, made, read)
                came[write.key] = old
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        new._metadata = _renamed(metadata, plan, state)  # type: ignore[attr-defined]
    return new


def _value(
    write: Write, state: State, made: dict[tuple[object, ...], torch.Tensor], read: dict[str, Any]
) -> Any:
    if write.make is None:
        (source,) = write.sources
        return state[source]
    same = (id(write.make), *(memory(state[source]) for source in write.sources))
    if same not in made:
        for source in write.sources:
            if source not in read:
                read[source] = materialise(state[source])
        made[same] = write.make(*(read[source] for source in write.sources))
    return made[same]


def _renamed(metadata: Mapping[str, Any], plan: Plan, state: State) -> OrderedDict[str, Any]:
    """The state dict's ``_metadata`` (module -> version), its modules renamed as the keys below them are.

    Versions matter to the modules' own loading: torch fills in for those of a state dict without any.
    """
    modules: dict[str, dict[str, None]] = {}
    if any(write.key != old for old, writes in plan.items() for write in writes):
        for old in state:
            for name in [write.key for write in plan[old]] if old in plan else (old,):
                _note(old, name, modules)
    renamed: OrderedDict[str, Any] = OrderedDict()
    for module, about in metadata.items():
        for name in modules.get(module, [module]):
            renamed.setdefault(name, about)
    renamed.setdefault("", metadata.get("", {}))
    return renamed


def _note(old: str, new: str, modules: dict[str, dict[str, None]]) -> None:
    """Note what the modules above a key are called after it was renamed, as far up as names are the same."""
    while old and new:
        old, _, last = old.rpartition(".")
        new, _, now = new.rpartition(".")
        if last != now or new in modules.get(old, {}):
            return
        modules.setdefault(old, {})[new] = None
