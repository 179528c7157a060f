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
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_ckptcompat.recipes.applied import Applied

Places = tuple[list[int], list[int]]
"""The old rows that are kept, and where each is now."""

Rows = dict[tuple[int, int], Places]
"""(old size, new size) of a dimension -> where its rows went."""


def begins_with(new: torch.Tensor, old: torch.Tensor) -> bool:
    """Return whether the leading part of `new` has the bits of `old`."""
    fits = new.dim() == old.dim() and all(was <= now for was, now in zip(old.shape, new.shape, strict=True))
    return fits and same_bits(old, new[tuple(map(slice, old.shape))])


def ways(old: Sequence[int], new: Sequence[int], rows: Rows) -> Iterator[int | None]:
    """Yield the ways in which a tensor of one shape may contain one of another shape.

    None: at its start. Otherwise the dimension whose rows have moved; if there are several dimensions, the
    first is the batch and stays as it is.
    """
    if len(old) != len(new):
        return
    sizes = list(zip(old, new, strict=True))
    if all(was <= now for was, now in sizes):
        yield None
    for dim in range(1 if len(sizes) > 1 else 0, len(sizes)):
        others = sizes[:dim] + sizes[dim + 1 :]
        if sizes[dim] in rows and all(was == now for was, now in others):
            yield dim


def put_back(way: int | None, new: torch.Tensor, old: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return `old` with the elements that `new` still has, in one of the `ways`, taken from `new`."""
    if way is None:
        return new[tuple(map(slice, old.shape))]
    dtype = torch.promote_types(old.dtype, new.dtype)
    kept, now = map(torch.tensor, rows[old.shape[way], new.shape[way]])
    return old.to(dtype).index_copy(way, kept, new.to(dtype).index_select(way, now))


def rows_moved(growth: Applied, old: Mapping[str, Any]) -> Rows:
    """Find, by their bits, rows that ``select`` dropped or moved, or that are in several blocks.

    Only weights are compared: rows of a bias are numbers, several of which may be equal. If two weights of
    the same sizes disagree, that size is left out.
    """
    moved: Rows = {}
    unclear: set[tuple[int, int]] = set()
    for key, operators in growth.touched.items():
        blocks = max(getattr(each, "blocks", 1) for each in operators)
        came, new = growth.origin.get(key), growth.state_dict.get(key)
        if came is None or not isinstance(new, torch.Tensor) or new.dim() < 2:
            continue
        if blocks == 1 and not any(isinstance(each, select) for each in operators):
            continue
        before, after = materialise(old[came]), materialise(new)
        if before.shape[1:] != after.shape[1:] or before.dtype != after.dtype or begins_with(after, before):
            continue
        # In outputs, blocks may have a dimension of their own.
        places = _places(before, after)
        one, other = len(before) // blocks, len(after) // blocks
        inside = [(was, now) for was, now in zip(*places, strict=True) if was < one and now < other]
        of_block = [was for was, _ in inside], [now for _, now in inside]
        for sizes, found in (((len(before), len(after)), places), ((one, other), of_block)):
            if moved.setdefault(sizes, found) != found:
                unclear.add(sizes)
    return {sizes: found for sizes, found in moved.items() if sizes not in unclear and found[0]}


def _places(before: torch.Tensor, after: torch.Tensor) -> Places:
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
