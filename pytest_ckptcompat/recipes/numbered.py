"""The numbered blocks of a model: where a key lies in them, and whether two values are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import matches

from .promises import differing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Place(NamedTuple):
    """A key inside a block.

    Attributes:
        layers: the module whose children the blocks are.
        number: the block's.
        rest: the key relative to the block.
    """

    layers: str
    number: int
    rest: str


def place(layers: str, key: str) -> Place | None:
    """Where in the blocks of a module a key lies; None if it lies elsewhere.

    Args:
        layers: the module's path, or a glob; of nested modules that it matches the outer one counts.
        key: of a state dict.
    """
    parts = key.split(".")
    for end in range(1, len(parts) - 1):
        if parts[end].isascii() and parts[end].isdigit():
            path = ".".join(parts[:end])
            if path == layers or ("*" in layers and matches(layers, path)):
                return Place(path, int(parts[end]), ".".join(parts[end + 1 :]))
    return None


def places(layers: str, state: Mapping[str, Any]) -> dict[str, dict[str, Place]]:
    """The keys that lie in blocks, and where: module by module."""
    found: dict[str, dict[str, Place]] = {}
    for key in state:
        if (inside := place(layers, key)) is not None:
            found.setdefault(inside.layers, {})[key] = inside
    return found


def apart(key: str, expected: Any, actual: Any) -> Iterator[str]:
    """The fault of a value that is not as expected; of tensors that are the same object there is none."""
    if expected is actual:
        return
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        yield from differing(key, expected, actual)
    else:
        yield f"{escape(key)} is another object"
