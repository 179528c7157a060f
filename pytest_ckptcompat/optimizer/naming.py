"""Find the parameter that each part of a numbered optimizer state belongs to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.escape import escape

from .slots import ELEMENTWISE
from .state import Naming, Saved, Shape, State, misfits, rank

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import nn

_REMEDIES = {
    "optimizer": "give optimizer= (on the command line --optimizer), which shows its groups",
    "source_model": "give source_model= (--source-model), which shows their order",
}
_LAST = "save it from an optimizer made from model.named_parameters()"


@dataclass(frozen=True)
class Evidence:
    """The possible meanings of the numbers in an optimizer's state.

    Attributes:
        candidates: source of an order -> the old names of each group's parameters, surest first.
        shapes: the shape of every tensor of the old checkpoint.
        doubts: candidate -> why it is a guess, good only if shapes tell the parameters apart.
        parameters: the old model's parameters in the order of the file, as far as the new model shows them.
        given: which of ``optimizer`` and ``source_model`` were given, so that no advice asks for them.
    """

    candidates: Mapping[str, Naming]
    shapes: Mapping[str, Shape]
    doubts: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[str] = ()
    given: Collection[str] = ("optimizer",)

    def with_shapes(self, found: Sequence[Saved]) -> Evidence:
        """Return the evidence with the names that follow from the shapes of these states alone."""
        named = {saved.path: _by_shape(saved, self) for saved in found if not saved.unread}
        by_shape = {f"the order of shapes in {path}": names for path, names in named.items() if names}
        return replace(self, candidates={**self.candidates, **by_shape})


def one_state(found: Sequence[Saved], evidence: Evidence) -> tuple[Saved, Naming]:
    """Choose the one state that is meant; return it with its names.

    `found` holds at least one state, usual places first. Shapes alone count only if no state fits otherwise.

    Raises:
        LookupError: no state fits, or several do in equally usual places. The message says what to do.
    """
    for known in (evidence, evidence.with_shapes(found)):
        fitting, reasons = [], []
        for saved in found:
            try:
                fitting.append((saved, naming(saved, known)))
            except LookupError as reason:
                reasons.append(reason)
        if len(fitting) > 1 and rank(fitting[0][0].place) == rank(fitting[1][0].place):
            both = " and ".join(saved.path for saved, _ in fitting[:2])
            raise LookupError(f"{both} both fit the parameters, and which is meant can't be determined")
        if fitting:
            return fitting[0]
    raise reasons[0]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return other names of tied parameters -> the name that an optimizer has."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in named if first[id(parameter)] != name}


def naming(saved: Saved, evidence: Evidence) -> Naming:
    """Find the parameter that each part of the state belongs to.

    torch numbers parameters in the order in which the optimizer got them, group by group. If the file has
    names, these are used. Otherwise the candidate wins that fits every group's length and the most shapes; of
    equally good ones, the first. A guess is used only if the shapes allow no other order.

    Raises:
        LookupError: it can't be determined. The message says what is missing and what to do.
    """
    if saved.unread:
        raise LookupError(f"{saved.path}: {saved.unread}")
    shapes = evidence.shapes
    own = [group.names for group in saved.groups]
    in_file = [len(names) for names in own] == saved.lengths and any(own)
    candidates = {"the file": own} if in_file else evidence.candidates
    fitting = []
    for source, names in candidates.items():
        as_spelled = spelled(names, shapes)
        if as_spelled is not None and [len(group) for group in as_spelled] == saved.lengths:
            odd = len({name for name, _ in misfits(saved.named(as_spelled), shapes, rows=True)})
            fitting.append((odd, as_spelled, "" if in_file else evidence.doubts.get(source, "")))
    odd, best, doubt = min(fitting, key=lambda each: each[0], default=(0, None, ""))
    if best is None or (odd > len(saved.named(best)) / 2 and not in_file):
        raise LookupError(_undetermined(saved, candidates, evidence.given))
    if doubt and (pair := _alike(best, saved.named(best), shapes)):
        either = " or ".join(map(escape, pair))
        raise LookupError(
            f"{saved.path} goes by position, and whether a place is that of {either} can't be determined: "
            f"{doubt}; {_remedy(evidence.given, 'source_model')}"
        )
    return best


def _by_shape(saved: Saved, evidence: Evidence) -> Naming | None:
    """Return the names that follow from shapes alone, or None if they are ambiguous."""
    owners: dict[Shape | None, list[str]] = defaultdict(list)
    for name in evidence.parameters:  # some may not be in this optimizer
        owners[evidence.shapes[name]].append(name)
    alone = {shape: names[0] for shape, names in owners.items() if len(names) == 1}
    groups = [
        [alone.get(_shape(saved.state.get(identity, {}), owners), "") for identity in group.ids]
        for group in saved.groups
    ]
    flat = [name for group in groups for name in group]
    return groups if "" not in flat and len(set(flat)) == len(flat) else None


def _shape(slots: Mapping[str, Any], owners: Collection[Shape | None]) -> Shape | None:
    """Return the shape of the parameter that these slots belong to, if they show it."""
    shapes = {slot: tuple(value.shape) for slot, value in slots.items() if hasattr(value, "shape")}
    found = {shape for slot, shape in shapes.items() if slot in ELEMENTWISE} or {
        shape for shape in shapes.values() if shape and shape in owners
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
