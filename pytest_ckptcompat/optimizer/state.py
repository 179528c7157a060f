"""Find optimizer state in a training checkpoint, and read its layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from pytest_ckptcompat.checkpoint.objects import withheld
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.formats.pickle_stubs import Stub

from .slots import ELEMENTWISE, is_single

Shape = tuple[int, ...]

Naming = Sequence[Sequence[str]]
"""The names of each group's parameters, in the optimizer's order."""

State = Mapping[str, Mapping[str, Any]]
"""Parameter name -> slot (``exp_avg``, ``step``) -> a number, or a tensor."""

Layout = Literal["numbered", "named", "flat"]

_USUAL = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "optimizer_state", "opt")
_DEPTH, _WIDTH = 4, 1000
_CONTAINERS = (Mapping, list, tuple)
_STATE, _GROUPS = "state.", "param_groups."


@dataclass(frozen=True)
class Group:
    """A parameter group: the ids of its parameters, their names if the file has them, and its options."""

    ids: tuple[int | str, ...]
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The state dict of one optimizer, as it is in a checkpoint.

    Attributes:
        path: the place, such as ``optimizer_states[0]``; safe to print.
        groups: the parameter groups.
        node: the state dict itself.
        state: parameter id -> slot (``exp_avg``, ``step``, ...) -> a number, or a tensor or stored tensor,
            which has a ``shape``.
        layout: ``numbered``, as torch's optimizers write it; ``named`` by parameter; or ``flat``, with one
            key for each value (``state.fc.weight.exp_avg``), as ``torch.distributed.checkpoint.state_dict``
            writes it.
        unread: which part of its groups was not read and why, or ``""``.
    """

    path: str
    groups: tuple[Group, ...]
    node: Mapping[Any, Any] = field(repr=False)
    state: Mapping[int | str, Mapping[str, Any]]
    layout: Layout = "numbered"
    unread: str = ""

    @property
    def place(self) -> str:
        """The key of the outer object that contains it, such as ``optimizer_states``."""
        return self.path.partition("[")[0]

    @property
    def lengths(self) -> list[int]:
        """The number of parameters in each group."""
        return [len(group.ids) for group in self.groups]

    @property
    def shared(self) -> dict[str, Any]:
        """What lies beside the state of the parameters, such as a count of all steps."""
        ids = {identity for group in self.groups for identity in group.ids}
        inside = self.node.get("state", {})
        return {
            key: each
            for key, each in inside.items()
            if isinstance(key, str) and ids.isdisjoint({key, _number(key)})
        }

    def named(self, names: Naming) -> State:
        """Return the state by parameter name, in the order of the groups, without empty states."""
        return {
            name: self.state[identity]
            for group, called in zip(self.groups, names, strict=True)
            for identity, name in zip(group.ids, called, strict=True)
            if self.state.get(identity)
        }


def saved_states(wrapper: Any) -> list[Saved]:
    """Find every optimizer state dict in a checkpoint's outer object, usual places first.

    It is recognised by its form, up to four levels deep, under any key: ``optimizer``,
    ``optimizer_state_dict``, ``optim``, Lightning's list ``optimizer_states``, and others.
    """
    found: list[Saved] = []
    pending: list[tuple[str, Any, int]] = [("", wrapper, 0)]
    for path, node, depth in pending:  # grows during the loop: breadth first, without recursion
        saved = _saved(path, node) or _flat(path, node)
        if saved is not None:
            found.append(saved)
        elif depth < _DEPTH and isinstance(node, _CONTAINERS):
            pending.extend((name, child, depth + 1) for name, child in _children(path, node))
    return sorted(found, key=lambda saved: rank(saved.place))


def numbered(groups: Naming, options: Sequence[Mapping[str, Any]], state: State) -> dict[str, Any]:
    """Return a state dict as torch numbers it: in the order of the parameters, group by group.

    State of parameters that are in none of the groups is left out.
    """
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    return {
        "state": {numbers[name]: dict(slots) for name, slots in state.items() if name in numbers},
        "param_groups": [
            {**own, "params": [numbers[name] for name in group]}
            for group, own in zip(groups, options, strict=True)
        ],
    }


