"""Which parameter each part of a numbered optimizer state belongs to."""

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


class NoneFits(LookupError):  # noqa: N818  # it says what happened
    """No state can be named."""


def one_state(
    found: list[Saved],
    candidates: Mapping[str, Naming],
    old: Mapping[str, Any],
    doubts: Mapping[str, str] = MappingProxyType({}),
    given: Collection[str] = ("optimizer",),
) -> tuple[Saved, Naming]:
    """The state that is meant, and its names.

    Args:
        found: at least one, the usual places first.
        candidates: see `naming`.
        old: the old checkpoint's state dict.
        doubts: see `naming`.
        given: see `naming`.

    Raises:
        NoneFits: none fits; the text says what to do.
        LookupError: several in equally usual places fit.
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
    """Further names of tied parameters -> the one under which an optimizer has them."""
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
    """Which parameter each part of the state belongs to.

    torch numbers the parameters in the order in which the optimizer got them, group by group. The names that
    the file itself has are taken; else the candidate that fits every group's length and the most shapes.

    Args:
        saved: the state.
        candidates: where names come from -> the names of each group; of equally good ones the first is taken.
        shapes: the shape of every tensor of the old checkpoint.
        doubts: candidate -> why it is a guess, which is taken only if it is the one way to fit the shapes.
        given: which of ``optimizer`` and ``source_model`` were given, so that no advice asks for them.

    Raises:
        LookupError: it can't be determined; the text says what is missing and what to do.
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
    """The names that shapes alone give, if there is one way to give them; else None.

    Args:
        saved: the state.
        parameters: names of the old model's parameters; some may not be this optimizer's.
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
    """The shape of the parameter that these slots are of, as far as they show it."""
    known = {
        tuple(each.shape) for slot, each in slots.items() if slot in ELEMENTWISE and hasattr(each, "shape")
    }
    found = known or {
        shape for each in slots.values() if (shape := tuple(getattr(each, "shape", ()))) and shape in owners
    }
    return found.pop() if len(found) == 1 else None


def _alike(names: Naming, state: State, shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Two parameters of one group and one shape, either of which could have the other's state."""
    for group in names:
        seen: dict[Shape, str] = {}
        for name in group:
            if name in state and (other := seen.setdefault(shapes[name], name)) != name:
                return other, name
    return None


def spelled(names: Naming, keys: Mapping[str, Any]) -> Naming | None:
    """The names as the checkpoint has them; one of the two may have a prefix before all (``module.``)."""
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
    """What to do, of what was not done yet."""
    open_ones = [name for name in (first, *_REMEDIES) if name not in given]
    return _REMEDIES[open_ones[0]] if open_ones else _LAST


def _counts(numbers: Iterable[int]) -> str:
    return " + ".join(map(str, numbers))
