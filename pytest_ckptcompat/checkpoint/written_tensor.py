"""Tensors in the form that the writers take: shape and dtype, and a function that reads the values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import memory

from .reader import memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    import torch

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
    def of(cls, tensor: torch.Tensor, owner: Hashable = None) -> Value:
        """Wrap a tensor in memory, or one whose values are read when it is written.

        Views with the same memory, shape and stride are written once if they have the same owner.
        """
        return cls(tuple(tensor.shape), tensor.dtype, lambda: materialise(tensor), (memory(tensor), owner))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return self.numel * self.dtype.itemsize

    def pieces(self) -> Iterator[memoryview]:
        """Yield the contiguous values in pieces of at most 16 MiB, each valid until the next is taken."""
        tensor = self.read().detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"announced as {self.shape} {self.dtype}, read as {tuple(tensor.shape)} {tensor.dtype}"
            )
        whole = memory_of(tensor)
        for offset in range(0, self.nbytes, _PIECE):
            yield whole[offset : offset + _PIECE]
