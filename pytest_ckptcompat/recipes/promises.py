"""Compare values with what an operator promised, and report the first difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import difference, magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .plan import State

_PIECE = 1 << 20


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield matching pieces of tensors of one shape, so that wide copies of them stay small."""
    yield from zip(*(torch.split(tensor.reshape(-1), _PIECE) for tensor in tensors), strict=True)


def differing(key: str, expected: Any, actual: Any, tolerance: float | None = None) -> Iterator[str]:
    """Yield the fault of a value that is not as expected: bit for bit, unless there is a tolerance.

    Anything but a tensor must be the same object.
    """
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        apart = difference(expected, actual, tolerance)
        if apart is not None:
            yield f"{escape(key)}: {apart}"
    elif expected is not actual:
        yield f"{escape(key)} is another object"


class Computed:
    """Compares computed tensors with exact ones, and notes by how much they are off.

    Attributes:
        worst: the largest absolute difference.
    """

    def __init__(self) -> None:
        self.worst = 0.0

    def __str__(self) -> str:
        return f"max |Δ| {magnitude(self.worst)}"

    def faults(
        self,
        key: str,
        exact: torch.Tensor,
        new: Any,
        scale: torch.Tensor | None = None,
        *,
        ulps: int = 4,
        what: str = "",
    ) -> Iterator[str]:
        """Yield the fault of a tensor that is not the exact one, rounded to its dtype.

        `exact` is in float64 or complex128. The rounding is relative to `scale` of the same shape, or else to
        `exact`, and `ulps` units of it are allowed. `what` tells what wrong elements are not.
        """
        if not isinstance(new, torch.Tensor) or new.shape != exact.shape:
            yield f"{escape(key)}: there is no such tensor of shape {tuple(exact.shape)}"
            return
        info, off, furthest = torch.finfo(new.dtype), 0, 0.0
        for one, other, size in pieces(exact, materialise(new), exact if scale is None else scale):
            found = other.to(one.dtype)
            alike = (found == one) | (found.isnan() & one.isnan())
            apart = torch.where(alike, 0.0, (found - one).abs()).nan_to_num(nan=torch.inf)
            allowed = ulps * info.eps * (size.abs() + info.smallest_normal)
            off += int((~alike & ~(one.isfinite() & (apart <= allowed))).sum())
            furthest = max(furthest, float(apart.max()) if len(apart) else 0.0)
        self.worst = max(self.worst, furthest)
        if off:
            told = f"are not {what}" if what else f"are off by up to {magnitude(furthest)}"
            yield f"{escape(key)}: {off} elements {told}"


def displaced(before: State, after: State, new_name: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the faults of old values that are not unchanged under their new name.

    A name of None promises nothing.
    """
    for key, old in before.items():
        name = new_name(key)
        if name is not None and name not in after:
            yield f"{escape(key)} is gone" if name == key else f"{escape(key)}: there is no {escape(name)}"
        elif name is not None:
            yield from differing(name, old, after[name])
