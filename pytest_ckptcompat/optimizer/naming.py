"""Find the parameter that each part of a numbered optimizer state belongs to."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape

from .slots import ELEMENTWISE
from .state import Naming, Saved, Shape, State, misfits, rank

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

SHAPES = "its shapes"
_REMEDIES = {
    "optimizer": "give optimizer= (on the command line --optimizer), which shows its groups",
    "source_model": "give source_model= (--source-model), which shows their order",
}
_LAST = "save it from an optimizer made from model.named_parameters()"


class NoneFits(LookupError):  # noqa: N818  # the name says what happened
    """Raised if no state can be named."""


def one_state(
    found: list[Saved],
    candidates: Mapping[str, Naming],
    old: Mapping[str, Any],
    doubts: Mapping[str, str] = MappingProxyType({}),
    given: Collection[str] = ("optimizer",),
) -> tuple[Saved, Naming]:
    """Choose the one state that is meant; return it with its names.

    Args:
        found: at least one state, usual places first.
        candidates: see `naming`.
        old: the old checkpoint's state dict.
        doubts: see `naming`.
        given: see `naming`.

    Raises:
        NoneFits: no state fits. The message says what to do.
        LookupError: several states fit, in equally usual places.
    """
    shapes = {key: tuple(value.shape) for key, value in old.items() if isinstance(value, torch.Tensor)}
    fitting, reasons = [], []
    for saved in found:
        try:
            fitting.append((saved, naming(saved, candidates, shapes, doubts, given)))
        except LookupError as reason:
            reasons.append(reason)
    if not fitting:
        raise NoneFits(str(reasons[0]))
    if len(fitting) > 1 and rank(fitting[0][0].place) == rank(fitting[1][0].place):
        both = " and ".join(saved.path for saved, _ in fitting[:2])
        raise LookupError(f"{both} both fit the parameters, and which is meant can't be determined")
    return fitting[0]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return other names of tied parameters -> the name that an optimizer has."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in named if first[id(parameter)] != name}


def naming(
    saved: Saved,
    candidates: Mapping[str, Naming],
    shapes: Mapping[str, Shape],
    doubts: Mapping[str, str] = MappingProxyType({}),
    given: Collection[str] = ("optimizer",),
) -> Naming:
    """Find the parameter that each part of the state belongs to.

    torch numbers parameters in the order in which the optimizer got them, group by group. If the file has
    names, these are used. Otherwise the candidate wins that fits every group's length and the most shapes.

    Args:
        saved: the state.
        candidates: source of names -> the names of each group; of equally good ones the first wins.
        shapes: the shape of every tensor of the old checkpoint.
        doubts: candidate -> why it is a guess. A guess is used only if the shapes allow no other order.
        given: which of ``optimizer`` and ``source_model`` were given, so that no advice asks for them.

    Raises:
        LookupError: it can't be determined. The message says what is missing and what to do.
    """
    if saved.unread:
        raise LookupError(f"{saved.path}: {saved.unread}")
    own = [group.names for group in saved.groups]
    if [len(names) for names in own] == saved.lengths and any(own):
        candidates, doubts = {"the file": own}, {}
    fitting = []
    for source, names in candidates.items():
        as_spelled = spelled(names, shapes)
        if as_spelled is not None and [len(group) for group in as_spelled] == saved.lengths:
            odd = len({name for name, _ in misfits(saved.named(as_spelled), shapes, rows=True)})
            fitting.append((odd, as_spelled, doubts.get(source, "")))
    odd, best, doubt = min(fitting, key=lambda each: each[0], default=(0, None, ""))
    if best is None or (odd > len(saved.named(best)) / 2 and "the file" not in candidates):
        raise LookupError(_undetermined(saved, candidates, given))
    if doubt and (pair := _alike(best, saved.named(best), shapes)):
        either = " or ".join(map(escape, pair))
        raise LookupError(
            f"{saved.path} goes by position, and whether a place is that of {either} can't be determined: "
            f"{doubt}; {_remedy(given, 'source_model')}"
        )
    return best


def by_shape(saved: Saved, parameters: Sequence[str], shapes: Mapping[str, Shape]) -> Naming | None:
    """Return the names that follow from shapes alone, or None if they are ambiguous.

    Args:
        saved: the state.
        parameters: names of the old model's parameters; some may not be in this optimizer.
        shapes: the shape of every tensor of the old checkpoint.
    """
    owners: dict[Shape, list[str]] = defaultdict(list)
    for name in parameters:
        owners[shapes[name]].append(name)
    found = {
        identity: _shape(saved.state.get(identity, {}), owners)
        for group in saved.groups
        for identity in group.ids
    }
    wanted = Counter(found.values())
    if any(shape is None or wanted[shape] != 1 or len(owners[shape]) != 1 for shape in wanted):
        return None
    return [[owners[found[identity]][0] for identity in group.ids] for group in saved.groups]  # type: ignore[index]


def _shape(slots: Mapping[str, Any], owners: Mapping[Shape, Any]) -> Shape | None:
    """Return the shape of the parameter that these slots belong to, if they show it."""
    known = {
        tuple(each.shape) for slot, each in slots.items() if slot in ELEMENTWISE and hasattr(each, "shape")
    }
    found = known or {
        shape for each in slots.values() if (shape := tuple(getattr(each, "shape", ()))) and shape in owners
    }
    return found.pop() if len(found) == 1 else None


def _alike(names: Naming, state: State, shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Return two parameters of the same group and shape, whose states could be swapped, or None."""
    for group in names:
        seen: dict[Shape, str] = {}
        for name in group:
            if name in state and (other := seen.setdefault(shapes[name], name)) != name:
                return other, name
    return None


def spelled(names: Naming, keys: Mapping[str, Any]) -> Naming | None:
    """Spell the names like the checkpoint; either side may have a prefix (``module.``)."""
    flat = [name for group in names for name in group]
    first = next(iter(flat), "").partition(".")[0] + "."
    outer = next(iter(keys), "").partition(".")[0] + "."
    for add, cut in (("", ""), (outer, ""), ("", first), (outer, first)):
        if all(name.startswith(cut) and add + name.removeprefix(cut) in keys for name in flat):
            return [[add + name.removeprefix(cut) for name in group] for group in names]
    return None


def _undetermined(saved: Saved, candidates: Mapping[str, Naming], given: Collection[str]) -> str:
    others = [f"{source} gives {_counts(map(len, names))}" for source, names in candidates.items()]
    found = f" ({'; '.join(others)})" if others else ""
    first = "optimizer" if len(saved.groups) > 1 else "source_model"
    return (
        f"{saved.path} has {_counts(saved.lengths)} parameters, and which is which can't be determined"
        f"{found}: {_remedy(given, first)}"
    )


def _remedy(given: Collection[str], first: str) -> str:
    """Return advice that was not followed yet."""
    open_ones = [name for name in (first, *_REMEDIES) if name not in given]
    return _REMEDIES[open_ones[0]] if open_ones else _LAST


def _counts(numbers: Iterable[int]) -> str:
    return " + ".join(map(str, numbers))
