"""Compare grown rows with what an operator promised, and tell the first difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.difference import difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .plan import State

_PIECE = 1 << 20


def grown(before: State, after: State, dim: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The keys that have more rows along `dim` than they had, with the tensor before and after."""
    for key, old in before.items():
        new = after.get(key)
        if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor) or old.dim() != new.dim():
            continue
        if -old.dim() <= dim < old.dim() and new.shape[dim] > old.shape[dim]:
            yield key, old, new


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape side by side, some elements at a time, so that wide copies of them stay small."""
    yield from zip(*(torch.split(tensor.reshape(-1), _PIECE) for tensor in tensors), strict=True)


def differing(
    key: str, expected: torch.Tensor, actual: torch.Tensor, tolerance: float | None = None
) -> Iterator[str]:
    """The fault of a tensor that is not as expected, bit for bit unless there is a tolerance."""
    apart = difference(expected, actual, tolerance)
    if apart is not None:
        yield f"{escape(key)}: {apart}"


def old_rows_kept(operator: object, before: State, after: State, dim: int) -> Claim:
    """The rows that were there are there still, at their old places, bit for bit."""
    count = 0

    def faults() -> Iterator[str]:
        nonlocal count
        for key, old, new in grown(before, after, dim):
            count += 1
            yield from differing(key, old, new.narrow(dim, 0, old.shape[dim]))

    return Claim.of(f"{operator}: old rows kept", faults, lambda: f"bit-equal in {count} tensors")
