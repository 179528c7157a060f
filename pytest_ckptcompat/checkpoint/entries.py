"""The entries of a state dict: from a dict, from parts joined by dots, or from a pickled module."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Branch, Branches, Dict, Global, Stub, children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits

_LEAVES = frozenset({
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked", "weight_g", "weight_v",
    "in_proj_weight", "in_proj_bias", "weight_orig", "weight_u", "weight_ih", "weight_hh", "bias_ih",
    "bias_hh", "weight_ih_l0", "weight_hh_l0", "cls_token", "pos_embed",
})  # fmt: skip
"""What torch's modules, and those of others, call a tensor of a model that is a single module."""

_OF_MODULES = ("_non_persistent_buffers_set", "_parameters", "_buffers", "_modules")

_PER_TENSOR = 4
_WIDEST_CHARACTER = 4
_DEEPEST = 3
_LONGEST_NAME = 64

_TRAINING = re.compile(
    r"(\w+_)?(optimi[sz]ers?|optims?|opts?|(lr_?)?sched(uler)?s?|(grad|loss|amp)?_?scalers?|amp|rng|random|seed)"
    r"(_?(states?|state_?dicts?|dict|sd|generator|discriminator|\d+)|_[a-z](?=_))*(_?[a-z])?",
    re.IGNORECASE,
)
"""Usual names of training state that is not the model's."""


def named_as_in_models(name: str) -> bool:
    """Return whether a tensor in a model's ``state_dict()`` may have this name."""
    return "." in name or name in _LEAVES


def is_extra_state(key: str) -> bool:
    """Return whether a key belongs to a module's extra state (``get_extra_state``)."""
    return key == "_extra_state" or key.endswith("._extra_state")


def is_module(node: object) -> bool:
    """Return whether a node is a pickled ``nn.Module``."""
    if not isinstance(node, Stub):
        return False
    attributes = node.attributes
    return "_parameters" in attributes and "_modules" in attributes


def is_training_state(node: object) -> bool:
    """Return whether a node is an optimizer state, which may hold tensors under names of parameters."""
    entries = node.items if isinstance(node, Stub) else node
    return isinstance(entries, dict) and "param_groups" in entries


def serves_training(name: str) -> bool:
    """Return whether a part is, by its name, the state of an optimizer, scheduler or random generator."""
    return len(name) <= _LONGEST_NAME and bool(_TRAINING.fullmatch(name))


def own_keys(node: object) -> object:
    """Return a state dict without other parts, if a distributed checkpoint has both at the top level.

    There, the model's keys contain dots (torchtitan), and optimizer and other training state are separate
    parts.
    """
    if not isinstance(node, Branch):
        return node
    dotted = any(isinstance(part, TensorSpec) and "." in str(key) for key, part in node.items())
    own = Branch()
    for key, part in node.items():
        kept = isinstance(part, TensorSpec) or is_extra_state(str(key))
        if kept or not (dotted or serves_training(str(key))):
            own.put(key, part)
    return own


def beside(tree: object, key: str) -> dict[object, object]:
    """Return the parts beside the keys of a state dict at the top level of a checkpoint; see `own_keys`."""
    own = own_keys(tree)
    if key or not isinstance(tree, Branch) or not isinstance(own, Branch):
        return {}
    return {name: part for name, part in tree.items() if name not in own}


def flatten(node: object, limits: Limits) -> dict[str, object]:
    """Return the entries of a state dict in order: a `TensorSpec` for each tensor, else plain values.

    Args:
        node: a dict, an object that was filled like a dict, or a pickled module.
        limits: limits on keys and nesting.

    Raises:
        CheckpointError: `node` is none of these, or a limit is exceeded.
    """
    if is_module(node):
        return dict(module_entries(node, limits))
    entries = node.items if isinstance(node, Stub) and node.items is not None else node
    if isinstance(entries, TensorSpec):
        raise CheckpointError("it is a tensor, not a state dict")
    if not isinstance(entries, dict):
        raise CheckpointError("it is not a state dict")
    if isinstance(entries, Branch):
        return dict(_branch_entries("", entries, limits))
    if not any(isinstance(value, TensorSpec) for value in entries.values()) or _has_parts(entries):
        joined = dict(_joined_entries(entries, limits))
        if joined:
            return joined
    odd = {_kind_of_key(key) for key in entries if not isinstance(key, str)}
    if odd:
        raise CheckpointError(f"its state dict has a key that is not a string, but of type {min(odd)}")
    flat: dict[str, object] = dict(entries)
    if max(map(len, flat), default=0) * _WIDEST_CHARACTER > limits.key_bytes:
        for key in flat:
            _check_key(key, limits)
    return flat


