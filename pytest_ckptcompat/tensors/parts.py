"""The plain tensors that hold the numbers of one that is sparse, nested or quantized."""

from __future__ import annotations

import torch

QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})
"""Dtypes of integers that stand for other numbers."""


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie in its own memory, by strides, and mean what they are."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.dtype not in QUANTIZED  # on meta, nothing else tells
    )


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Take a tensor apart: equal tensors have equal parts.

    Args:
        tensor: of any layout; a strided one is its only part.
    """
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
