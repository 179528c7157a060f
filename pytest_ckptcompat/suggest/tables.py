"""Resize tables of positions, and vocabularies with all tensors that count the same words."""

from __future__ import annotations

import re
from math import isqrt
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pytest_ckptcompat.recipes.operators import append, resample, select

from .changes import ANY, MOST_LISTED, Explained, differing, first_rows, module_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes, Operators, Sizes

_POSITIONS = re.compile(
    r"(?:^|[._])(?:abs_|rel_)?pos(?:ition|itional|itions)?(?:[._]|$)|pos_?emb|position_bias|(?:^|[._])(?:wpe|pe)(?:[._]|$)",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"rel(?:ative)?_?pos", re.IGNORECASE)
_COMPUTED = re.compile(r"(?:_index|_ids|_mask|inv_freq|(?:^|[._])pe)$|buckets?|relative_attention_bias")
"""Tables that a model computes, or whose entries are not evenly spaced positions."""
_FIRST_TOKENS = ("cls", "class", "dist", "distillation", "reg", "register", "registers")
_TOKEN = re.compile(
    rf"(?:.*\.)?(?P<name>{'|'.join(_FIRST_TOKENS)})_(?:token|tokens|embedding)", re.IGNORECASE
)


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
        computed = _COMPUTED.search(key)
        found.put(key, () if computed else _resized(key, *changes.changed[key], beside in pictures, gone))
    return found


def _resized(key: str, old: Sizes, new: Sizes, pictures: bool, gone: list[bool]) -> Operators:
    dims = differing(old, new)
    if len(old) == 4 and old[0] == 1:  # a single changed side may be the model's width
        return (resample(ANY),) if dims in ([1, 2], [2, 3]) else ()
    rows = len(old) - 2
    if dims != [rows] or len(old) not in (2, 3) or (rows and old[0] != 1):
        return ()
    before, after = old[rows], new[rows]
    if any(gone):
        return _without(gone, rows, before, after)
    if _RELATIVE.search(key):
        one_side = "table" not in key and re.search(r"_[hwt]$", key)  # of the window
        return _line(before, after) if one_side else _grid(before, after, (0,))
    # A text may also have 1024 positions, so a square number alone says little. In a model for images, it
    # says enough.
    grid = _grid(before, after, (0, 1, 2) if pictures else (1, 2))
    if grid or pictures:
        return grid
    return _line(before, after) if after > before else first_rows(rows, after)


def _grid(old: int, new: int, tokens: tuple[int, ...]) -> Operators:
    """Resample a square grid of positions, which follows tokens that are not in the grid."""
    for count in tokens:
        before, after = isqrt(max(old - count, 0)), isqrt(max(new - count, 0))
        if before**2 + count == old and after**2 + count == new and min(before, after) > 1:
            return (resample(ANY, size=(after, after), prefix_tokens=count),)
    return ()


def _line(old: int, new: int) -> Operators:
    """Resample positions on a line, as a grid with one column."""
    return (resample(ANY, size=(new, 1), mode="bilinear", old_size=(old, 1)),)


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


def _without(gone: list[bool], rows: int, before: int, after: int) -> Operators:
    """Remove the rows of tokens that are gone, and resample the rest to the new grid."""
    kept = [place for place, is_gone in enumerate(gone) if not is_gone]
    index = (*kept, *range(len(gone), before))
    if len(index) > MOST_LISTED or len(index) == len(kept):
        return ()
    selected = select(ANY, dim=rows, index=index)
    if len(index) == after:
        return (selected,)
    grid = _grid(len(index), after, (len(kept),))
    return (selected, *grid) if grid else ()


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


# -- vocabularies -------------------------------------------------------------------------------------------

_VOCABULARY = re.compile(
    r"(?:^|[._])(?:wte|lm_head|(?:\w+_)?emb(?:ed|edding|eddings)?(?:_tokens|_in)?)(?:[.]|$)", re.IGNORECASE
)


def vocabulary(changes: Changes, left: Collection[str]) -> Explained:
    """Find the tensors that count the words of a resized embedding; new words start at the mean.

    The embedding, the head (tied or not), the head's bias, and a bias over the logits are resized alike. If
    there are fewer words, the first ones are kept.
    """
    words = {
        (old[0], new[0])
        for key, (old, new) in changes.changed.items()
        if len(old) == 2 and differing(old, new) == [0] and _embeds(changes, key)
    }
    if not words:
        return Explained()
    taken_in = {
        (old[1], new[1])
        for old, new in changes.changed.values()
        if len(old) > 1 and old[0] > 1 and len(old) == len(new)
    }
    tied = {changes.ties[key] for key in changes.changed if key in changes.ties and _embeds(changes, key)}
    found = Explained()
    for key in changes.budget.each(left):
        old, new = changes.changed[key]
        dims = differing(old, new)
        if len(dims) != 1 or is_position(key):
            continue
        (dim,) = dims
        pair = before, after = old[dim], new[dim]
        counts = pair not in taken_in and (
            (dim == 0 and len(old) < 3) or (dim == 1 and len(old) == 2 and old[0] == 1)
        )
        if pair in words and (counts or _embeds(changes, key) or changes.ties.get(key) in tied):
            more = after > before
            found.put(key, (append(ANY, dim=dim, init="mean"),) if more else first_rows(dim, after))
    return found


def _embeds(changes: Changes, key: str) -> bool:
    module = changes.modules.get(module_of(key))
    if isinstance(module, nn.Linear):
        embeds = "lm_head" in key
    else:
        embeds = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or bool(_VOCABULARY.search(key))
    return embeds and not is_position(key)
