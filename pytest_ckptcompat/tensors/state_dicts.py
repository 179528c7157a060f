"""State dicts made of others, with the versions of modules that torch keeps in ``_metadata``."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def with_versions(
    entries: Mapping[str, Any] | Iterable[tuple[str, Any]], like: Mapping[str, Any]
) -> OrderedDict[str, Any]:
    """Return a state dict of some entries, with a copy of the ``_metadata`` of another one, if it has any."""
    state = OrderedDict(entries)
    if (metadata := getattr(like, "_metadata", None)) is not None:
        state._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return state


def on_meta(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return a state dict in which every tensor with a shape is a new one on the meta device."""

    def empty(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or is_lazy(value) or value.is_nested:
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return with_versions(((key, empty(value)) for key, value in state_dict.items()), state_dict)
