"""The plain values beside the state dict: hyperparameters, names of classes, versions."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.files.paths import name_of
from pytest_ckptcompat.formats.pickle_stubs import Stub

from .wrappers import state_dict_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .checkpoint import Checkpoint
    from .contents import Contents

_MOST = 64_000
"""The largest size of the metadata in a lock, in bytes."""

_DEEPEST = 100


class _NotPlainError(Exception):
    """Raised if a node contains something other than plain values. The message says what."""


def metadata(ckpt: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """Return the plain values of the outermost object, and the names of those for which a lock has no room.

    Parts that contain a tensor or an object are left out, and so is the state dict.
    """
    outer = ckpt.wrapper
    if not isinstance(outer, dict) or not ckpt.state_dict_key:
        return {}, []
    found, large, room = {}, [], _MOST
    for name, kept in _plain_entries(outer):
        if not isinstance(name, str) or kept in ({}, []):
            continue
        size = len(json.dumps([name, kept]))
        if size > room:
            large.append(escape(name, 60))
        else:
            found[name], room = kept, room - size
    return found, large


def plain_parts(contents: Contents) -> dict[str, Any]:
    """Return the parts of a checkpoint, or of a lock's metadata, that are plain values."""
    outer = _outer(contents)
    return {str(name): kept for name, kept in _plain_entries(outer)} if isinstance(outer, dict) else {}


def arguments_at(contents: Contents, path: str) -> dict[str, Any]:
    """Return the keyword arguments that ``model_args="ckpt:PATH"`` names.

    Raises:
        CheckpointError: there is no such part, or it is not a dict of plain values.
    """
    outer = _outer(contents)
    shown = f"model_args='ckpt:{escape(path, 80)}'"
    if contents.header.format == "lock" and not outer:
        name = name_of(contents.path)
        raise CheckpointError(f"{shown}: the lock {name} holds no metadata: lock the checkpoint again")
    try:
        node = state_dict_at(outer, path)
    except CheckpointError as error:
        raise CheckpointError(f"{shown}: {str(error).partition(': ')[2]}") from None
    try:
        found = _plain(node)
    except _NotPlainError as error:
        raise CheckpointError(f"{shown} holds {error}, and only plain values become arguments") from None
    if not isinstance(found, dict) or not all(name.isidentifier() for name in found):
        raise CheckpointError(f"{shown} is not a dict whose keys are names of arguments")
    return found


def _outer(contents: Contents) -> object:
    """Return the outermost object; of a lock, the metadata that it stores."""
    header = contents.header
    return header.metadata if header.format == "lock" else header.tree


def _plain_entries(outer: dict[Any, object]) -> Iterator[tuple[Any, Any]]:
    for name, node in outer.items():
        with suppress(_NotPlainError):
            yield name, _plain(node)


def _plain(node: object, depth: int = 0) -> Any:
    """Convert a node to numbers, texts, lists and dicts. Namespaces and dict-like objects become dicts."""
    if depth > _DEEPEST:
        raise _NotPlainError("too many levels")
    if isinstance(node, (str, int, type(None))) or (isinstance(node, float) and math.isfinite(node)):
        return node
    if isinstance(node, (list, tuple)):
        return [_plain(each, depth + 1) for each in node]
    if isinstance(node, Stub):
        named = node.items or node.attributes
        if node.elements is not None or not named:
            raise _NotPlainError(f"an object of {escape(node.name, 60) or 'a class'}")
        node = named
    if isinstance(node, dict):
        for name in node:
            if not isinstance(name, str):
                raise _NotPlainError("a dict whose keys are not texts")
        return {str(name): _plain(value, depth + 1) for name, value in node.items()}
    raise _NotPlainError(f"a value of type {type(node).__name__}")
