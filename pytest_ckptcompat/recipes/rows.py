"""What operators share that give a tensor more rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from zlib import crc32

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import difference

Sizes = Sequence[int]

_PIECE = 4096  # rows that are compared together, so that a vocabulary is not copied as a whole
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {torch.uint16, torch.uint32, torch.uint64}


@dataclass(frozen=True)
class Rows:
    """The index map of a dimension: which old row each new row is, and how many times it counts.

    Attributes:
        origin: for each new row the old one; None for one that was not there before.
        factors: what each row is multiplied by; None: nothing.
    """

    origin: tuple[int | None, ...]
    factors: tuple[float, ...] | None = None

    @staticmethod
    def repeated(old: int, new: int, blocks: int = 1) -> Rows:
        """Row i of a block is row ``i mod n`` of that block; sizes are those of one block."""
        return Rows(tuple(block * old + row % old for block in range(blocks) for row in range(new)))

    @staticmethod
    def extended(old: int, new: int, blocks: int = 1) -> Rows:
        """The rows of each block, and behind them new ones; sizes are those of one block."""
        return Rows(
            tuple(block * old + row if row < old else None for block in range(blocks) for row in range(new))
        )

    @cached_property
    def fresh(self) -> list[int]:
        """The new rows that were not there before."""
        return [row for row, came in enumerate(self.origin) if came is None]

    @cached_property
    def firsts(self) -> list[int]:
        """The new rows that are the first ones of their old row."""
        found: dict[int, int] = {}
        for row, came in enumerate(self.origin):
            if came is not None:
                found.setdefault(came, row)
        return list(found.values())

    @cached_property
    def copies(self) -> list[int]:
        """The new rows that are further copies of an old one."""
        first = set(self.firsts)
        return [row for row, came in enumerate(self.origin) if came is not None and row not in first]

    def taken(self, tensor: torch.Tensor, dim: int, fresh: torch.Tensor | None = None) -> torch.Tensor:
        """The new tensor, in memory of its own; on meta, where torch takes its time, the shape alone.

        Args:
            tensor: the old one.
            dim: the dimension that counts the rows.
            fresh: the rows that were not there before, in their order, of the same dtype.
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
        exact = torch.promote_types(wide(tensor), torch.float32)
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
        """The first new row that is not its old one times its factor.

        Args:
            key: of the tensor, for the text.
            old: the tensor before.
            new: the tensor after, with as many rows as this map has.
            dim: the dimension that counts the rows.
            places: the new rows that are looked at; all that have an old one, if they are left out.
            tolerance: the largest absolute difference that is none; None: the bits must be the same, or with
                factors twice the rounding of the dtype.
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
    """`torch.index_select`, for every dtype."""
    chosen = torch.tensor(index, dtype=torch.int64, device=tensor.device)
    return bits(tensor).index_select(dim, chosen).view(tensor.dtype)


def drawn(
    like: torch.Tensor,
    sizes: Sizes,
    draw: Callable[[torch.Tensor, torch.Generator], object],
    seed: int,
    key: str,
) -> torch.Tensor:
    """A tensor of the kind of `like`, filled by ``draw(tensor, generator)``.

    It is drawn on the CPU, in float32 at least, so that the values are the same on every device; on meta
    nothing is.
    """
    if like.device.type == "meta":
        return like.new_empty(tuple(sizes))
    values = torch.empty(tuple(sizes), dtype=torch.promote_types(wide(like), torch.float32))
    draw(values, generator(seed, key))
    return values.to(like.device, like.dtype)


def generator(seed: int, key: str) -> torch.Generator:
    """Of what is drawn for a key: tensors of different names get different values from one seed."""
    name = crc32(key.encode("utf-8", "surrogatepass"))
    return torch.Generator().manual_seed((seed + name) % 2**63)


def wide(tensor: torch.Tensor) -> torch.dtype:
    """A dtype with which torch can compute: float32 for one-byte floats, of which it has few operations."""
    return torch.float32 if tensor.is_floating_point() and tensor.element_size() == 1 else tensor.dtype


def resized(tensor: torch.Tensor, dim: int, size: int) -> list[int]:
    """The sizes of a tensor with another one along `dim`."""
    sizes = list(tensor.shape)
    sizes[dim] = size
    return sizes


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that can be cut and joined: where torch lacks operations, the same memory as integers."""
    lacking = (tensor.is_floating_point() and tensor.element_size() == 1) or tensor.dtype in _UNSIGNED
    return tensor.view(_INTEGERS[tensor.element_size()]) if lacking else tensor


def joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """`torch.cat`, for every dtype, in memory of its own.

    On meta, where torch itself imports 900 modules for it, the shape alone is computed.
    """
    first = parts[0]
    if first.is_meta:
        return first.new_empty(resized(first, dim, sum(part.shape[dim] for part in parts)))
    return torch.cat([bits(part) for part in parts], dim).view(parts[0].dtype)


def put_rows(tensor: torch.Tensor, dim: int, places: Sequence[int], rows: torch.Tensor) -> None:
    """Overwrite rows of a tensor in its place, for every dtype."""
    index = torch.tensor(places, dtype=torch.int64, device=tensor.device)
    bits(tensor).index_copy_(dim, index, bits(rows))


def add_to_rows(tensor: torch.Tensor, dim: int, places: Sequence[int], more: torch.Tensor) -> None:
    """Add to rows of a tensor in its place, for every dtype."""
    computed = picked(tensor, dim, places).to(wide(tensor)) + more.to(wide(tensor))
    put_rows(tensor, dim, places, computed.to(tensor.dtype))
