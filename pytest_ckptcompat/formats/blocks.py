"""Blocks of a tensor, as distributed checkpoints store it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Sizes = tuple[int, ...]


def make_up(shape: Sizes, blocks: Sequence[tuple[Sizes, Sizes]]) -> bool:
    """Return whether every element of a tensor lies in exactly one of the blocks.

    Args:
        shape: of the tensor.
        blocks: where each begins, and its sizes; all lie inside the tensor.
    """
    if sum(prod(size) for _, size in blocks) != prod(shape):
        return False
    filled = [block for block in blocks if prod(block[1])]
    if len(filled) < 2:
        return True
    # As many elements as the tensor has, so a gap comes with an overlap. Those that overlap are close to each
    # other in the dimension that is cut into most parts.
    cut = max(range(len(shape)), key=lambda dim: len({begin[dim] for begin, _ in filled}))
    filled.sort(key=lambda block: block[0][cut])
    for place, (begin, size) in enumerate(filled):
        end = begin[cut] + size[cut]
        for other, length in filled[place + 1 :]:
            if other[cut] >= end:
                break
            if all(map(_meet, begin, size, other, length)):
                return False
    return True


def _meet(begin: int, size: int, other: int, length: int) -> bool:
    """Return whether two intervals overlap."""
    return begin < other + length and other < begin + size
