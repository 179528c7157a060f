"""Which parameter each part of a numbered optimizer state belongs to."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape

from .state import Naming, Saved, Shape, State, misfits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TELL = "give source_model=, or save the state of an optimizer made from model.named_parameters()"


def one_state(
    found: list[Saved],
    candidates: Mapping[str, Naming],
    old: Mapping[str, Any],
    doubts: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Saved, Naming]:
    """The state that is meant, and its names.

    Args:
        found: at least one, the usual places first.
        candidates: see `naming`.
        old: the old checkpoint's state dict.
        doubts: see `naming`.

    Raises:
        LookupError: none fits, or several in the same place do; the text says what to do.
    """
    shapes = {key: tuple(value.shape) for key, value in old.items() if isinstance(value, torch.Tensor)}
    fitting, reasons = [], []
    for saved in found:
        try:
            fitting.append((saved, naming(saved, candidates, shapes, doubts)))
        except LookupError as reason:
            reasons.append(reason)
    if not fitting:
        raise reasons[0]
    if len(fitting) > 1 and fitting[0][0].place == fitting[1][0].place:
        both = " and ".join(saved.path for saved, _ in fitting[:2])
        raise LookupError(f"{both} both fit the parameters: which is meant can't be told")
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
) -> Naming:
    """Which parameter each part of the state belongs to.

    torch numbers the parameters in the order in which the optimizer got them, group by group. The names that
    the file itself has are taken; else the candidate that fits every group's length and the most shapes.

    Args:
        saved: the state.
        candidates: where names come from -> the names of each group; of equally good ones the first is taken.
        shapes: the shape of every tensor of the old checkpoint.
        doubts: candidate -> why it is a guess, which is taken only if it is the one way to fit the shapes.

    Raises:
        LookupError: it can't be told; the text says what is missing and what to do.
    """
    own = [group.names for group in saved.groups]
    if [len(names) for names in own] == saved.lengths and any(own):
        candidates, doubts = {"the file": own}, {}
    fitting = []
    for source, names in candidates.items():
        as_spelled = spelled(names, shapes)
        if as_spelled is not None and [len(group) for group in as_spelled] == saved.lengths:
            odd = len(misfits(saved.named(as_spelled), shapes))
            fitting.append((odd, as_spelled, doubts.get(source, "")))
    odd, best, doubt = min(fitting, key=lambda each: each[0], default=(0, None, ""))
    if best is None or (odd > len(saved.named(best)) / 2 and "the file" not in candidates):
        raise LookupError(_untold(saved, candidates))
    if doubt and (pair := _alike(best, saved.named(best), shapes)):
        either = " or of ".join(map(escape, pair))
        raise LookupError(
            f"{saved.path} goes by position, and whether a place is that of {either} can't be told: "
            f"{doubt}; {_TELL}"
        )
    return best


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


def _untold(saved: Saved, candidates: Mapping[str, Naming]) -> str:
    given = [f"{source} gives {_counts(map(len, names))}" for source, names in candidates.items()]
    others = f" ({'; '.join(given)})" if given else ""
    return (
        f"{saved.path} numbers {_counts(saved.lengths)} parameters and which they are can't be told{others}: "
        f"{_TELL}"
    )


def _counts(numbers: Iterable[int]) -> str:
    return " + ".join(map(str, numbers))
