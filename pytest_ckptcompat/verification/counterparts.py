"""What a model's keys are called in a checkpoint, learned from those that are known."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Counterparts:
    """The names that modules have in the checkpoint, learned from tensors that were found there.

    Args:
        known: key of the model -> the key of the checkpoint that has its values.
        keys: all keys of the checkpoint.
    """

    def __init__(self, known: Mapping[str, str], keys: Collection[str]) -> None:
        self._keys = set(keys)
        self._paths: dict[str, Counter[str]] = {}
        for ours, theirs in known.items():
            ours, theirs = _apart(ours, theirs)
            self._paths.setdefault(ours, Counter())[theirs] += 1

    def of(self, key: str, but: str = "") -> str | None:
        """The checkpoint's name of a key: that of the nearest module around it for which there is one.

        Args:
            key: of the model.
            but: what it was found as, which counts for nothing: the modules further out tell.
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
    """Two keys without what they end in alike: ``net.fc.weight`` and ``fc.weight`` are ``net`` and ``""``."""
    mine, other = ours.split("."), theirs.split(".")
    while mine and other and mine[-1] == other[-1]:
        del mine[-1], other[-1]
    return ".".join(mine), ".".join(other)
