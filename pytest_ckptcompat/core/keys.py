"""Patterns of keys."""

from __future__ import annotations

import difflib
import fnmatch
import heapq
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def matches(pattern: str, key: str) -> bool:
    """Return whether `pattern` is `key` itself or a glob that matches it.

    Globs are those of `fnmatch`, case-sensitive: ``*`` (dots and newlines too), ``?``, ``[seq]``, ``[!seq]``.
    """
    return pattern == key or fnmatch.fnmatchcase(key, pattern)


def select(pattern: str, keys: Collection[str]) -> list[str]:
    """Return the keys that `pattern` matches, in their order.

    A pattern that is itself a key matches only that key, so that ``blocks[0].weight`` can be named.
    """
    if pattern in keys:
        return [pattern]
    return [key for key in keys if fnmatch.fnmatchcase(key, pattern)]


def nearest(name: str, keys: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` keys that look most like a name or glob without a match, the best first."""
    wanted = _parts(_GLOB.sub("", name))
    # Comparing text is slow, so only the keys that share most parts are compared letter by letter.
    candidates = heapq.nlargest(64, keys, key=lambda key: _shared_parts(wanted, _parts(key)))
    ranked = sorted(candidates, key=lambda key: (-_likeness(name, key), natural(key)))
    return [key for key in ranked if _likeness(name, key) >= 0.6][:n]


_GLOB = re.compile(r"[*?\[\]!]+")

_LETTERS = re.compile(r"[a-zA-Z]+|[0-9]+|[^a-zA-Z0-9.]+")


def _parts(key: str) -> list[str]:
    return _LETTERS.findall(key[:_MOST_COMPARED])


def _shared_parts(wanted: list[str], parts: list[str]) -> float:
    shared = len(set(wanted) & set(parts)) - 0.1 * abs(len(wanted) - len(parts))
    beginnings = {part[:2] for part in wanted} & {part[:2] for part in parts}
    return shared + 0.5 * len(beginnings)


def _likeness(name: str, key: str) -> float:
    """Return the likeness from 0 to 1. At an end with ``*``, only as much of the key is compared."""
    name, key = name[:_MOST_COMPARED], key[:_MOST_COMPARED]
    if name.endswith("*"):
        name = name[:-1]
        key = key[: len(name)]
    elif name.startswith("*"):
        name = name[1:]
        key = key[-len(name) :]
    return difflib.SequenceMatcher(None, name, key, autojunk=False).ratio()


_MOST_COMPARED = 200


def beside(key: str, other: str) -> str:
    """Abbreviate `other` by the prefix that it shares with `key`: ``….k.weight``."""
    ours, theirs = key.split("."), other.split(".")
    shared = 0
    while shared < min(len(ours), len(theirs)) - 1 and ours[shared] == theirs[shared]:
        shared += 1
    return ("…." if shared else "") + ".".join(theirs[shared:])


def natural(key: str) -> tuple[tuple[object, ...], str]:
    """Return a sort key that puts ``layers.2`` before ``layers.10``."""
    parts: list[object] = list(_DIGITS.split(key))
    for place in range(1, len(parts), 2):
        number = str(parts[place]).lstrip("0")
        parts[place] = (len(number), number)  # as an int, but for any number of digits
    return tuple(parts), key


_DIGITS = re.compile(r"([0-9]+)")
