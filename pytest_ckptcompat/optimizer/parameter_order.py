"""Find the order of the optimizer's parameters when it was saved, and how certain it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.tensors.difference import memory as place

from .naming import Evidence, spelled, tied_names
from .state import Naming

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

SOURCE, FILE, KEPT, NEW = "source_model", "the checkpoint", "what the new model has of it", "the new model"

Grouping = Callable[[Mapping[str, nn.Parameter]], Naming | None]
"""Named parameters -> the names in each group of an optimizer, or None if it refuses them."""


def evidence(
    origin: Mapping[str, str | None],
    old: Mapping[str, Any],
    model: nn.Module,
    source: nn.Module | None = None,
    grouping: Grouping | None = None,
) -> Evidence:
    """Collect orders that the numbers may follow: that of the trained model, which may not be the new one's.

    ``source_model`` has this order. Without it the file shows it, since ``state_dict()`` walks a model like
    ``parameters()``. Sorted keys show nothing (safetensors sorts them). Keys of a model that writes them in
    its own order show nothing either, unless the new model writes them in the same order.

    Without a `grouping`, all parameters are in one group, as in most optimizers.
    """
    given = [name for name, value in (("optimizer", grouping), ("source_model", source)) if value is not None]
    grouping = grouping or (lambda named: [list(named)])
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
    shapes = {key: tuple(value.shape) for key, value in old.items() if isinstance(value, torch.Tensor)}
    return Evidence(candidates, shapes, doubts, file, given)


class _Parameters:
    """The old checkpoint's parameters, as far as the new model and ties in the file show them.

    Attributes:
        became: old key -> the new parameter; of copied blocks, the first.
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
        """Return every key of the file that is not a buffer of the new model, in order."""
        return self.once(key for key in self._old if key not in self._buffers)

    def of(self, keys: Iterable[str]) -> list[str]:
        """Return the old parameters of new keys, in the order of these keys."""
        return self.once(key for name in keys if (key := self._origin.get(name, name)) in self.became)

    def once(self, keys: Iterable[str]) -> list[str]:
        """Return one key of each parameter: of tied ones the first, which is the one in an optimizer."""
        seen: set[Hashable] = set()
        first = []
        for key in keys:
            marks = {("memory", place(self._old[key])), ("new", self.became.get(key, (key,)))}
            if seen.isdisjoint(marks):
                first.append(key)
            seen |= marks
        return first

    def new_names(self, keys: Iterable[str]) -> list[str]:
        """Return the new names of those keys that the new model has."""
        return [self.became[key] for key in keys if key in self.became]

    def grouped(self, grouping: Grouping, keys: Iterable[str]) -> Naming | None:
        """Group the parameters as an optimizer does that gets them in this order, under their new names."""
        called = {self.became.get(key, key): key for key in keys}
        groups = grouping({name: self._parameter(key, name) for name, key in called.items()})
        return None if groups is None else [[called[name] for name in group] for group in groups]

    def _parameter(self, key: str, name: str) -> nn.Parameter:
        tensor = self._old[key].detach()
        frozen = name in self._new and not self._new[name].requires_grad
        return nn.Parameter(tensor, not frozen and (tensor.is_floating_point() or tensor.is_complex()))


def _order(source: nn.Module, old: Mapping[str, Any]) -> list[str] | None:
    """Return the source model's parameters in order, as the file spells them; None if the file disagrees."""
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
    """Return whether the keys were sorted: by name, or by dtype and then by name.

    ``module.state_dict()`` adds ``_metadata``, so a dict that has it is in the model's order.
    """
    by_dtype: dict[torch.dtype, list[str]] = {}
    for key, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            by_dtype.setdefault(value.dtype, []).append(key)
    written = getattr(state_dict, "_metadata", None) is not None
    return not written and all(keys == sorted(keys) for keys in by_dtype.values())
