"""Optimizer state inside a training checkpoint: where it is, and which parameter each part belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .keys import escape

Shape = tuple[int, ...]

Naming = Sequence[Sequence[str]]
"""The names of each group's parameters, in the optimizer's order."""

ELEMENTWISE = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "sum",
    "acc_delta", "ax", "prev", "step_size",
})  # fmt: skip
"""What torch's optimizers keep for every element of a parameter, and so in its shape."""

NONNEGATIVE = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum", "acc_delta", "step"})
"""Averages of squares and the like, of which a root is taken; and the count of steps."""

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
        state: a parameter's id -> slot (``exp_avg``, ``step``, ...) -> a number, or whatever stands for a
            tensor and has a ``shape``.
    """

    path: str
    groups: tuple[Group, ...]
    state: Mapping[int | str, Mapping[str, Any]]

    @property
    def lengths(self) -> list[int]:
        """How many parameters each group has."""
        return [len(group.ids) for group in self.groups]

    def named(self, names: Naming) -> dict[str, Mapping[str, Any]]:
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
    return sorted(found, key=lambda saved: _rank(saved.path))


def _children(path: str, node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        named = [(f"{path}.{escape(str(key), 60)}".removeprefix("."), child) for key, child in node.items()]
    elif isinstance(node, (list, tuple)):
        named = [(f"{path}[{index}]", child) for index, child in enumerate(node)]
    else:
        return []
    return [pair for pair in named if isinstance(pair[1], (Mapping, list, tuple))][:_WIDTH]


def _rank(path: str) -> int:
    name = path.partition("[")[0]
    return _USUAL.index(name) if name in _USUAL else len(_USUAL)


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
    return Saved(path, tuple(groups), slots)


def _group(listed: Any) -> Group | None:
    ids = listed.get("params") if isinstance(listed, Mapping) else None
    if not isinstance(ids, (list, tuple)) or not all(isinstance(each, (int, str)) for each in ids):
        return None
    names = listed.get("param_names") or (ids if all(isinstance(each, str) for each in ids) else ())
    if not isinstance(names, (list, tuple)) or len(names) != len(ids):
        names = ()
    options = {key: value for key, value in listed.items() if key not in ("params", "param_names")}
    return Group(tuple(ids), tuple(map(str, names)), options)


def naming(saved: Saved, candidates: Mapping[str, Naming], shapes: Mapping[str, Shape]) -> Naming:
    """Which parameter each part of the state belongs to.

    torch numbers the parameters in the order in which the optimizer got them, group by group. The names that
    the file itself has are taken; else the candidate that fits every group's length and the most shapes.

    Args:
        saved: the state.
        candidates: where names come from -> the names of each group; of equally good ones the first is taken.
        shapes: the shape of every tensor of the old checkpoint.

    Raises:
        LookupError: it can't be told; the text says what is missing and what to do.
    """
    own = [group.names for group in saved.groups]
    if [len(names) for names in own] == saved.lengths and any(own):
        candidates = {"the file": own}
    fitting = []
    for names in candidates.values():
        spelled = _spelled(names, shapes)
        if spelled is not None and [len(group) for group in spelled] == saved.lengths:
            fitting.append(spelled)
    odd, best = min(
        ((len(misfits(saved.named(names), shapes)), names) for names in fitting),
        key=lambda pair: pair[0],
        default=(0, None),
    )
    if best is None or (odd > len(saved.named(best)) / 2 and "the file" not in candidates):
        raise LookupError(_untold(saved, candidates))
    return best


def misfits(state: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """The (name, slot) of every part of the state that should have its parameter's shape and has not."""
    return [
        (name, slot)
        for name, slots in state.items()
        for slot, value in slots.items()
        if slot in ELEMENTWISE and hasattr(value, "shape") and tuple(value.shape) != shapes[name]
    ]


def _spelled(names: Naming, keys: Mapping[str, Any]) -> Naming | None:
    """The names as the checkpoint has them; one of the two may have a prefix before all (``module.``)."""
    flat = [name for group in names for name in group]
    first = next(iter(flat), "").partition(".")[0] + "."
    outer = next(iter(keys), "").partition(".")[0] + "."
    for add, cut in (("", ""), (outer, ""), ("", first), (outer, first)):
        if all(name.startswith(cut) and add + name.removeprefix(cut) in keys for name in flat):
            return [[add + name.removeprefix(cut) for name in group] for group in names]
    return None


def _untold(saved: Saved, candidates: Mapping[str, Naming]) -> str:
    given = [f"{source} gives {_counts(map(len, names))}" for source, names in candidates.items()]
    others = f" ({'; '.join(given)})" if given else ""
    return (
        f"{saved.path} numbers {_counts(saved.lengths)} parameters and which they are can't be told{others}: "
        "give source_model=, or save the state of an optimizer made from model.named_parameters()"
    )


def _counts(numbers: Iterable[int]) -> str:
    return " + ".join(map(str, numbers))