def _has_parts(entries: dict[Any, Any]) -> bool:
    """Return whether dicts between the tensors of a state dict hold more tensors of the model."""
    pending = [(entries, 0)]
    seen = {id(entries)}
    for node, depth in pending:  # which grows as it is walked
        for name, part in node.items():
            if isinstance(part, TensorSpec):
                if depth and named_as_in_models(str(name)):
                    return True
            elif not isinstance(part, dict) or is_extra_state(str(name)):
                continue
            elif depth < _DEEPEST and id(part) not in seen:
                seen.add(id(part))
                pending.append((part, depth + 1))
    return False


def _kind_of_key(key: object) -> str:
    """Return the type of a key as Python calls it. A key that was not hashed is inside a `Stub`."""
    kept = key.kind if isinstance(key, Stub) else key
    return "object" if isinstance(kept, Global) else type(kept).__name__


def module_entries(root: object, limits: Limits) -> Iterator[tuple[str, object]]:
    """Yield the entries of a module's ``state_dict()``: parameters, persistent buffers, then children."""
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
    """Return the entries of a dict with a prefix added to their names."""
    if not isinstance(group, dict):
        return []
    named = [(prefix + name, value) for name, value in group.items() if isinstance(name, str)]
    for key, _ in named:
        _check_key(key, limits)
    return named


def _branch_entries(path: str, node: object, limits: Limits) -> Iterator[tuple[str, object]]:
    """Yield tensors, and parts without tensors, under keys joined by dots. `Branch` is never deep."""
    for name, part in children(node):
        key = f"{path}{name}"
        if _branches_to_tensors(part):
            yield from _branch_entries(f"{key}.", part, limits)
        else:
            _check_key(key, limits)
            yield key, part


def _joined_entries(root: object, limits: Limits) -> Iterator[tuple[str, object]]:
    """Yield the tensors and extra state in nested dicts, under keys joined by dots.

    Other values (versions, settings) are left out.
    """
    pending: list[tuple[str, object, int]] = [("", root, 0)]
    looked_at = 0
    while pending:
        prefix, node, depth = pending.pop()
        limits.check("nesting", depth, "its parts are nested too deeply")
        if is_module(node):
            yield from ((f"{prefix}{key}", value) for key, value in module_entries(node, limits))
            continue
        inner: list[tuple[str, object, int]] = []
        entries = node.items if isinstance(node, Stub) else node
        for name, part in children(entries) if isinstance(entries, dict) else ():
            looked_at += 1
            key = f"{prefix}{name}"
            if isinstance(part, TensorSpec) or is_extra_state(name):
                _check_key(key, limits)
                yield key, part
            elif isinstance(part, (dict, Stub)) and not (serves_training(name) or is_training_state(part)):
                inner.append((f"{key}.", part, depth + 1))
        limits.check("tensors", looked_at // 2, "its parts are nested in too many ways")
        pending.extend(reversed(inner))


def _branches_to_tensors(node: object) -> bool:
    if not isinstance(node, (Branch, Branches)):
        return False
    return any(isinstance(part, TensorSpec) or _branches_to_tensors(part) for _, part in children(node))


def _check_key(key: str, limits: Limits) -> None:
    if len(key) * _WIDEST_CHARACTER > limits.key_bytes:
        size = len(key.encode("utf-8", "surrogatepass"))
        limits.check("key_bytes", size, f"a key has {size} bytes: {escape(key, 40)}")


def metadata_of(node: object) -> dict[str, object] | None:
    """Return the ``_metadata`` that torch keeps with a state dict (versions by module), or None.

    If the state dict has several parts, join their metadata under the parts' names.
    """
    found = _own_metadata(node)
    if found is not None or not isinstance(node, dict) or isinstance(node, Branch):
        return found
    parts = {str(name): _own_metadata(part) for name, part in node.items() if isinstance(part, Dict)}
    joined = {
        f"{name}.{path}".rstrip("."): entry
        for name, metadata in parts.items()
        for path, entry in (metadata or {}).items()
    }
    return joined or None


def _own_metadata(node: object) -> dict[str, object] | None:
    attributes = node.attributes if isinstance(node, Dict) else None
    found = attributes.get("_metadata") if attributes else None
    if not isinstance(found, dict):
        return None
    return {
        path: dict(entry)
        for path, entry in found.items()
        if isinstance(path, str) and isinstance(entry, dict)
    }
