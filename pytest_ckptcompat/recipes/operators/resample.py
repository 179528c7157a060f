"""The operator `resample`: positions and patch kernels on another grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn import functional

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.per_tensor import KeyWise, model_has, shape
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.recipes.rows import joined, wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.core.claim import Claim
    from pytest_ckptcompat.recipes.plan import State

Size = tuple[int, int]

Interpolation = Literal["bicubic", "bilinear", "nearest"]


@dataclass(frozen=True)
class Grid:
    """The grid in a tensor, and its new size.

    Attributes:
        tokens: the dimension that holds the places, line after line; -1 if the grid is an image.
        dims: for an image, the dimensions of height and width.
        old: the old height and width.
        new: the new height and width.
        prefix: how many tokens without a place come before the grid.
    """

    tokens: int
    dims: tuple[int, int]
    old: Size
    new: Size
    prefix: int = 0

    def new_shape(self, old: tuple[int, ...]) -> list[int]:
        """Return the shape of the tensor with the new grid."""
        sizes = list(old)
        if self.tokens < 0:
            sizes[self.dims[0]], sizes[self.dims[1]] = self.new
        else:
            sizes[self.tokens] = self.prefix + self.new[0] * self.new[1]
        return sizes

    def pictures(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the grid as images of the shape (any, any, height, width)."""
        if self.tokens < 0:
            return tensor.movedim(self.dims, (2, 3))
        places = tensor.narrow(self.tokens, self.prefix, tensor.shape[self.tokens] - self.prefix)
        return places.reshape(1, *self.old, -1).permute(0, 3, 1, 2)

    def back(self, pictures: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Put images of the new size in place of those in `tensor`."""
        if self.tokens < 0:
            return pictures.movedim((2, 3), self.dims).contiguous()
        rows = pictures.permute(0, 2, 3, 1).reshape(*tensor.shape[: self.tokens], -1, tensor.shape[-1])
        return joined([tensor.narrow(self.tokens, 0, self.prefix), rows.contiguous()], self.tokens)


def resized(pictures: torch.Tensor, size: Size, mode: Interpolation, antialias: bool) -> torch.Tensor:
    """Resize images, in at least float32."""
    computed = pictures.to(wide(pictures))
    if size[1] == 1 < size[0]:  # torch (2.6 to 2.14) fills a smoothed column with its first value
        return resized(pictures.mT, (1, size[0]), mode, antialias).mT
    smooth = {"antialias": antialias, "align_corners": False} if mode != "nearest" else {}
    return functional.interpolate(computed, size, mode=mode, **smooth)


def square(tokens: int) -> Size | None:
    """Return the square grid with that many places, or None."""
    side = isqrt(max(tokens, 0))
    return (side, side) if side**2 == tokens and side else None


@dataclass(frozen=True, repr=False)
class resample(KeyWise[Grid]):
    """Resample positions, or patch kernels, to another grid.

    Position embeddings are interpolated as images, as timm's ``resample_abs_pos_embed`` does:
    ``resample("pos_embed", size=[24, 24], prefix_tokens=1)``. So are tables of relative positions, whose size
    is ``[2 * h - 1, 2 * w - 1]``. With ``mode="pinv"``, patch kernels are resized so that a resized patch and
    the resized kernel have the old product: ⟨Bx, w'⟩ = ⟨x, w⟩ if patches become larger, and the nearest to it
    if they become smaller (FlexiViT, Beyer et al. 2023, arXiv:2212.08013).

    Attributes:
        key: an exact key or a glob; tensors of the shape (tokens, width) or (1, tokens, width), images of
            the shape (1, h, w, width) or (1, width, h, w), or kernels of the shape (out, in, h, w).
        size: the new height and width; the model's if they are left out and the tokens are a square.
        mode: ``bicubic``, ``bilinear``, ``nearest``, or ``pinv``: bicubic for kernels, see above.
        prefix_tokens: how many tokens without a place (class, distillation) come first; they are kept.
        antialias: whether to smooth if the grid becomes smaller.
        old_size: the old height and width, if the tokens are not a square.
        optim: optimizer state: ``reset`` starts it anew; ``copy`` interpolates it, but not for ``pinv``.
    """

    computes: ClassVar[bool] = True

    size: tuple[int, ...] | None = None
    mode: Literal["bicubic", "bilinear", "nearest", "pinv"] = "bicubic"
    prefix_tokens: int = 0
    antialias: bool = True
    old_size: tuple[int, ...] | None = None
    optim: Literal["copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "old_size"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise RecipeError(f"resample: {name} must be a height and a width", key=self.key)
        if self.mode == "pinv" and (self.prefix_tokens or self.optim == "copy"):
            raise RecipeError("resample: pinv is for kernels, and resets optimizer state", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        return f"{self}: the model sees another grid"

    def change(self, key: str, state: State, target: State) -> Grid | None:
        """Return the grid of a tensor, or None if it stays, or if the model does not have a glob's match."""
        has, wanted = tuple(state[key].shape), shape(target.get(key))
        exact = key == self.key
        if (wanted is None and not exact) or (wanted == has and not (exact and self.size)):
            return None  # the same number of places is another grid only if `size` says so
        grid = self._picture if self.mode == "pinv" or len(has) == 4 else self._tokens
        found = grid(key, has, wanted)
        return None if found.old == found.new else found

    def new_shape(self, change: Grid, old: torch.Tensor) -> Sequence[int]:
        return change.new_shape(tuple(old.shape))

    def make(self, key: str, change: Grid, tensor: torch.Tensor) -> torch.Tensor:
        if self.mode == "pinv":
            return self._kernel(tensor, change)
        return self._resized(change, tensor, self.mode)

    def moments(self, key: str, change: Grid, tensor: torch.Tensor, squares: bool) -> torch.Tensor:
        return self._resized(change, tensor, "bilinear")  # which keeps averages of squares positive

    def _resized(self, grid: Grid, tensor: torch.Tensor, mode: Interpolation) -> torch.Tensor:
        pictures = resized(grid.pictures(tensor), grid.new, mode, self.antialias)
        return grid.back(pictures.to(tensor.dtype), tensor)

    def _kernel(self, tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Resize the kernel by the pseudo-inverse of the transposed resizing, dimension by dimension."""
        rows, columns = (torch.linalg.pinv(each.T).to(tensor.device) for each in self._matrices(grid))
        kernel: torch.Tensor = rows @ tensor.double() @ columns.T
        return kernel.to(tensor.dtype)

    def _matrices(self, grid: Grid) -> list[torch.Tensor]:
        """Return the resizing of height and width as matrices (new, old), in float64."""
        mode = "bicubic" if self.mode == "pinv" else self.mode
        lines = (torch.eye(old, dtype=torch.float64)[None, None] for old in grid.old)
        return [
            resized(line, (new, old), mode, self.antialias)[0, 0]
            for line, new, old in zip(lines, grid.new, grid.old, strict=True)
        ]

    # -- the grid ------------------------------------------------------------------------------------------

    def _tokens(self, key: str, has: tuple[int, ...], wanted: tuple[int, ...] | None) -> Grid:
        """Return the grid of a row of tokens."""
        if len(has) not in (2, 3) or (len(has) == 3 and has[0] != 1):
            raise self.unfit(key, f"it is {shown(has)}, which is not a row of tokens")
        dim = len(has) - 2
        count = has[dim] - self.prefix_tokens
        old = _pair(self.old_size) or square(count)
        if old is None or old[0] * old[1] != count:
            raise self.unfit(key, f"its {count} places are {self._no_grid(old, has[dim])}")
        more = (wanted[dim] if wanted and len(wanted) == len(has) else 0) - self.prefix_tokens
        new = _pair(self.size) or square(more)
        if new is None:
            raise self.unfit(key, "the new height and width must be given: size=[h, w]")
        return Grid(dim, (0, 0), old, new, self.prefix_tokens)

    def _no_grid(self, old: Size | None, tokens: int) -> str:
        if old is not None:
            return f"not {old[0]} × {old[1]}"
        likely = next((n for n in (1, 2) if self.prefix_tokens == 0 and square(tokens - n)), None)
        return f"not a square: give {f'prefix_tokens={likely}, or ' if likely else ''}old_size=[h, w]"

    def _picture(self, key: str, has: Size | tuple[int, ...], wanted: tuple[int, ...] | None) -> Grid:
        """Return the grid of a kernel or an image, from those possible dimensions that change."""
        if len(has) != 4:
            raise self.unfit(key, f"it is {shown(has)}, which is not a kernel")
        for dims in ((2, 3),) if self.mode == "pinv" or has[0] != 1 else ((2, 3), (1, 2)):
            old = has[dims[0]], has[dims[1]]
            new = _pair(self.size) or (
                (wanted[dims[0]], wanted[dims[1]]) if wanted and len(wanted) == 4 else None
            )
            fits = wanted is None or all(
                each == (new or old)[dims.index(dim)] if dim in dims else each == has[dim]
                for dim, each in enumerate(wanted)
            )
            if new is not None and fits:
                return Grid(-1, dims, old, new)
        raise self.unfit(key, f"it is {shown(has)}, {model_has(wanted)}")

    # -- the proof -----------------------------------------------------------------------------------------

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that prefix tokens are kept, and the grid is the old one times resizing matrices."""
        promise = "a resized patch gives what it gave" if self.mode == "pinv" else "resized line by line"
        kept = "prefix tokens bit-equal" if self.prefix_tokens else ""
        return [self.claim(promise, before, after, target, kept=kept)]

    def faults(self, key: str, change: Grid, old: torch.Tensor, new: torch.Tensor) -> Iterator[str]:
        rows, columns = self._matrices(change)
        if change.tokens >= 0:
            prefix, kept = (each.narrow(change.tokens, 0, change.prefix) for each in (old, new))
            yield from differing(key, prefix, kept)
            one, other = (
                each.double().movedim(change.tokens, 0).flatten(1)[change.prefix :].T.reshape(-1, *size)
                for each, size in ((old, change.old), (new, change.new))
            )
        else:
            others = [dim for dim in range(4) if dim not in change.dims]
            one, other = (each.double().movedim(others, (0, 1)) for each in (old, new))
        allowed = 64 * torch.finfo(new.dtype).eps * float(old.double().abs().max())
        if self.mode == "pinv":
            # The normal equations: no other kernel comes closer to reproducing the old products.
            other = rows @ (rows.T @ other @ columns) @ columns.T
        yield from differing(key, rows @ one @ columns.T, other, allowed)


def _pair(size: tuple[int, ...] | None) -> Size | None:
    return None if size is None else (size[0], size[1])