def _children(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Return the first containers in a container."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, child in islice((pair for pair in items if isinstance(pair[1], _CONTAINERS)), _WIDTH):
        name = f"{path}.{escape(str(key), 60)}" if isinstance(node, Mapping) else f"{path}[{key}]"
        yield name.removeprefix("."), child


def rank(place: str) -> int:
    """Return the rank of a place among the usual ones."""
    return _USUAL.index(place) if place in _USUAL else len(_USUAL)


# -- a state and its groups --------------------------------------------------------------------------------


def _saved(path: str, node: Any) -> Saved | None:
    if not isinstance(node, Mapping):
        return None
    state, listed = node.get("state", {}), node.get("param_groups")  # SGD without momentum may have no state
    if not isinstance(state, Mapping) or not isinstance(listed, (list, tuple)) or not listed:
        return None
    if unread := _unread(listed):
        return Saved(path, (), node, {}, unread=unread)
    groups = [group for group in map(_group, listed) if group is not None]
    if len(groups) != len(listed):
        return None
    named = any(isinstance(each, str) for group in groups for each in group.ids)
    return Saved(path, tuple(groups), node, _by_id(state, groups), "named" if named else "numbered")


def _group(listed: Any) -> Group | None:
    ids = listed.get("params") if isinstance(listed, Mapping) else None
    if not isinstance(ids, (list, tuple)) or not all(isinstance(each, (int, str)) for each in ids):
        return None
    if all(isinstance(each, str) and each.isdecimal() for each in ids):
        ids = [int(each) for each in ids]
    names = listed.get("param_names") or (ids if all(isinstance(each, str) for each in ids) else ())
    if not isinstance(names, (list, tuple)) or len(names) != len(ids):
        names = ()
    options = {key: value for key, value in listed.items() if key not in ("params", "param_names")}
    return Group(tuple(ids), tuple(map(str, names)), options)


def _by_id(state: Mapping[Any, Any], groups: Sequence[Group]) -> dict[int | str, Mapping[str, Any]]:
    """Return the state under the groups' ids: distributed checkpoints turn numbers into text."""
    ids = {identity for group in groups for identity in group.ids}
    return {
        _number(key) if isinstance(key, str) and key not in ids else key: slots
        for key, slots in state.items()
        if isinstance(slots, Mapping)
    }


def _number(key: str) -> int | str:
    return int(key) if key.isdecimal() else key


def _unread(listed: Sequence[Any]) -> str:
    """Return what was not read of the groups, and why."""
    for index, group in enumerate(listed):
        options = group if isinstance(group, Mapping) else {"": group}
        for key, value in options.items():
            if key not in ("params", "param_names") and (why := withheld(value)):
                place = f".{escape(str(key), 60)}" if key else ""
                return f"param_groups[{index}]{place} was not read: {why}"
    return ""


# -- one key for each value --------------------------------------------------------------------------------


def _flat(path: str, node: Any) -> Saved | None:
    if not isinstance(node, Mapping) or not node:
        return None
    if not all(isinstance(key, str) and key.startswith((_STATE, _GROUPS)) for key in node):
        return None
    options: dict[str, dict[str, Any]] = {}
    for key, value in node.items():
        if key.startswith(_GROUPS):
            name, _, option = key.removeprefix(_GROUPS).rpartition(".")
            options.setdefault(name, {})[option] = value
            if isinstance(value, Stub) and (why := withheld(value)):
                return Saved(path, (), node, {}, "flat", unread=f"{escape(key, 80)} was not read: {why}")
    if not options:
        return None
    state: dict[int | str, dict[str, Any]] = {}
    for key, value in node.items():
        if key.startswith(_STATE):
            name = _owner(key.removeprefix(_STATE), options)
            if name is None:
                return None
            state.setdefault(name, {})[key.removeprefix(f"{_STATE}{name}.")] = value
    return Saved(path, _grouped(options), node, state, "flat")


def _owner(key: str, names: Mapping[str, Any]) -> str | None:
    """Return the parameter that a key of the state belongs to; its state may be nested."""
    while key and key not in names:
        key = key.rpartition(".")[0]
    return key or None


def _grouped(options: Mapping[str, dict[str, Any]]) -> tuple[Group, ...]:
    """Group parameters with the same options, which is all that is left of groups."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for name, own in options.items():
        names = next((names for shared, names in groups if shared == own), None)
        if names is None:
            groups.append((own, [name]))
        else:
            names.append(name)
    return tuple(Group(tuple(names), tuple(names), shared) for shared, names in groups)


def misfits(state: State, shapes: Mapping[str, Shape], *, rows: bool = False) -> list[tuple[str, str]]:
    """Return (name, slot) of all state that should have its parameter's shape, but does not.

    Beside a matrix or an object that says which, some optimizers have a projection under the same names, and
    nobody can say what shape that should have. With `rows`, one value for each row, or for all of a
    parameter, is right too, as some optimizers have it.
    """
    return [
        (name, slot)
        for name, slots in state.items()
        if all(slot in ELEMENTWISE or is_single(value) for slot, value in slots.items())
        for slot, value in slots.items()
        if slot in ELEMENTWISE and hasattr(value, "shape") and tuple(value.shape) != shapes[name]
        if not (rows and _is_of_rows(tuple(value.shape), shapes[name]))
    ]


def _is_of_rows(shape: Shape, whole: Shape) -> bool:
    sizes = zip(shape, whole, strict=False)
    return shape == () or (len(shape) == len(whole) and all(one in (1, other) for one, other in sizes))
