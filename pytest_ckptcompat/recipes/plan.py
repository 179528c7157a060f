"""Plans of operators, made from shapes and carried out on tensors of any kind."""

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
"""A state dict: key -> tensor; extra state may be anything."""


@dataclass(frozen=True, slots=True)
class Write:
    """One key of a new state dict.

    Attributes:
        key: the new key.
        sources: the old keys that it comes from.
        make: makes the tensor from those of the sources. None means the tensor of the only source, uncopied.
        optimizer_transform: the same for the values that an optimizer keeps for each element. It is called
            with whether they are averages of squares, and with the sources' values. If None, unchanged
            weights keep their state, and for others the optimizer starts anew.
        overwrites: whether the key had another tensor before, so that this is not just a renaming.
    """

    key: str
    sources: tuple[str, ...]
    make: Make | None = None
    optimizer_transform: Callable[..., torch.Tensor] | None = None
    overwrites: bool = False


Plan = Mapping[str, Sequence[Write]]
"""Old key -> what replaces it. Keys that are not in the plan stay as they are."""


def same_for_moments(make: Make, optim: str) -> Make | None:
    """Return an `optimizer_transform` that does what `make` does; None if `optim` is reset."""
    return None if optim == "reset" else lambda _, *tensors: make(*tensors)


def carry_out(plan: Plan, state: State, operator: object) -> OrderedDict[str, Any]:
    """Return the new state dict. Tensors that no write makes are the same objects; tied ones stay tied.

    The old state dict may be on any device, or stored: only what a write needs is read.

    Raises:
        RecipeError: two keys would get the same name.
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
    """Rename the modules in the state dict's ``_metadata`` (module -> version) like their keys.

    Modules use the versions when they load. If there are none, torch assumes an old version.
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
    """Note the new names of the modules above a renamed key, as far as the names below them agree."""
    while old and new:
        old, _, last = old.rpartition(".")
        new, _, now = new.rpartition(".")
        if last != now or new in modules.get(old, {}):
            return
        modules.setdefault(old, {})[new] = None
