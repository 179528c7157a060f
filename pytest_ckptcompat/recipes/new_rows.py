"""Make new rows from scratch, or from the statistics of the old rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import magnitude

from .per_tensor import shape
from .promises import differing
from .rows import Draw, drawn, resized, wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .plan import State

Init = Literal[
    "zeros", "constant", "normal", "kaiming_uniform", "xavier_uniform", "mean", "multivariate_normal"
]
SHRUNK = 1e-9
"""The factor on the old rows' covariance for ``multivariate_normal``."""
_SIGMAS = 5.0
_DRAWN = ("normal", "kaiming_uniform", "xavier_uniform", "multivariate_normal")


@dataclass(frozen=True)
class Fresh:
    """The new rows of one tensor.

    Attributes:
        init: how they are made.
        key: the key of the tensor.
        fans: fan-in and fan-out, in the model's size, of this weight or of the weight beside it.
        seed: the seed of random rows.
        std: the standard deviation for ``normal``; that of the old rows if it is None.
        value: the value for ``constant``.
    """

    init: Init | Literal["ones"]
    key: str
    fans: tuple[int, int]
    seed: int
    std: float | None = None
    value: float = 0.0

    @staticmethod
    def of(init: Init | Literal["ones"], operator: Any, key: str, state: State, target: State) -> Fresh:
        """Declare the new rows of a tensor, as an operator with `seed`, and perhaps `std` and `value`, does.

        Raises:
            RecipeError: the tensor's dtype can't hold what `init` gives, or `init` needs old values or a
                weight's size, and there are none.
        """
        std, value = getattr(operator, "std", None), getattr(operator, "value", 0.0)
        like = target.get(key) if key not in state else state[key]
        if isinstance(like, torch.Tensor):
            if (init in _DRAWN and not like.is_floating_point()) or (init == "mean" and like.is_complex()):
                raise operator.unfit(key, f"it holds no real numbers, which init={init} needs")
            by_old = init in ("mean", "multivariate_normal") or (init == "normal" and std is None)
            if by_old and like.numel() == 0:
                raise operator.unfit(key, f"it has no values, by which init={init} goes")
            if init == "constant" and not _holds(like.dtype, value):
                raise operator.unfit(key, f"its dtype {str(like.dtype)[6:]} does not hold {value:g}")
        fans = (0, 0)
        if init in ("kaiming_uniform", "xavier_uniform"):
            sizes = shape(target.get(key, state.get(key))) or ()
            if len(sizes) < 2:
                weight = f"{key.rpartition('.')[0]}.weight".removeprefix(".")
                sizes = shape(target.get(weight, state.get(weight))) or ()
            if len(sizes) < 2 or 0 in sizes:
                raise operator.unfit(key, f"{init} goes by a weight's size, and there is none beside it")
            fans = sizes[1] * prod(sizes[2:]), sizes[0] * prod(sizes[2:])
        return Fresh(init, key, fans, operator.seed, std, value)

    def made(self, tensor: torch.Tensor, dim: int, count: int) -> torch.Tensor:
        """Make `count` new rows with the dtype and device of the old ones."""
        sizes = resized(tensor, dim, count)
        if self.init in ("mean", "multivariate_normal"):
            return self._around_the_mean(tensor, dim, sizes)
        if self.init == "zeros":
            return tensor.new_zeros(sizes)  # not by filling, which torch can't do in every dtype
        if self._constant is not None:
            return tensor.new_full(sizes, self._constant)
        if self.init == "normal":
            std = self._std(tensor)
            return self._drawn(tensor, sizes, lambda new, g: new.normal_(0.0, std, generator=g))
        bound = self._bound(tensor.dim())
        return self._drawn(tensor, sizes, lambda new, g: new.uniform_(-bound, bound, generator=g))

    @property
    def _constant(self) -> float | None:
        return {"ones": 1.0, "constant": self.value}.get(self.init)

    def _drawn(self, like: torch.Tensor, sizes: Sequence[int], draw: Draw) -> torch.Tensor:
        return drawn(like, sizes, draw, self.seed, self.key)

    def _around_the_mean(self, tensor: torch.Tensor, dim: int, sizes: list[int]) -> torch.Tensor:
        centre = mean(tensor, dim)
        if self.init == "mean":
            return centre.expand(sizes).to(tensor.dtype)
        # Sums of the centred old rows with normal coefficients have their covariance, so no matrix root is
        # needed.
        n = tensor.shape[dim]
        rows = (tensor.to(centre.dtype) - centre).movedim(dim, 0).reshape(n, -1)
        mix = self._drawn(rows, (sizes[dim], n), lambda new, g: new.normal_(generator=g))
        noise = (mix @ rows).mul_(sqrt(SHRUNK / max(n, 1)))
        shaped = noise.reshape(sizes[dim], *centre.movedim(dim, 0).shape[1:]).movedim(0, dim)
        return (centre + shaped).to(tensor.dtype)

    def _std(self, tensor: torch.Tensor) -> float:
        if self.std is not None:
            return self.std
        return float(tensor.to(wide(tensor)).std(correction=0))

    def _bound(self, dims: int) -> float:
        """Return the bound of the uniform distribution. torch gives every bias ``1/√fan_in``."""
        fan_in, fan_out = self.fans
        if self.init == "xavier_uniform" and dims > 1:
            return sqrt(6 / (fan_in + fan_out))
        return 1 / sqrt(fan_in)

    # -- the proof -----------------------------------------------------------------------------------------

    def faults(self, old: torch.Tensor, added: torch.Tensor, dim: int) -> Iterator[str]:
        """Yield what is wrong with new rows, according to `init`."""
        if added.numel() == 0:
            return
        if self.init == "zeros":
            yield from differing(self.key, torch.zeros_like(added), added)
        elif self._constant is not None:
            yield from differing(self.key, torch.full_like(added, self._constant), added)
        elif self.init in ("mean", "multivariate_normal"):
            yield from self._off_the_mean(old, added, dim)
        else:
            yield from self._ill_spread(old, added, dim)

    def _off_the_mean(self, old: torch.Tensor, added: torch.Tensor, dim: int) -> Iterator[str]:
        centre, deviation, largest = _moments(old, dim)
        # The mean of integers is truncated.
        allowed = 4 * torch.finfo(added.dtype).eps * largest if added.is_floating_point() else 1.0
        if self.init == "multivariate_normal":
            allowed += 8 * sqrt(SHRUNK) * float(deviation.max())
        yield from differing(self.key, centre.expand_as(added), added.double(), allowed)

    def _ill_spread(self, old: torch.Tensor, added: torch.Tensor, dim: int) -> Iterator[str]:
        """Check mean, deviation and maximum of random rows; the first two within 5 standard errors."""
        if self.init == "normal":
            std = self._overall(old, dim) if self.std is None else self.std
            most, error = 8 * std, std / sqrt(2)
        else:
            gain = nn.init.calculate_gain("leaky_relu", sqrt(5))
            most = gain * sqrt(3 / self.fans[0])
            if self.init == "xavier_uniform" and old.dim() > 1:
                most = sqrt(3) * sqrt(2 / sum(self.fans))
            std = most / sqrt(3)
            error = std * sqrt(0.2)
        k, name = max(added.numel(), 1), escape(self.key)
        rounding = max(1e-2, torch.finfo(added.dtype).eps)
        near = rounding * std
        added = added.double()
        if not abs(float(added.mean())) <= _SIGMAS * std / sqrt(k) + near:  # also true for NaN
            yield f"{name}: the new rows' mean is {magnitude(abs(float(added.mean())))}, not about 0"
        found = float(added.std(correction=0))
        if not abs(found - std) <= _SIGMAS * max(error / sqrt(k), std / k) + near:
            yield f"{name}: the new rows' deviation is {magnitude(found)}, not about {magnitude(std)}"
        if not float(added.abs().max()) <= most * (1 + rounding):
            yield f"{name}: a new row has {magnitude(float(added.abs().max()))}, beyond {magnitude(most)}"

    def _overall(self, old: torch.Tensor, dim: int) -> float:
        """Return the standard deviation of all old elements, from within and between the columns."""
        centre, deviation, _ = _moments(old, dim)
        return float((deviation.square().mean() + (centre - centre.mean()).square().mean()).sqrt())


_PIECE = 4096  # rows converted to float64 at a time, so that a vocabulary is not copied whole


def _moments(old: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the mean and the standard deviation of the rows, in float64, and the largest value."""
    pieces = torch.split(old, _PIECE, dim)
    n = old.shape[dim]
    centre = sum((piece.double().sum(dim, keepdim=True) for piece in pieces), torch.zeros(())) / n
    squares = sum(
        ((piece.double() - centre).square().sum(dim, keepdim=True) for piece in pieces), torch.zeros(())
    )
    return centre, (squares / n).sqrt(), max(float(piece.double().abs().max()) for piece in pieces)


def mean(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mean of the rows, computed in at least float32, with dimension `dim` kept as 1."""
    return tensor.mean(dim, keepdim=True, dtype=wide(tensor))


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Return whether a dtype can hold a number, up to rounding."""
    if dtype.is_floating_point or dtype.is_complex:
        return not math.isfinite(value) or abs(value) <= torch.finfo(dtype).max
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return value.is_integer() and least <= value <= most
