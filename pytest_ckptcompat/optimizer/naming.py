"""Which parameter each part of a numbered optimizer state belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .state import Naming, Saved, Shape, misfits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def one_state(
    found: list[Saved], candidates: Mapping[str, Naming], old: Mapping[str, Any]
) -> tuple[Saved, Naming]:
    """The state that is meant, and its names.

    Args:
        found: at least one, the usual places first.
        candidates: see `naming`.
        old: the old checkpoint's state dict.

    Raises:
        LookupError: none fits, or several in the same place do; the text says what to do.
    """
    shapes = {key: tuple(value.shape) for key, value in old.items() if isinstance(value, torch.Tensor)}
    fitting, reasons = [], []
    for saved in found:
        try:
            fitting.append((saved, naming(saved, candidates, shapes)))
        except LookupError as reason:
            reasons.append(reason)
    if not fitting:
        raise reasons[0]
    if len(fitting) > 1 and fitting[0][0].place == fitting[1][0].place:
        both = " and ".join(saved.path for saved, _ in fitting[:2])
        raise LookupError(f"{both} both fit the parameters: which is meant can't be told")
    return fitting[0]


def candidates(
    groups: Naming,
    origin: Mapping[str, str | None],
    old: Mapping[str, Any],
    model: nn.Module,
    source_groups: Naming | None = None,
) -> dict[str, Naming]:
    """Where the order of the saved parameters may be known from, the surest first.

    Args:
        groups: the new model's parameters, as its optimizer has them.
        origin: new key -> the old key that it comes from, or None.
        old: the old checkpoint's state dict.
        model: the new model.
        source_groups: the old model's parameters, as its optimizer had them.
    """
    found: dict[str, Naming] = {} if source_groups is None else {"source_model": source_groups}
    came = {name: origin.get(name, name) for group in groups for name in group}
    first = {old_name: name for name, old_name in reversed(came.items())}  # a block may have been copied
    found["the new model"] = [
        [old_name for name in group if (old_name := came[name]) is not None and first[old_name] == name]
        for group in groups
    ]
    others = {name for name, _ in model.named_buffers()} | tied_names(model).keys()
    unnumbered = {origin.get(name, name) for name in others}
    tensors = (key for key, value in old.items() if isinstance(value, torch.Tensor))
    found["the checkpoint"] = [[key for key in tensors if key not in unnumbered]]
    return found


def tied_names(model: nn.Module) -> dict[str, str]:
    """Further names of tied parameters -> the one under which an optimizer has them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in named if first[id(parameter)] != name}


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
