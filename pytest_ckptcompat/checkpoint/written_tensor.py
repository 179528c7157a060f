"""Tensors in the form that the writers take: shape and dtype, and a function that reads the values."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

_PIECE = 1 << 24


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor to be written.

    Attributes:
        shape: sizes, in elements.
        dtype: the dtype of the tensor.
        read: returns the values. Called once for every `same`, when they are written.
        same: equal for tensors that share their memory and are written once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    same: Hashable

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Value:
        """Wrap a tensor in memory. Views with the same memory, shape and stride are written once."""
        same = (
            tensor.untyped_storage()._cdata,
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor, same)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return self.numel * self.dtype.itemsize

    def pieces(self, *, swapped: bool = False) -> Iterator[memoryview]:
        """Yield the contiguous values in pieces of at most 16 MiB. A piece is valid until the next is taken.

        Args:
            swapped: whether to swap the byte order of every element.
        """
        tensor = self.read().detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"announced as {self.shape} {self.dtype}, read as {tuple(tensor.shape)} {tensor.dtype}"
            )
        if swapped and self.numel:
            tensor = _swapped(tensor)
        start = tensor.data_ptr()
        for offset in range(0, self.nbytes, _PIECE):
            size = min(_PIECE, self.nbytes - offset)
            yield memoryview((ctypes.c_ubyte * size).from_address(start + offset)).cast("B")


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.reshape(-1, 1).view(torch.uint8).flip(1).contiguous()
