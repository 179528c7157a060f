"""Find the old part of a tensor in the new one."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.recipes.operators.select import select
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.recipes.applied import Applied

Rows = dict[tuple[int, int], tuple[list[int], list[int]]]
"""(old size, new size) of a dimension -> the old rows that are kept, and where each is now."""


def corner(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor | None:
    """Return the leading part of `new` with the shape of `old`, or None if `new` is smaller."""
    if old.dim() != new.dim() or any(was > now for was, now in zip(old.shape, new.shape, strict=True)):
        return None
    return new[tuple(map(slice, old.shape))]


def rows_moved(growth: Applied, old: Mapping[str, Any]) -> Rows:
    """Find, by their bits, rows that ``select`` dropped or moved, or that are in several blocks.

    Only weights are compared: rows of a bias are numbers, several of which may be equal. If two weights of
    the same sizes disagree, that size is left out.
    """
    moved: Rows = {}
    unclear: set[tuple[int, int]] = set()
    for key, operators in growth.touched.items():
        came, new = growth.origin.get(key), growth.state_dict.get(key)
        if not any(isinstance(each, select) or getattr(each, "blocks", 1) > 1 for each in operators):
            continue
        if came is None or not isinstance(new, torch.Tensor) or new.dim() < 2 or new.dim() != old[came].dim():
            continue
        before, after = materialise(old[came]), materialise(new)
        if before.shape[1:] != after.shape[1:] or before.dtype != after.dtype:
            continue
        kept = corner(before, after)
        if kept is not None and same_bits(before, kept):
            continue
        sizes, pairs = (len(before), len(after)), _pairs(before, after)
        blocks = max(getattr(each, "blocks", 1) for each in operators)
        for found, where in ((sizes, pairs), _of_one_block(sizes, pairs, blocks)):
            if moved.setdefault(found, where) != where:
                unclear.add(found)
    return {sizes: pairs for sizes, pairs in moved.items() if sizes not in unclear and pairs[0]}


def _of_one_block(
    sizes: tuple[int, int], pairs: tuple[list[int], list[int]], blocks: int
) -> tuple[tuple[int, int], tuple[list[int], list[int]]]:
    """Return the rows inside a block, for outputs in which blocks have their own dimension."""
    old, new = sizes[0] // blocks, sizes[1] // blocks
    inside = [(row, now) for row, now in zip(*pairs, strict=True) if row < old and now < new]
    return (old, new), ([row for row, _ in inside], [now for _, now in inside])


def _pairs(before: torch.Tensor, after: torch.Tensor) -> tuple[list[int], list[int]]:
    places: dict[bytes, int] = {}
    for row, digest in enumerate(_digests(before)):
        places.setdefault(digest, row)
    kept, now = [], []
    for row, digest in enumerate(_digests(after)):
        place = places.pop(digest, None)
        if place is not None:
            kept.append(place)
            now.append(row)
    return kept, now


def _digests(tensor: torch.Tensor) -> Iterator[bytes]:
    """Yield a digest of the bits of each row."""
    tensor = tensor.detach().cpu().contiguous()
    size = tensor[0].numel() * tensor.element_size() if len(tensor) else 0
    for row in range(len(tensor)):
        memory = (ctypes.c_ubyte * size).from_address(tensor.data_ptr() + row * size)
        yield hashlib.blake2b(memory, digest_size=16).digest()


def pairings(
    expected: torch.Tensor, actual: torch.Tensor, rows: Rows
) -> Iterator[tuple[int | None, torch.Tensor, torch.Tensor]]:
    """Yield the ways in which a new output may contain an old one: at its start, or in moved rows.

    If there are several dimensions, the first is the batch and stays as it is.

    Returns:
        The dimension whose rows have moved, or None; and both sides, in the same shape.
    """
    kept = corner(expected, actual)
    if kept is not None:
        yield None, expected, kept
    if expected.dim() != actual.dim():
        return
    sizes = list(zip(expected.shape, actual.shape, strict=True))
    first = 1 if len(sizes) > 1 else 0
    for dim in range(first, len(sizes)):
        others = sizes[:dim] + sizes[dim + 1 :]
        if sizes[dim] in rows and all(was == now for was, now in others):
            old_rows, now_at = rows[sizes[dim]]
            yield (
                dim,
                expected.index_select(dim, torch.tensor(old_rows)),
                actual.index_select(dim, torch.tensor(now_at)),
            )
