"""Optimizer state inside a training checkpoint: where it is, and which parameter each part belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_ckptcompat.core.escape import escape

Shape = tuple[int, ...]

Naming = Sequence[Sequence[str]]
"""The names of each group's parameters, in the optimizer's order."""

State = Mapping[str, Mapping[str, Any]]
"""Parameter name -> slot (``exp_avg``, ``step``) -> a number, or a tensor."""

ELEMENTWISE = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "sum",
    "acc_delta", "ax", "prev", "step_size",
})  # fmt: skip
"""What torch's optimizers keep for every element of a parameter, and so in its shape."""

SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})
"""Averages and sums of squared gradients: where a gradient is halved they are quartered."""

NONNEGATIVE = SQUARES | {"exp_inf", "acc_delta", "step"}
"""What can't be negative; a root is taken of most."""

_USUAL = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "optimizer_state", "opt")
_DEPTH, _WIDTH = 4, 1000


@dataclass(frozen=True)
class Group:
    """One parameter group: how its parameters are numbered, their names if the file has them, its options."""

    ids: tuple[int | str, ...]
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """The state dict of one optimizer, as it lies in a checkpoint.

    Attributes:
        path: where: ``optimizer_states[0]``; safe to print.
        groups: its parameter groups.
        node: the state dict itself.
        state: a parameter's id -> slot (``exp_avg``, ``step``, ...) -> a number, or whatever stands for a
            tensor and has a ``shape``.
    """

    path: str
    groups: tuple[Group, ...]
    node: Mapping[Any, Any] = field(repr=False)
    state: Mapping[int | str, Mapping[str, Any]]

    @property
    def place(self) -> str:
        """The key of the outer object that it lies under: ``optimizer_states``."""
        return self.path.partition("[")[0]

    @property
    def lengths(self) -> list[int]:
        """How many parameters each group has."""
        return [len(group.ids) for group in self.groups]

    def named(self, names: Naming) -> State:
        """The state by parameter name, in the order of the groups; parameters without any are left out."""
        return {
            name: self.state[identity]
            for group, called in zip(self.groups, names, strict=True)
            for identity, name in zip(group.ids, called, strict=True)
            if self.state.get(identity)
        }


def saved_states(wrapper: Any) -> list[Saved]:
    """Every optimizer state dict in the outer object of a checkpoint, the usual places first.

    It is known by its form (``state`` and ``param_groups``), so every layout is found up to four levels deep:
    ``optimizer``, ``optimizer_state_dict``, Lightning's list ``optimizer_states``, ``optim``, any other.
    """
    found: list[Saved] = []
    pending: list[tuple[str, Any, int]] = [("", wrapper, 0)]
    for path, node, depth in pending:  # which grows as it is walked: breadth first, without recursion
        saved = _saved(path, node)
        if saved is not None:
            found.append(saved)
        elif depth < _DEPTH:
            pending.extend((name, child, depth + 1) for name, child in _children(path, node))
    return sorted(found, key=lambda saved: _rank(saved.place))


def _children(path: str, node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        named = [(f"{path}.{escape(str(key), 60)}".removeprefix("."), child) for key, child in node.items()]
    elif isinstance(node, (list, tuple)):
        named = [(f"{path}[{index}]", child) for index, child in enumerate(node)]
    else:
        return []
    return [pair for pair in named if isinstance(pair[1], (Mapping, list, tuple))][:_WIDTH]


def _rank(place: str) -> int:
    return _USUAL.index(place) if place in _USUAL else len(_USUAL)


def _saved(path: str, node: Any) -> Saved | None:
    if not isinstance(node, Mapping):
        return None
    state, listed = node.get("state"), node.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(listed, (list, tuple)) or not listed:
        return None
    groups = [group for group in map(_group, listed) if group is not None]
    if len(groups) != len(listed):
        return None
    slots = {identity: each for identity, each in state.items() if isinstance(each, Mapping)}
    return Saved(path, tuple(groups), node, slots)


def _group(listed: Any) -> Group | None:
    ids = listed.get("params") if isinstance(listed, Mapping) else None
    if not isinstance(ids, (list, tuple)) or not all(isinstance(each, (int, str)) for each in ids):
        return None
    names = listed.get("param_names") or (ids if all(isinstance(each, str) for each in ids) else ())
    if not isinstance(names, (list, tuple)) or len(names) != len(ids):
        names = ()
    options = {key: value for key, value in listed.items() if key not in ("params", "param_names")}
    return Group(tuple(ids), tuple(map(str, names)), options)


def misfits(state: State, shapes: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """The (name, slot) of every part of the state that should have its parameter's shape and has not."""
    return [
        (name, slot)
        for name, slots in state.items()
        for slot, value in slots.items()
        if slot in ELEMENTWISE and hasattr(value, "shape") and tuple(value.shape) != shapes[name]
    ]
