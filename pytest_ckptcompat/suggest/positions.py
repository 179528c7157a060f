"""Resize tables of positions: resample them to another grid, and handle the tokens before the grid."""

from __future__ import annotations

import re
from math import isqrt
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .changes import Explained, differing
from .layers import module_of
from .steps import Step

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes, Sizes

MOST_LISTED = 1000
"""The most rows that a suggestion lists; nobody would read more."""

_POSITIONS = re.compile(
    r"(?:^|[._])(?:abs_|rel_)?pos(?:ition|itional|itions)?(?:[._]|$)|pos_?emb|position_bias|(?:^|[._])(?:wpe|pe)(?:[._]|$)",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"rel(?:ative)?_?pos", re.IGNORECASE)
_COMPUTED = re.compile(r"(?:_index|_ids|_mask|inv_freq|(?:^|[._])pe)$|buckets?|relative_attention_bias")
"""Tables that a model computes, or whose entries are not evenly spaced positions."""
_TOKEN = re.compile(
    r"(?:.*\.)?(?P<name>cls|class|dist|distillation|reg|register|registers)_(?:token|tokens|embedding)",
    re.IGNORECASE,
)
_FIRST_TOKENS = ("cls", "class", "dist", "distillation", "reg", "register", "registers")


def is_position(key: str) -> bool:
    """Return whether a key is named like a table of positions."""
    return bool(_POSITIONS.search(key) or _COMPUTED.search(key))


def positions(changes: Changes, left: Collection[str]) -> Explained:
    """Find how to resize tables of positions to the model's size.

    Positions in an image are interpolated in 2-D, positions in a text or distances in 1-D. If a class or
    distillation token was removed, its row is removed too.
    """
    found = Explained()
    keys = [
        key
        for key in filter(is_position, changes.budget.each(left))
        if not isinstance(changes.modules.get(module_of(key)), (nn.Linear, _ConvNd))
    ]
    pictures, tokens = (_seen_by(changes), _tokens(changes)) if keys else (set(), {})
    for key in keys:
        beside = _parent(key)
        gone = tokens.get(beside, [])
        steps = () if _COMPUTED.search(key) else _steps(key, *changes.changed[key], beside in pictures, gone)
        if steps:
            found.steps[key] = steps
        else:
            found.barred.add(key)
    return found


def _steps(key: str, old: Sizes, new: Sizes, pictures: bool, gone: list[bool]) -> tuple[Step, ...]:
    dims = differing(old, new)
    if len(old) == 4 and old[0] == 1:  # a single changed side may be the model's width
        return (Step("resample", ()),) if dims in ([1, 2], [2, 3]) else ()
    rows = len(old) - 2
    if dims != [rows] or len(old) not in (2, 3) or (rows and old[0] != 1):
        return ()
    before, after = old[rows], new[rows]
    if any(gone):
        return _without(gone, rows, before, after)
    if _RELATIVE.search(key):
        if "table" not in key and re.search(r"_[hwt]$", key):
            return (_line(before, after),)  # one table for each side of the window
        return _grid(before, after, (0,)) or ()
    # A text may also have 1024 positions, so a square number alone says little. In a model for images, it
    # says enough.
    step = _grid(before, after, (0, 1, 2) if pictures else (1, 2))
    if step or pictures:
        return step
    if after > before:
        return (_line(before, after),)
    return (Step("select", (), {"dim": rows, "index": list(range(after))}),) if after <= MOST_LISTED else ()


def _grid(old: int, new: int, tokens: tuple[int, ...]) -> tuple[Step, ...]:
    """Resample a square grid of positions, which follows tokens that are not in the grid."""
    for count in tokens:
        before, after = isqrt(max(old - count, 0)), isqrt(max(new - count, 0))
        if before**2 + count == old and after**2 + count == new and min(before, after) > 1:
            prefix = {"prefix_tokens": count} if count else {}
            return (Step("resample", (), {"size": (after, after), **prefix}),)
    return ()


def _line(old: int, new: int) -> Step:
    """Resample positions on a line, as a grid with one column."""
    return Step("resample", (), {"size": (new, 1), "mode": "bilinear", "old_size": (old, 1)})


# -- tokens in front of the places --------------------------------------------------------------------------


def _tokens(changes: Changes) -> dict[str, list[bool]]:
    """Return module -> whether each token before its positions is gone, in order."""
    rows: dict[str, list[tuple[int, bool, int]]] = {}
    for key, shape in changes.checkpoint.items():
        token = _TOKEN.fullmatch(key)
        if token and shape is not None:
            order, count = _FIRST_TOKENS.index(token["name"].lower()), shape[-2] if len(shape) > 1 else 1
            rows.setdefault(_parent(key), []).append((order, key not in changes.model, count))
    return {
        path: [gone for _, gone, count in sorted(each) for _ in range(count)] for path, each in rows.items()
    }


def _without(gone: list[bool], rows: int, before: int, after: int) -> tuple[Step, ...]:
    """Remove the rows of tokens that are gone, and resample the rest to the new grid."""
    kept = [place for place, is_gone in enumerate(gone) if not is_gone]
    index = [*kept, *range(len(gone), before)]
    if len(index) > MOST_LISTED or len(index) == len(kept):
        return ()
    selected = Step("select", (), {"dim": rows, "index": index})
    if len(index) == after:
        return (selected,)
    return (selected, *resampled) if (resampled := _grid(len(index), after, (len(kept),))) else ()


def _parent(key: str) -> str:
    """Return the module that owns a table: ``text`` for ``text.pos.weight``."""
    path = module_of(key) or key
    return path.rpartition(".")[0]


def _seen_by(changes: Changes) -> set[str]:
    """Return the modules with a table of positions that are nearest around a 2-D convolution."""
    owners = {_parent(key) for key in changes.checkpoint if is_position(key)}
    seen = set()
    for key, shape in changes.checkpoint.items():
        if shape is not None and len(shape) == 4 and shape[0] != 1:
            path = key
            while path and (path := path.rpartition(".")[0]) not in owners:
                pass
            if path in owners:
                seen.add(path)
    return seen
