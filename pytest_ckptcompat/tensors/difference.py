"""Compare two tensors: whether their bits are the same, and where they differ most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .deferred import materialise

QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})
"""Dtypes of quantized tensors: integers that represent other numbers."""

_PIECE = 1 << 20  # elements compared at a time, so that no second copy of a tensor is needed

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def memory(tensor: Any) -> object:
    """Return what tied tensors have in common: storage, offset, shape, stride and dtype. Reads no values."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        return id(tensor)
    with torch._C.DisableTorchFunctionSubclass():
        storage = tensor.untyped_storage()._cdata
        return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def is_strided(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's memory, read by its strides, holds its values directly."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.dtype not in QUANTIZED  # on meta, only the dtype shows it
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between a tensor and the expected one.

    Attributes:
        size: the largest absolute difference; infinite if only one side is NaN or infinite.
        position: the index of that element.
        count: the number of elements that differ.
        text: the difference in words if it can't be measured (another shape), else ``""``.
    """

    size: float = math.inf
    position: tuple[int, ...] = ()
    count: int = 0
    text: str = ""

    def __str__(self) -> str:
        if self.text:
            return self.text
        place = f" at [{', '.join(map(str, self.position))}]" if self.position else ""
        return f"max |Δ| {magnitude(self.size)}{place}" if self.size else f"other bits{place}"


def same_bits(expected: torch.Tensor, actual: torch.Tensor) -> bool:
    """Return whether shape, dtype and bits are the same. NaNs are equal if their bits are."""
    if not (is_strided(expected) and is_strided(actual)):
        return _same_parts(expected, actual)
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    return torch.equal(bits(materialise(expected)), bits(materialise(actual)))


def _same_parts(expected: torch.Tensor, actual: torch.Tensor) -> bool:
    """Return `same_bits` for sparse, nested or quantized tensors."""
    kinds = [(each.layout, each.is_nested, each.is_quantized, each.dtype) for each in (expected, actual)]
    if kinds[0] != kinds[1] or (not expected.is_nested and expected.shape != actual.shape):
        return False
    ours, theirs = _parts(expected), _parts(actual)
    return len(ours) == len(theirs) and all(map(same_bits, ours, theirs))


def difference(
    expected: torch.Tensor, actual: torch.Tensor, tolerance: float | None = None
) -> Difference | None:
    """Return the largest difference between two tensors, or None if there is none.

    Args:
        expected: any tensor.
        actual: any tensor.
        tolerance: the largest absolute difference that is ignored. None: dtypes and bits must be the same,
            including the signs of zeros and the bits of NaNs.
    """
    if expected is actual and tolerance is None:  # without reading it from disk
        return None
    if not (is_strided(expected) and is_strided(actual)):
        return None if _same_parts(expected, actual) else Difference(text="other values or another layout")
    if expected.shape != actual.shape:
        return Difference(text=f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if tolerance is None and expected.dtype != actual.dtype:
        return Difference(text=f"{_name(actual)} instead of {_name(expected)}")
    expected, actual = materialise(expected), materialise(actual)
    if tolerance is None and same_bits(expected, actual):
        return None
    worst, place, count = -1.0, 0, 0
    sides = zip(
        torch.split(expected.reshape(-1), _PIECE), torch.split(actual.reshape(-1), _PIECE), strict=True
    )
    for index, (left, right) in enumerate(sides):
        left, right = left.detach().cpu(), right.detach().cpu()
        apart = _distance(left, right)
        beyond = (
            apart > tolerance
            if tolerance is not None
            else (bits(left) != bits(right)).reshape(left.numel(), -1).any(1)
        )
        count += int(beyond.sum())
        if beyond.any():
            apart = torch.where(beyond, apart, -1.0)
            here = int(apart.argmax())
            if float(apart[here]) > worst:
                worst, place = float(apart[here]), index * _PIECE + here
    if count == 0:
        return None
    position = tuple(int(index) for index in torch.unravel_index(torch.tensor(place), expected.shape))
    return Difference(worst, position, count)


def magnitude(size: float) -> str:
    """Return a size with two significant digits: ``0.61``, ``1.9e-06``."""
    return f"{size:.2g}"


def _distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return absolute differences in float64: 0 for two NaNs, infinite for a single one."""
    if left.dtype == right.dtype == getattr(torch, "float4_e2m1fn_x2", None):  # torch can't convert it
        left, right = left.view(torch.uint8), right.view(torch.uint8)
    wide = torch.complex128 if left.is_complex() or right.is_complex() else torch.float64
    left, right = left.to(wide), right.to(wide)
    apart = (left - right).abs()
    alike = (left == right) | (left.isnan() & right.isnan())
    return torch.where(alike, 0.0, apart).nan_to_num(nan=math.inf, posinf=math.inf)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits as integers, because as floats ``nan != nan`` and ``0.0 == -0.0``."""
    tensor = tensor.detach().cpu().contiguous().reshape(-1)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_INTEGERS[tensor.element_size()])


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that store a tensor: for a strided one, itself."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr(), *_quantizer(tensor)]
    if tensor.layout is torch.sparse_coo:
        merged = tensor.coalesce()
        return [merged.indices(), merged.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def _quantizer(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())], dtype=torch.float64)]
    return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
