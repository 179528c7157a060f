"""Tensors in the nested objects of a checkpoint, by dotted key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Branch, Branches, Dict, Stub, children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits

_OF_MODULES = ("_non_persistent_buffers_set", "_parameters", "_buffers", "_modules")

_PER_TENSOR = 4

_WIDEST_CHARACTER = 4


def has_tensors(node: object) -> bool:
    """Whether it is a dict with strings as keys and a tensor among its values."""
    entries = node.items if isinstance(node, Stub) else node
    if not isinstance(entries, dict):
        return False
    return any(isinstance(value, TensorSpec) and isinstance(key, str) for key, value in entries.items())


def is_module(node: object) -> bool:
    """Whether it is an ``nn.Module`` that was pickled whole."""
    if not isinstance(node, Stub):
        return False
    attributes = node.attributes
    return "_parameters" in attributes and "_modules" in attributes


def flatten(node: object, limits: Limits) -> dict[str, object]:
    """The entries of a state dict in order: `TensorSpec` where there is a tensor, else plain values.

    Args:
        node: a dict, an object that was filled like one, or a module that was pickled whole.
        limits: caps.

    Raises:
        CheckpointError: it is none of these, or a cap is exceeded.
    """
    if is_module(node):
        return dict(_module_entries(node, limits))
    entries = node.items if isinstance(node, Stub) and node.items is not None else node
    if isinstance(entries, TensorSpec):
        raise CheckpointError("it is a tensor, not a state dict")
    if not isinstance(entries, dict):
        raise CheckpointError("it is no state dict")
    if isinstance(entries, Branch):
        return dict(_joined_entries("", entries, limits))
    odd = [kind.__name__ for kind in set(map(type, entries)) if not issubclass(kind, str)]
    if odd:
        raise CheckpointError(f"its state dict has a key that is no string, but {min(odd)}")
    flat: dict[str, object] = dict(entries)
    if max(map(len, flat), default=0) * _WIDEST_CHARACTER > limits.key_bytes:
        for key in flat:
            _check_key(key, limits)
    return flat


def _module_entries(root: object, limits: Limits) -> Iterator[tuple[str, object]]:
    """What ``state_dict()`` of a module gives: parameters and persistent buffers, then the children's."""
    pending = [("", root, 0)]
    looked_at = 0
    while pending:
        prefix, node, depth = pending.pop()
        limits.check("nesting", depth, "its modules are nested too deeply")
        if not isinstance(node, Stub):
            continue
        attributes = node.attributes
        skipped, *groups = (attributes.get(name) for name in _OF_MODULES)
        looked_at += 1 + sum(len(group) for group in (skipped, *groups) if isinstance(group, (dict, list)))
        limits.check("tensors", looked_at // _PER_TENSOR, "it holds too many modules and tensors")
        transient = (
            {name for name in skipped if isinstance(name, str)} if isinstance(skipped, list) else set()
        )
        parameters, buffers, modules = (_under(prefix, group, limits) for group in groups)
        yield from ((key, value) for key, value in parameters if value is not None)
        left_out = {prefix + name for name in transient}
        yield from ((key, value) for key, value in buffers if value is not None and key not in left_out)
        pending.extend((f"{key}.", part, depth + 1) for key, part in reversed(modules))


def _under(prefix: str, group: object, limits: Limits) -> list[tuple[str, object]]:
    """The entries of a dict with a prefix before their names."""
    if not isinstance(group, dict):
        return []
    named = [(prefix + name, value) for name, value in group.items() if isinstance(name, str)]
    for key, _ in named:
        _check_key(key, limits)
    return named


def _joined_entries(path: str, node: object, limits: Limits) -> Iterator[tuple[str, object]]:
    """The tensors inside, under keys joined by dots, and the parts that hold none. `Branch` is never deep."""
    for name, part in children(node):
        key = f"{path}{name}"
        if _branches_to_tensors(part):
            yield from _joined_entries(f"{key}.", part, limits)
        else:
            _check_key(key, limits)
            yield key, part


def _branches_to_tensors(node: object) -> bool:
    if not isinstance(node, (Branch, Branches)):
        return False
    return any(isinstance(part, TensorSpec) or _branches_to_tensors(part) for _, part in children(node))


def _check_key(key: str, limits: Limits) -> None:
    if len(key) * _WIDEST_CHARACTER > limits.key_bytes:
        size = len(key.encode("utf-8", "surrogatepass"))
        limits.check("key_bytes", size, f"a key has {size} bytes: {escape(key, 40)}")


def metadata_of(node: object) -> dict[str, object] | None:
    """The ``_metadata`` that torch keeps with a state dict (versions by module), or None."""
    attributes = node.attributes if isinstance(node, Dict) else None
    found = attributes.get("_metadata") if attributes else None
    if not isinstance(found, dict):
        return None
    return {
        path: dict(entry)
        for path, entry in found.items()
        if isinstance(path, str) and isinstance(entry, dict)
    }
