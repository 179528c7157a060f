"""Rows of a tensor: index maps, random values, and cutting and joining for every dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from zlib import crc32

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import difference

Draw = Callable[[torch.Tensor, torch.Generator], object]
"""Fills a tensor with random values of a generator."""

_PIECE = 4096  # rows that are compared at a time, so that a vocabulary is not copied whole
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {torch.uint16, torch.uint32, torch.uint64}


@dataclass(frozen=True)
class Rows:
    """The index map of a dimension: which old row each new row is, and its factor.

    Attributes:
        origin: the old row of each new row; None for a row that is really new.
        factors: the factor of each row; None for no factors.
    """

    origin: tuple[int | None, ...]
    factors: tuple[float, ...] | None = None

    @staticmethod
    def repeated(old: int, new: int, blocks: int = 1) -> Rows:
        """Return a map where row i of a block is its old row ``i mod n``; sizes are per block."""
        return Rows(tuple(block * old + row % old for block in range(blocks) for row in range(new)))

    @staticmethod
    def extended(old: int, new: int, blocks: int = 1) -> Rows:
        """Return a map with the rows of each block, then new ones; sizes are per block."""
        return Rows(
            tuple(block * old + row if row < old else None for block in range(blocks) for row in range(new))
        )

    @cached_property
    def fresh(self) -> list[int]:
        """The rows that are really new."""
        return [row for row, came in enumerate(self.origin) if came is None]

    @cached_property
    def firsts(self) -> list[int]:
        """The first new row of each old row."""
        found: dict[int, int] = {}
        for row, came in enumerate(self.origin):
            if came is not None:
                found.setdefault(came, row)
        return list(found.values())

    @cached_property
    def copies(self) -> list[int]:
        """The new rows that are not the first copy of their old row."""
        first = set(self.firsts)
        return [row for row, came in enumerate(self.origin) if came is not None and row not in first]

    def taken(self, tensor: torch.Tensor, dim: int, fresh: torch.Tensor | None = None) -> torch.Tensor:
        """Return the new tensor, in its own memory, with the rows of `fresh` as the really new ones.

        On meta, where torch is slow, only the shape is computed.
        """
        if tensor.is_meta:
            return tensor.new_empty(resized(tensor, dim, len(self.origin)))
        old = tensor.shape[dim]
        if fresh is not None and self.origin == (*range(old), *[None] * len(self.fresh)):
            new = joined([tensor, fresh], dim)
        else:
            further = iter(range(old, old + len(self.fresh)))
            index = [next(further) if came is None else came for came in self.origin]
            pool = tensor if fresh is None else joined([tensor, fresh], dim)
            new = picked(pool, dim, index)
        return new if self.factors is None else self._multiplied(new, dim)

    def _multiplied(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        exact = wide(tensor)
        factors = torch.tensor(self.factors, dtype=exact, device=tensor.device)
        across = factors.reshape([-1 if each == dim % tensor.dim() else 1 for each in range(tensor.dim())])
        return (tensor.to(exact) * across).to(tensor.dtype)

    def faults(
        self,
        key: str,
        old: torch.Tensor,
        new: torch.Tensor,
        dim: int,
        *,
        places: Sequence[int] | None = None,
        tolerance: float | None = None,
    ) -> Iterator[str]:
        """Yield the first new row that is not its old row times its factor.

        Only the new rows at `places` are compared, or if it is None, all that have an old row. Without a
        tolerance, the bits must be equal, or with factors, within twice the rounding of the dtype.
        """
        chosen = places
        if chosen is None:
            chosen = [row for row, came in enumerate(self.origin) if came is not None]
        for start in range(0, len(chosen), _PIECE):
            piece = chosen[start : start + _PIECE]
            was, now = picked(old, dim, [self.origin[row] or 0 for row in piece]), picked(new, dim, piece)
            allowed = tolerance
            if self.factors is not None:
                part = Rows(tuple(range(len(piece))), tuple(self.factors[row] for row in piece))
                was, now = part.taken(was.double(), dim), now.double()
                if allowed is None:
                    allowed = 2 * torch.finfo(new.dtype).eps * float(was.abs().max()) if was.numel() else 0.0
            apart = difference(was, now, allowed)
            if apart is not None:
                place = list(apart.position)
                if place:
                    place[dim] = piece[place[dim]]
                yield f"{escape(key)}: {replace(apart, position=tuple(place))}"
                return


def picked(tensor: torch.Tensor, dim: int, index: Sequence[int]) -> torch.Tensor:
    """Do `torch.index_select` for every dtype."""
    chosen = torch.tensor(index, dtype=torch.int64, device=tensor.device)
    return _again(bits(tensor).index_select(dim, chosen), tensor.dtype)


def drawn(
    like: torch.Tensor,
    sizes: Sequence[int],
    draw: Draw,
    seed: int,
    key: str,
) -> torch.Tensor:
    """Return a tensor of the dtype and device of `like`, filled by ``draw(tensor, generator)``.

    It is drawn on the CPU, in at least float32, so that the values are the same on every device.
    """
    values = torch.empty(tuple(sizes), dtype=wide(like))
    draw(values, generator(seed, key))
    return values.to(like.device, like.dtype)


def generator(seed: int, key: str) -> torch.Generator:
    """Return the generator for a key: tensors of different names get different values from one seed."""
    name = crc32(key.encode("utf-8", "surrogatepass"))
    return torch.Generator().manual_seed((seed + name) % 2**63)


def wide(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype in which to compute: at least float32. torch can't compute with one-byte floats."""
    is_small = tensor.is_floating_point() and tensor.element_size() == 1
    return torch.float32 if is_small else torch.promote_types(tensor.dtype, torch.float32)


def resized(tensor: torch.Tensor, dim: int, size: int) -> list[int]:
    """Return the sizes of a tensor with another size along `dim`."""
    sizes = list(tensor.shape)
    sizes[dim] = size
    return sizes


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that torch can cut and join: the same memory as integers if the dtype can't."""
    lacking = (tensor.is_floating_point() and tensor.element_size() == 1) or tensor.dtype in _UNSIGNED
    return tensor.view(_INTEGERS[tensor.element_size()]) if lacking else tensor


def joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Do `torch.cat` for every dtype, in new memory.

    On meta, where torch itself would import 900 modules, only the shape is computed.
    """
    first = parts[0]
    if first.is_meta:
        return first.new_empty(resized(first, dim, sum(part.shape[dim] for part in parts)))
    return _again(torch.cat([bits(part) for part in parts], dim), first.dtype)


def _again(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Undo `bits`. A view of a quantized tensor breaks when that goes, so none is made in vain."""
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def add_noise(tensor: torch.Tensor, dim: int, places: Sequence[int], std: float, seed: int, key: str) -> None:
    """Add normal noise to rows of a tensor in place, for every dtype of floats."""
    noise = drawn(
        tensor,
        resized(tensor, dim, len(places)),
        lambda new, generator: new.normal_(0.0, std, generator=generator),
        seed,
        key,
    )
    rows = (picked(tensor, dim, places).to(wide(tensor)) + noise.to(wide(tensor))).to(tensor.dtype)
    index = torch.tensor(places, dtype=torch.int64, device=tensor.device)
    bits(tensor).index_copy_(dim, index, bits(rows))
