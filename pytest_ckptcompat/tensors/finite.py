"""Count values that are not finite, piece by piece."""

from __future__ import annotations

import torch

from .deferred import materialise

_PIECE = 1 << 20  # elements checked at a time


def count_not_finite(tensor: torch.Tensor) -> int:
    """Return the number of elements that are NaN or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype in _ALWAYS_FINITE:
        return 0
    tensor = materialise(tensor).detach()
    if tensor.is_nested:
        return sum(map(count_not_finite, tensor.unbind()))
    if tensor.layout is not torch.strided:
        return count_not_finite(
            tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
        )
    count = 0
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        wide = piece.float() if piece.dtype.itemsize == 1 else piece
        count += int((~torch.isfinite(wide)).sum())
    return count


_ALWAYS_FINITE = {getattr(torch, name) for name in ("float4_e2m1fn_x2",) if hasattr(torch, name)}
