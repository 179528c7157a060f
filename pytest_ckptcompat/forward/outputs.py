"""What a model gave: its shapes in one line, and whether its values are finite."""

from __future__ import annotations

from typing import Any

import torch

from pytest_ckptcompat.tensors import shown as shape_shown

from .nested import tensors

_SHOWN = 6


def shown(outputs: Any) -> str:
    """``(2, 1), (2, 14) bf16``: the shape of every tensor in `outputs`, its dtype unless it is float32."""
    shapes = [
        shape_shown(
            tuple(tensor.shape),
            "" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch."),
        )
        for _, tensor in tensors(outputs)
    ]
    if not shapes:
        return f"no tensors, {type(outputs).__name__}"
    more = f", and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
    return ", ".join(shapes[:_SHOWN]) + more


def not_finite(outputs: Any) -> str:
    """What is not finite among the outputs, in one sentence, or ``""``."""
    for path, tensor in tensors(outputs):
        bad = bad_values(tensor)
        if bad:
            return f"output{path}: {bad} of {tensor.numel()} values are NaN or infinite"
    return ""


def bad_values(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite; 0 for tensors that hold no such thing, or no values at all."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return 0
    if tensor.is_nested or tensor.layout != torch.strided:
        tensor = _stored(tensor)
    if tensor.itemsize == 1:  # float8 has no isfinite
        tensor = tensor.float()
    return int(tensor.numel() - torch.isfinite(tensor).sum())


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """The explicit values of a sparse or nested tensor."""
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
