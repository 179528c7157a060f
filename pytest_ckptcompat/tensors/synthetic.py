"""Synthetic values. They depend only on key and shape, and have the same bits on every machine."""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from .nested import mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_ckptcompat.core.tensor_spec import TensorSpec

    Table = Mapping[str, TensorSpec | torch.Tensor]
    """Key -> a shape and a dtype."""

_PIECE = 1 << 15  # numbers made at a time, which fit in the cache and use one thread
_MASK = 0xFFFFFFFF
_HALF = 1 << 15

_VARIANCE = re.compile(r"(^|_)var(iance)?$")
_FACTOR = re.compile(
    r"(^|_)(weight(_g)?|original0|g|gamma|lambda|alpha|scales?|scaling|std|sigma|temperature|tau|norm)(_?\d+)?$"
)
_LEFT_VECTOR = re.compile(r"(.+)\.\d+\._u|(.+)_u")
"""Of a spectral norm, as a function or a parametrization."""
_GAIN = 1.7
"""How much weights increase a signal's variance, to make up for rectifiers and batch norms (about 1/2)."""


def state_dict(
    table: Table,
    ties: Iterable[Sequence[str]] = (),
    kept: Mapping[str, Any] | None = None,
    gain: float = 1.0,
) -> OrderedDict[str, Any]:
    """Draw values for every key of a table.

    Args:
        table: key -> a tensor or `TensorSpec`, whose values are not used.
        ties: groups of keys that share one tensor: it is drawn once, under the first name.
        kept: key -> value that is not drawn: integer and boolean tensors, and other objects.
        gain: what the variance of weights is multiplied by.

    Returns:
        Floating tensors as float64 and complex ones as complex128, whatever the dtype in the table, so that a
        change of dtype alone changes no value. Integers and booleans are taken from `kept`, or are zeros.
    """
    kept = kept or {}
    first = {key: keys[0] for keys in ties for key in keys}
    found: OrderedDict[str, Any] = OrderedDict()
    for key, spec in table.items():
        name = first.get(key, key)
        if name in found and tuple(found[name].shape) == tuple(spec.shape):
            found[key] = found[name]
        elif key in kept:
            found[key] = kept[key]
        elif (dtype := _dtype(spec)).is_floating_point or dtype.is_complex:
            drawn = values(name, (*spec.shape, 2) if dtype.is_complex else spec.shape, gain)
            found[key] = torch.view_as_complex(drawn) if dtype.is_complex else drawn
        else:
            found[key] = torch.zeros(tuple(spec.shape), dtype=dtype, device="cpu")
    for key in list(found):
        if match := _LEFT_VECTOR.fullmatch(key):
            _align(found, f"{match[1]}.original" if match[1] else f"{match[2]}_orig", key, gain)
    return found


def values(key: str, shape: Sequence[int], gain: float = 1.0) -> torch.Tensor:
    """Draw one tensor of a model in float64. Every element is exact in float32 too.

    Weights are centred at 0 and scaled by their fan-in, so that a signal neither vanishes nor explodes.
    Factors (the weight of a norm, a scale) are around 1, variances around 2, biases and means around 0.
    """
    return _uniform(key, shape, *_range(key, shape, gain))


def _align(found: dict[str, Any], weight: str, left: str, gain: float) -> None:
    """Make the two vectors of a spectral norm belong to its weight, so that the norm is not one of noise.

    With u the first unit vector and v the first row of the weight, the norm is the sum of the row's squares,
    about 1. Where rows may lie in either of two dimensions, v is the sum of both.
    """
    right = f"{left[:-1]}v"
    if weight not in found or right not in found or found[weight].dim() < 2:
        return
    matrix, u, v = found[weight], found[left], found[right]
    rows = [
        matrix.select(dim, 0).reshape(-1)
        for dim in (0, 1)
        if matrix.shape[dim] == u.numel() and matrix.numel() == u.numel() * v.numel()
    ]
    if rows:
        found[left] = torch.eye(1, u.numel(), dtype=u.dtype, device="cpu")[0]
        found[right] = (sum(rows[1:], rows[0]) / math.sqrt(gain)).float().double()


