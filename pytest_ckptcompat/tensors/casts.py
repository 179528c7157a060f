"""Which conversions between dtypes lose values."""

from __future__ import annotations

from functools import cache

import torch

from .difference import QUANTIZED


def loses(source: torch.dtype, target: torch.dtype) -> bool:
    """Return whether any value of dtype `source` changes when it is converted to `target`."""
    if source == target or {source, target} & QUANTIZED:
        return False
    if source.is_complex or target.is_complex:
        return not target.is_complex or loses(
            source.to_real(), target.to_real() if target.is_complex else target
        )
    if target == torch.bool:
        return True
    if source == torch.bool:
        return False
    if source.is_floating_point:
        return not target.is_floating_point or _floats_change(source, target)
    integers = torch.iinfo(source)
    if target.is_floating_point:
        # every integer up to 2 / eps is exact in a binary float
        return max(integers.max, -integers.min) > 2 / torch.finfo(target).eps
    room = torch.iinfo(target)
    return integers.min < room.min or integers.max > room.max


@cache
def _floats_change(source: torch.dtype, target: torch.dtype) -> bool:
    """Return `loses` for floats. All one- and two-byte values are tried: ``torch.finfo`` is not enough."""
    if source.itemsize > 2:
        return target.itemsize <= source.itemsize
    integers, count = (torch.uint8, 1 << 8) if source.itemsize == 1 else (torch.int16, 1 << 16)
    try:
        values = torch.arange(count).to(integers).view(source).double()
        values = values[values.isfinite()]
        return not torch.equal(values.to(target).double(), values)
    except (RuntimeError, NotImplementedError):  # packed formats can't be converted
        return True
