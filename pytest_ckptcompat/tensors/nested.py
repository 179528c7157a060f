"""Tensors inside whatever a model takes or gives: dicts, tuples, dataclasses, objects of other libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    type,
    FunctionType,
    MethodType,
    ModuleType,
    nn.Module,
    torch.dtype,
)
_LIMIT = 100_000


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in `value`, in order, with the path to it (``""``, ``[0]``, ``['loss']``, ``.logits``).

    Containers are looked into, and so are the attributes of any other object (a dataclass, a distribution).
    Every container is visited once, so cycles end; a structure of more than 100,000 of them is left at that.
    """
    seen: dict[int, Any] = {}  # keeps what it met alive, so that no id is used twice
    pending = [("", value)]
    while pending and len(seen) < _LIMIT:
        path, node = pending.pop()
        if isinstance(node, torch.Tensor):
            yield path, node
        elif node is not None and not isinstance(node, _LEAVES) and id(node) not in seen:
            seen[id(node)] = node
            pending.extend(reversed(list(_children(path, node))))


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of `value` with every tensor in its containers replaced by ``change(tensor)``.

    Lists, tuples, named tuples, mappings and dataclasses are rebuilt; any other object is kept as it is. The
    ``batch_sizes`` of a `PackedSequence` belong on the CPU and are kept there.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        return value._replace(
            data=change(value.data),
            sorted_indices=mapped(value.sorted_indices, change),
            unsorted_indices=mapped(value.unsorted_indices, change),
        )
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if isinstance(value, dict):
        return _like(value, {key: mapped(item, change) for key, item in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value) if f.init
        }
        return dataclasses.replace(value, **changes)
    return value


def moved(value: Any, device: torch.device | str) -> Any:
    """A copy of `value` with its tensors on `device`; what has a ``to`` of its own uses that."""
    if not isinstance(value, (torch.Tensor, PackedSequence, tuple, list, dict)) and hasattr(value, "to"):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    if type(value) is dict:
        return {key: moved(item, device) for key, item in value.items()}
    return mapped(value, lambda tensor: tensor.to(device))


def _like(value: dict[Any, Any], items: dict[Any, Any]) -> Any:
    """`items` in a dict of the kind of `value`, or a plain one where that kind can't be made from items."""
    if type(value) is dict:
        return items
    try:
        return type(value)(items)  # OrderedDict, ModelOutput
    except TypeError:
        return items


def _children(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in node.items())
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        yield from ((f"{path}.{name}", item) for name, item in zip(node._fields, node, strict=True))
    elif isinstance(node, (list, tuple)):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(node))
    elif isinstance(node, AbstractSet):
        yield from ((f"{path}{{}}", item) for item in node)
    else:
        yield from ((f"{path}.{name}", item) for name, item in getattr(node, "__dict__", {}).items())
