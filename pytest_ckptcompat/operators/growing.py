"""What operators share that give a tensor more rows: making them, and promises about the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import TYPE_CHECKING
from zlib import crc32

import torch

from pytest_ckptcompat.keys import escape
from pytest_ckptcompat.proof.difference import difference
from pytest_ckptcompat.rules import Promise

if TYPE_CHECKING:
    from .plan import State

Sizes = Sequence[int]
_PIECE = 1 << 20


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
    """A tensor that can be cut and joined: one-byte floats, for which torch lacks operations, as bytes."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def joined(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """`torch.cat`, for every dtype, in memory of its own.

    On meta, where torch itself imports 900 modules for it, the shape alone is computed.
    """
    first = parts[0]
    if first.is_meta:
        return first.new_empty(resized(first, dim, sum(part.shape[dim] for part in parts)))
    return torch.cat([bits(part) for part in parts], dim).view(parts[0].dtype)


def grown(before: State, after: State, dim: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The keys that have more rows along `dim` than they had, with the tensor before and after."""
    for key, old in before.items():
        new = after.get(key)
        if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.dim() != new.dim():
            continue
        if -old.dim() <= dim < old.dim() and new.shape[dim] > old.shape[dim]:
            yield key, old, new


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape side by side, some elements at a time, so that wide copies of them stay small."""
    yield from zip(*(torch.split(tensor.reshape(-1), _PIECE) for tensor in tensors), strict=True)


NEEDED = "needs values"
_WITHOUT_VALUES = ContextVar("_WITHOUT_VALUES", default=False)


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, a `promise` is named and not checked: a lock file has nothing to hold it against."""
    token = _WITHOUT_VALUES.set(True)
    try:
        yield
    finally:
        _WITHOUT_VALUES.reset(token)


def promise(name: str, faults: Iterable[str], kept: str = "") -> Promise:
    """A promise, broken by the first fault if there is one; faults are looked for only where values are."""
    if _WITHOUT_VALUES.get():
        return Promise(name, "unchecked", NEEDED)
    first = list(islice(faults, 1))
    return Promise(name, "broken", first[0]) if first else Promise(name, "kept", kept)


def differing(
    key: str, expected: torch.Tensor, actual: torch.Tensor, tolerance: float | None = None
) -> Iterator[str]:
    """The fault of a tensor that is not as expected, bit for bit unless there is a tolerance."""
    apart = difference(expected, actual, tolerance)
    if apart is not None:
        yield f"{escape(key)}: {apart}"


def old_rows_kept(operator: object, before: State, after: State, dim: int) -> Promise:
    """The rows that were there are there still, at their old places, bit for bit."""
    count = 0

    def faults() -> Iterator[str]:
        nonlocal count
        for key, old, new in grown(before, after, dim):
            count += 1
            yield from differing(key, old, new.narrow(dim, 0, old.shape[dim]))

    kept = promise(f"{operator}: old rows kept", faults())
    return kept if kept.detail else Promise(kept.name, kept.status, f"bit-equal in {count} tensors")
