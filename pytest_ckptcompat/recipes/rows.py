"""What operators share that give a tensor more rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import torch

Sizes = Sequence[int]


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
