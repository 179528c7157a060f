"""In what order the optimizer had its parameters when it was saved, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.tensors.difference import memory as place

from .naming import spelled, tied_names
from .state import Naming

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

SOURCE, FILE, KEPT, NEW = "source_model", "the checkpoint", "what the new model has of it", "the new model"

Grouping = Callable[[Mapping[str, nn.Parameter]], Naming | None]
"""Named parameters -> the names of each group's in an optimizer of them, or None if it takes them not."""


@dataclass(frozen=True)
class Evidence:
    """What the numbers in an optimizer's state may mean.

    Attributes:
        candidates: where an order is known from -> the old names of each group's parameters; surest first.
        doubts: why a candidate is a guess, if it is: good only where shapes tell the parameters apart.
        parameters: the old model's parameters in the order of the file, as far as the new model shows.
    """

    candidates: Mapping[str, Naming]
    doubts: Mapping[str, str] = field(default_factory=dict)
    parameters: Sequence[str] = ()


def evidence(
    grouping: Grouping,
    origin: Mapping[str, str | None],
    old: Mapping[str, Any],
    model: nn.Module,
    source: nn.Module | None = None,
) -> Evidence:
    """Whose order the numbers follow: that of the model that was trained, which the new one may not have.

    ``source_model`` has it. Without one the file shows it, since ``state_dict()`` goes through a model as
    ``parameters()`` does. Keys that were sorted show nothing (safetensors sorts them), nor do those of a
    model that writes them in an order of its own, unless the new model writes them in the same.

    Args:
        grouping: what the user's optimizer does with parameters.
        origin: new key -> the old key that it comes from, or None.
        old: the old checkpoint's state dict.
        model: the new model.
        source: the model that the checkpoint was made for.
    """
    parameters = _Parameters(old, origin, model)
    file = parameters.of_file()
    written = parameters.of(model.state_dict())
    numbered = parameters.of(dict(model.named_parameters()))
    unchanged = parameters.new_names(written) == parameters.new_names(file)
    theirs = None if source is None else _order(source, old)
    orders: dict[str, list[str]] = {}
    doubts: dict[str, str] = {}
    if source is not None and theirs is None:
        doubts[SOURCE] = "source_model has its keys in another order than the file"
    if theirs is not None:
        orders[FILE] = parameters.once(theirs)
    elif unchanged:
        orders = {NEW: numbered, FILE: file}
    elif not _sorted(old):
        orders[FILE] = file
        if parameters.new_names(written) != parameters.new_names(numbered):
            reason = "the new model's state dict has another order than its parameters"
            doubts |= {FILE: reason, KEPT: reason}
    orders[KEPT] = [key for key in orders.get(FILE, []) if key in parameters.became]
    if not unchanged:
        doubts[NEW] = "the new model has its keys in another order than the file"
    orders.setdefault(NEW, numbered)
    found = {} if source is None else {SOURCE: grouping(dict(source.named_parameters()))}
    found |= {name: parameters.grouped(grouping, keys) for name, keys in orders.items() if keys}
    candidates: dict[str, Naming] = {}
    for name, names in found.items():
        if names is not None and names not in candidates.values():
            candidates[name] = names
    return Evidence(candidates, doubts, file)


class _Parameters:
    """The old checkpoint's parameters, as far as a new model and the file's ties show which they are.

    Attributes:
        became: old key -> the new parameter; where a block was copied, the first.
    """

    def __init__(self, old: Mapping[str, Any], origin: Mapping[str, str | None], model: nn.Module) -> None:
        self._old = {key: value for key, value in old.items() if isinstance(value, torch.Tensor)}
        self._origin = origin
        self._new = dict(model.named_parameters())
        self._buffers = {origin.get(name, name) for name, _ in model.named_buffers()}
        tied = tied_names(model)
        self.became: dict[str, str] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            key = origin.get(name, name)
            if key in self._old:
                self.became.setdefault(key, tied.get(name, name))

    def of_file(self) -> list[str]:
        """Every parameter of the file, in its order: whatever is not a buffer of the new model."""
        return self.once(key for key in self._old if key not in self._buffers)

    def of(self, keys: Iterable[str]) -> list[str]:
        """The parameters that those of a new order come from, in that order."""
        return self.once(key for name in keys if (key := self._origin.get(name, name)) in self.became)

    def once(self, keys: Iterable[str]) -> list[str]:
        """One key of each parameter: of tied ones the first, whose place is the one that an optimizer has."""
        seen: set[Hashable] = set()
        first = []
        for key in keys:
            marks = {("memory", place(self._old[key])), ("new", self.became.get(key, (key,)))}
            if seen.isdisjoint(marks):
                first.append(key)
            seen |= marks
        return first

    def new_names(self, keys: Iterable[str]) -> list[str]:
        """What became of those that the new model has."""
        return [self.became[key] for key in keys if key in self.became]

    def grouped(self, grouping: Grouping, keys: Iterable[str]) -> Naming | None:
        """The groups of an optimizer that gets the parameters in this order, under their new names."""
        called = {self.became.get(key, key): key for key in keys}
        groups = grouping({name: self._parameter(key, name) for name, key in called.items()})
        return None if groups is None else [[called[name] for name in group] for group in groups]

    def _parameter(self, key: str, name: str) -> nn.Parameter:
        tensor = self._old[key].detach()
        trained = self._new[name].requires_grad if name in self._new else tensor.is_floating_point()
        return nn.Parameter(tensor, trained)


def _order(source: nn.Module, old: Mapping[str, Any]) -> list[str] | None:
    """The old model's parameters in its order, as the file spells them; None if the file denies it."""
    own = [name for name, _ in source.named_parameters()]
    names = spelled([own], old)
    if names is None:
        return None
    key = dict(zip(own, names[0], strict=True))
    written = [key[name] for name in source.state_dict() if name in key]
    in_file = set(written)
    if not _sorted(old) and [each for each in old if each in in_file] != written:
        return None
    return list(key.values())


def _sorted(state_dict: Mapping[str, Any]) -> bool:
    """Whether something other than the model has ordered the keys: by name, or by dtype and then by name.

    ``module.state_dict()`` leaves its ``_metadata``, so a dict that has it is as a model wrote it.
    """
    by_dtype: dict[torch.dtype, list[str]] = {}
    for key, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            by_dtype.setdefault(value.dtype, []).append(key)
    written = getattr(state_dict, "_metadata", None) is not None
    return not written and all(keys == sorted(keys) for keys in by_dtype.values())
