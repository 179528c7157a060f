"""Find the place of a key in the numbered blocks of a model, and compare values."""

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
        layers: the path of the module whose children are the blocks.
        number: the number of the block.
        rest: the key relative to the block.
    """

    layers: str
    number: int
    rest: str


def place(layers: str, key: str) -> Place | None:
    """Return the place of a key in the blocks of a module, or None if it is elsewhere.

    Args:
        layers: the module's path, or a glob. Of nested modules that match, the outer one counts.
        key: a key of a state dict.
    """
    parts = key.split(".")
    for end in range(1, len(parts) - 1):
        if parts[end].isascii() and parts[end].isdigit():
            path = ".".join(parts[:end])
            if path == layers or ("*" in layers and matches(layers, path)):
                return Place(path, int(parts[end]), ".".join(parts[end + 1 :]))
    return None


def places(layers: str, state: Mapping[str, Any]) -> dict[str, dict[str, Place]]:
    """Return the keys in blocks and their places, grouped by module."""
    found: dict[str, dict[str, Place]] = {}
    for key in state:
        if (inside := place(layers, key)) is not None:
            found.setdefault(inside.layers, {})[key] = inside
    return found


def apart(key: str, expected: Any, actual: Any) -> Iterator[str]:
    """Yield the fault of an unexpected value. The same object is never a fault."""
    if expected is actual:
        return
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        yield from differing(key, expected, actual)
    else:
        yield f"{escape(key)} is another object"
