"""Grids inside tensors: positions in rows of tokens, positions as pictures, kernels."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch.nn import functional

from .growing import joined, wide

Size = tuple[int, int]
Interpolation = Literal["bicubic", "bilinear", "nearest"]


@dataclass(frozen=True)
class Grid:
    """Where the grid of a tensor is, and what becomes of it.

    Attributes:
        tokens: the dimension in which its places stand in a row, line after line; -1 where it is a picture.
        dims: of a picture: the dimensions of its height and width.
        old: height and width.
        new: height and width that it is to have.
        prefix: how many tokens without a place stand before it.
    """

    tokens: int
    dims: tuple[int, int]
    old: Size
    new: Size
    prefix: int = 0

    def pictures(self, tensor: torch.Tensor) -> torch.Tensor:
        """The grid as pictures of the shape (any, any, height, width)."""
        if self.tokens < 0:
            return tensor.permute(*(dim for dim in range(4) if dim not in self.dims), *self.dims)
        places = tensor.narrow(self.tokens, self.prefix, tensor.shape[self.tokens] - self.prefix)
        return places.reshape(1, *self.old, -1).permute(0, 3, 1, 2)

    def back(self, pictures: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Pictures of the new size in the place of those that `tensor` has."""
        if self.tokens < 0:
            others = [dim for dim in range(4) if dim not in self.dims]
            order = [*others, *self.dims]
            return pictures.permute([order.index(dim) for dim in range(4)]).contiguous()
        rows = pictures.permute(0, 2, 3, 1).reshape(*tensor.shape[: self.tokens], -1, tensor.shape[-1])
        return joined([tensor.narrow(self.tokens, 0, self.prefix), rows.contiguous()], self.tokens)


def resized(pictures: torch.Tensor, size: Size, mode: Interpolation, antialias: bool) -> torch.Tensor:
    """Pictures of another size, in float32 at least."""
    computed = pictures.to(torch.promote_types(wide(pictures), torch.float32))
    if pictures.is_meta:
        return computed.new_empty((*pictures.shape[:2], *size))
    if size[1] == 1 < size[0]:  # of which torch (2.6 to 2.14) fills a smoothed column with its first value
        return resized(pictures.mT, (1, size[0]), mode, antialias).mT
    smooth = {"antialias": antialias, "align_corners": False} if mode != "nearest" else {}
    return functional.interpolate(computed, size, mode=mode, **smooth)


def matrix(old: int, new: int, mode: Interpolation, antialias: bool) -> torch.Tensor:
    """Resizing along one dimension as a matrix (new, old), in float64."""
    lines = torch.eye(old, dtype=torch.float64)[None, None]
    return resized(lines, (new, old), mode, antialias)[0, 0]


def square(tokens: int) -> Size | None:
    """The square grid of so many places, if there is one."""
    side = isqrt(max(tokens, 0))
    return (side, side) if side**2 == tokens and side else None
