"""How far the outputs of one model on two devices are apart, and how far they may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.core.tensor_spec import shown as shape_shown
from pytest_ckptcompat.tensors.nested import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest relative error (L2) by the coarsest dtype that took part. float32 counts as TF32, which has 10 bits
of mantissa and which torch lets convolutions use unless told otherwise."""

_FLOOR = 1e-3
"""Outputs whose root mean square is less are compared as if it were this: what cancels out leaves noise."""


class Gap(NamedTuple):
    """The output that disagrees most: its path, relative error and tolerance."""

    path: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def gap(expected: Any, actual: Any, dtypes: Iterable[torch.dtype] = ()) -> Gap | None:
    """The largest disagreement between two structures of outputs.

    Args:
        expected: outputs on the one device.
        actual: outputs on the other.
        dtypes: what else took part in computing them: the parameters' dtypes.

    Returns:
        The worst output, or None where nothing can be compared: no floating-point outputs, or other shapes
        (what depends on values, like the number of boxes left, may differ by a tie).
    """
    left = {path: tensor for path, tensor in tensors(expected) if _compared(tensor)}
    right = {path: tensor for path, tensor in tensors(actual) if _compared(tensor)}
    if not left or {path: t.shape for path, t in left.items()} != {
        path: t.shape for path, t in right.items()
    }:
        return None
    general = tolerance(dtypes)
    gaps = [
        Gap(
            path,
            _error(left[path], right[path]),
            max(general, tolerance((left[path].dtype, right[path].dtype))),
        )
        for path in left
    ]
    return max(gaps, key=lambda gap: gap.error / gap.tolerance)


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """The tolerance of the coarsest of these dtypes; those coarser than bfloat16 are taken as 0.25."""
    floating = [dtype.to_real() if dtype.is_complex else dtype for dtype in dtypes]
    return max((TOLERANCES.get(dtype, 0.25) for dtype in floating if dtype.is_floating_point), default=0.0)


def _compared(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.is_nested
        and (tensor.is_floating_point() or tensor.is_complex())
    )


def _error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() or actual.is_complex() else torch.float64
    expected, actual = expected.detach().cpu().to(wide), actual.detach().cpu().to(wide)
    scale = max(_rms(expected), _FLOOR)
    return _rms(actual - expected) / scale


def _rms(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel())


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