def signal(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Draw one input in float64 with mean 0 and variance 1."""
    return _uniform(name, shape, 0.0, math.sqrt(3))


def integers(name: str, shape: Sequence[int], bound: int) -> torch.Tensor:
    """Draw int64 numbers in ``[0, min(bound, 2**31))``."""
    high, low = torch.empty(2, math.prod(shape), dtype=torch.int64, device="cpu")
    _fill(f"{name} {tuple(shape)} high", high)
    _fill(f"{name} {tuple(shape)} low", low)
    both: torch.Tensor = high.bitwise_left_shift_(15).bitwise_or_(low.bitwise_right_shift_(1))
    return both.remainder_(min(bound, 1 << 31)).reshape(tuple(shape))


def inputs(batch: Any, name: str = "input") -> Any:
    """Return a copy of a batch with new floating and complex tensors. Integers and booleans are kept."""
    count = 0

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        count += 1
        if tensor.is_complex():
            return torch.view_as_complex(signal(f"{name} {count}", (*tensor.shape, 2)))
        return signal(f"{name} {count}", tensor.shape)

    return mapped(batch, drawn)


def _uniform(name: str, shape: Sequence[int], centre: float, half_width: float) -> torch.Tensor:
    """Draw uniform numbers: 16-bit integers times an 8-bit width, so that nothing is rounded."""
    found = torch.empty(math.prod(shape), dtype=torch.float64, device="cpu")
    _fill(f"{name} {tuple(shape)}", found)
    mantissa, exponent = math.frexp(half_width / _HALF)
    width = math.ldexp(round(mantissa * 256) / 256, exponent)
    return found.sub_(_HALF).mul_(width).add_(centre).reshape(tuple(shape))


def _fill(name: str, found: torch.Tensor) -> None:
    """Fill a vector with uniform integers in ``[0, 2**16)`` by hashing a counter, seeded by `name`.

    All numbers stay below ``2**63``, so the bits don't depend on the platform, the torch release or the
    number of threads. The hash is lowbias32 (C. Wellons, Hash Prospector, 2018).
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    seed, stride = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little") >> 1 | 1
    half = (len(found) + 1) // 2
    counter, shifted = torch.empty(2, min(_PIECE, half), dtype=torch.int64, device="cpu")
    for start in range(0, half, _PIECE):
        size = min(_PIECE, half - start)
        number, moved = counter[:size], shifted[:size]
        torch.arange(start, start + size, out=number)
        number.mul_(stride).add_(seed).bitwise_and_(_MASK)
        number.bitwise_xor_(torch.bitwise_right_shift(number, 16, out=moved))
        number.mul_(0x7FEB352D).bitwise_and_(_MASK)
        number.bitwise_xor_(torch.bitwise_right_shift(number, 15, out=moved))
        number.mul_(0x846CA68B - (1 << 32)).bitwise_and_(_MASK)
        torch.bitwise_right_shift(number, 16, out=moved)
        found[start : start + size] = moved
        second = found[half + start : half + start + size]
        second.copy_(number.bitwise_xor_(moved).bitwise_and_(0xFFFF)[: len(second)])


def _range(key: str, shape: Sequence[int], gain: float) -> tuple[float, float]:
    """Return the centre and half the width of a tensor's range of values."""
    leaf = key.rpartition(".")[2]
    size = math.prod(shape)
    vector = size == max(shape, default=1)
    if vector and _VARIANCE.search(leaf):
        return 2.0, 0.5
    if vector and _FACTOR.search(leaf) and not (leaf == "weight" and len(shape) > 1):
        return 1.0, 0.25
    if size == 1 and "bias" not in leaf and "mean" not in leaf:
        return 1.0, 0.25
    if len(shape) < 2:
        return 0.0, 0.25
    stacked = len(shape) > 2 and not re.search("weight|kernel|original", leaf)  # matrices of experts
    fan_in = max(shape[-2:]) if stacked else math.prod(shape[1:])
    return 0.0, math.sqrt(3 * _GAIN * gain / max(1, fan_in))


def _dtype(spec: TensorSpec | torch.Tensor) -> torch.dtype:
    return spec.dtype if isinstance(spec.dtype, torch.dtype) else getattr(torch, spec.dtype)
