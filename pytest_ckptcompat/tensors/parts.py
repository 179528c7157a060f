"""The plain tensors that store a sparse, nested or quantized tensor."""

from __future__ import annotations

import torch

QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})
"""Dtypes of quantized tensors: integers that represent other numbers."""


def is_strided(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's memory, read by its strides, holds its values directly."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        and tensor.dtype not in QUANTIZED  # on meta, only the dtype shows it
    )


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that store a tensor. Equal tensors have equal parts.

    Args:
        tensor: a tensor of any layout. A strided one is its only part.
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
