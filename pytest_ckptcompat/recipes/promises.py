"""Compare tensors with what an operator promised, and report the first difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import difference

if TYPE_CHECKING:
    from collections.abc import Iterator


_PIECE = 1 << 20


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield matching pieces of tensors of one shape, so that wide copies of them stay small."""
    yield from zip(*(torch.split(tensor.reshape(-1), _PIECE) for tensor in tensors), strict=True)


def differing(
    key: str, expected: torch.Tensor, actual: torch.Tensor, tolerance: float | None = None
) -> Iterator[str]:
    """Yield the fault of a tensor that is not as expected: bit for bit, unless there is a tolerance."""
    apart = difference(expected, actual, tolerance)
    if apart is not None:
        yield f"{escape(key)}: {apart}"
