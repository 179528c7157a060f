"""Map a model's keys to a checkpoint's keys, learned from known pairs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Counterparts:
    """The names of modules in the checkpoint, learned from tensors that were found there."""

    def __init__(self, known: Mapping[str, str], keys: Collection[str]) -> None:
        """Learn from `known` (the model's key -> the checkpoint's key) and all keys of the checkpoint."""
        self._keys = set(keys)
        self._paths: dict[str, Counter[str]] = {}
        for ours, theirs in known.items():
            ours, theirs = _apart(ours, theirs)
            self._paths.setdefault(ours, Counter())[theirs] += 1

    def of(self, key: str, but: str = "") -> str | None:
        """Return the checkpoint's name of a key, from the nearest enclosing module with a known name.

        If the key was found under the name `but`, that is ignored: only modules further out count.
        """
        path = _apart(key, but)[0] if but else key
        while path:
            path = path.rpartition(".")[0]
            rest = key[len(path) :].removeprefix(".")
            found = {f"{theirs}.{rest}".removeprefix(".") for theirs in self._paths.get(path, ())}
            found &= self._keys
            if found:
                return found.pop() if len(found) == 1 else None
        return None


def _apart(ours: str, theirs: str) -> tuple[str, str]:
    """Strip the common end of two keys: ``net.fc.weight`` and ``fc.weight`` become ``net`` and ``""``."""
    mine, other = ours.split("."), theirs.split(".")
    while mine and other and mine[-1] == other[-1]:
        del mine[-1], other[-1]
    return ".".join(mine), ".".join(other)
