"""Resize vocabularies: embeddings, and all tensors that count the same words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from pytest_ckptcompat.recipes.operators import append

from .changes import ANY, Explained, differing, first_rows
from .layers import module_of
from .positions import is_position

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes

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
    if is_position(key):
        return False
    module = changes.modules.get(module_of(key))
    if isinstance(module, nn.Linear):
        return "lm_head" in key
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or bool(_VOCABULARY.search(key))
