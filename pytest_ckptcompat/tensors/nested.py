"""Find and change tensors in inputs and outputs of models: dicts, tuples, dataclasses, other objects."""

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
    str, bytes, int, float, complex, type, FunctionType, MethodType, ModuleType, nn.Module, torch.dtype,
)  # fmt: skip
_LIMIT = 100_000


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in `value`, in order, with its path (``""``, ``[0]``, ``['loss']``, ``.logits``).

    Containers are searched, and so are the attributes of other objects (a dataclass, a distribution). Every
    container is visited once, so cycles end. The search stops after 100,000 containers.
    """
    seen: dict[int, Any] = {}  # keeps visited objects alive, so that no id is used twice
    pending = [("", value)]
    while pending and len(seen) < _LIMIT:
        path, node = pending.pop()
        if isinstance(node, torch.Tensor):
            yield path, node
        elif node is not None and not isinstance(node, _LEAVES) and id(node) not in seen:
            seen[id(node)] = node
            pending.extend(reversed(list(_children(path, node))))


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of `value` with every tensor in its containers replaced by ``change(tensor)``.

    Lists, tuples, named tuples, dicts and dataclasses are rebuilt. Any other object is kept as it is. The
    ``batch_sizes`` of a `PackedSequence` belong on the CPU and stay unchanged.
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
    """Return a copy of `value` with its tensors on `device`. Objects with a ``to`` method move themselves."""
    if not isinstance(value, (torch.Tensor, PackedSequence, tuple, list, dict)) and hasattr(value, "to"):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    if type(value) is dict:
        return {key: moved(item, device) for key, item in value.items()}
    return mapped(value, lambda tensor: tensor.to(device))


def _like(value: dict[Any, Any], items: dict[Any, Any]) -> Any:
    """Return `items` in a dict of the type of `value`, or in a plain dict if that can't be made."""
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
