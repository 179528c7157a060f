"""Compare the outputs of a model on two devices, within tolerances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.core.tensor_spec import shown as shape_shown
from pytest_ckptcompat.tensors.difference import is_strided
from pytest_ckptcompat.tensors.finite import count_not_finite
from pytest_ckptcompat.tensors.nested import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""The largest relative error (L2) for the coarsest dtype involved. float32 counts as TF32 (10 bits of
mantissa), which torch uses in convolutions by default."""

_FLOOR = 1e-3
"""The smallest root mean square by which errors are divided, because values that cancel out leave noise."""

_SHOWN = 6


class Gap(NamedTuple):
    """The output with the largest error: its path, relative error and tolerance."""

    path: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def gap(expected: Any, actual: Any, dtypes: Iterable[torch.dtype] = ()) -> Gap | None:
    """Return the output with the largest error, relative to its tolerance, of one model on two devices.

    `dtypes` are others that were involved, such as those of the parameters. The result is None if nothing can
    be compared: there are no floating-point outputs, or the shapes differ (shapes that depend on values, such
    as the number of boxes, may differ after a tie).
    """
    left, right = _compared(expected), _compared(actual)
    if not left or left.keys() != right.keys():
        return None
    if any(tensor.shape != right[path].shape for path, tensor in left.items()):
        return None
    involved = set(dtypes)
    gaps = [
        Gap(path, _error(tensor, right[path]), tolerance(involved | {tensor.dtype, right[path].dtype}))
        for path, tensor in left.items()
    ]
    return max(gaps, key=lambda gap: gap.error / gap.tolerance)


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """Return the tolerance for the coarsest of these dtypes; 0.25 for dtypes coarser than bfloat16."""
    floating = [dtype.to_real() if dtype.is_complex else dtype for dtype in dtypes]
    return max((TOLERANCES.get(dtype, 0.25) for dtype in floating if dtype.is_floating_point), default=0.0)


def _compared(outputs: Any) -> dict[str, torch.Tensor]:
    """Return the outputs that can be compared by their path."""
    return {
        path: tensor
        for path, tensor in tensors(outputs)
        if is_strided(tensor) and (tensor.is_floating_point() or tensor.is_complex())
    }


def _error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() or actual.is_complex() else torch.float64
    expected, actual = expected.detach().cpu().to(wide), actual.detach().cpu().to(wide)
    scale = max(_rms(expected), _FLOOR)
    return _rms(actual - expected) / scale


def _rms(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel())


def shown(outputs: Any) -> str:
    """List shapes of the tensors in `outputs`, with dtypes except float32: ``(2, 1), (2, 14) bf16``."""
    shapes = [_shape(tensor) for _, tensor in tensors(outputs)]
    if not shapes:
        return f"no tensors, {type(outputs).__name__}"
    more = f", and {len(shapes) - _SHOWN} more" if len(shapes) > _SHOWN else ""
    return ", ".join(shapes[:_SHOWN]) + more


def _shape(tensor: torch.Tensor) -> str:
    if tensor.is_nested:  # torch raises if it is asked for the shape
        return "nested"
    return shape_shown(tuple(tensor.shape), "" if tensor.dtype == torch.float32 else str(tensor.dtype))


def not_finite(outputs: Any) -> str:
    """Return which output is not finite, in one sentence, or ``""``."""
    for path, tensor in tensors(outputs):
        if bad := bad_values(tensor):
            return f"output{path}: {bad} of {tensor.numel()} values are NaN or infinite"
    return ""


def bad_values(tensor: torch.Tensor) -> int:
    """Return the number of values that are NaN or infinite; 0 for meta tensors."""
    return 0 if tensor.is_meta else count_not_finite(tensor)
