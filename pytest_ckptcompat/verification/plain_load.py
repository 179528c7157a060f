"""Load models whose modules use torch's own loaders, in time linear in the number of keys."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

if TYPE_CHECKING:
    from collections.abc import Mapping


class Lists(NamedTuple):
    """The faults that torch's error would name."""

    missing: list[str]
    unexpected: list[str]
    errors: list[str]


def is_plain(model: nn.Module, state_dict: Mapping[str, Any]) -> bool:
    """Return whether a load changes nothing: all is on meta, and no module has its own loader."""
    tensors = chain(model.parameters(), model.buffers(), state_dict.values())
    return all(isinstance(tensor, torch.Tensor) and tensor.is_meta for tensor in tensors) and all(
        type(module)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        and type(module).load_state_dict is nn.Module.load_state_dict
        and type(module).set_extra_state is nn.Module.set_extra_state
        and vars(module).keys().isdisjoint(("_load_from_state_dict", "load_state_dict", "set_extra_state"))
        and not (module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks)
        and not isinstance(module, LazyModuleMixin)
        for module in model.modules()
    )


def plain_load(model: nn.Module, state_dict: Mapping[str, Any]) -> Lists:
    """Load like ``nn.Module.load_state_dict``, but faster.

    torch picks each child's keys from all keys of its parent, which takes minutes if a module has ten
    thousand children.
    """
    lists = Lists([], [], [])
    metadata = getattr(state_dict, "_metadata", None) or {}

    def load(module: nn.Module, local: dict[str, Any], prefix: str) -> None:
        module._load_from_state_dict(local, prefix, metadata.get(prefix[:-1], {}), True, *lists)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in local.items():
            parts.setdefault(key[len(prefix) :].partition(".")[0], {})[key] = value
        for name, child in module._modules.items():
            if child is not None:
                load(child, parts.get(name, {}), f"{prefix}{name}.")

    load(model, dict(state_dict), "")
    return lists
