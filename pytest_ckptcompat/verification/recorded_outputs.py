"""Record a model's outputs in a few numbers, enough to tell later whether it still gives the same."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.tensors import synthetic

from .function import tolerance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_KEPT = 32
_SURE = 8.0
"""A sum of n errors with random signs exceeds this multiple of their root sum of squares once in 10**14."""
_EXTREME = 1e6
"""Elements this many times larger than a typical one, such as those of a mask, are only counted."""
_SAMPLE = 1 << 16
_WIDTH = 1 << 12


@dataclass(frozen=True)
class Recorded:
    """The record of one output.

    Attributes:
        shape: the shape.
        typical: the absolute value that most elements exceed.
        rms: the root mean square of the elements that are not extreme.
        extreme: how many elements are infinite or far larger than a typical one.
        entries: some of the elements, at the `positions` for its name and shape.
        projections: sums of the elements with random signs.
    """

    shape: tuple[int, ...]
    typical: float
    rms: float
    extreme: int
    entries: tuple[float, ...]
    projections: tuple[float, ...]

    @classmethod
    def of(cls, path: str, tensor: torch.Tensor) -> Recorded | None:
        """Record a tensor; return None if it holds a NaN, which can't be compared."""
        flat = _real(tensor)
        if bool(flat.isnan().any()):
            return None
        typical = _typical(flat)
        extreme = _extreme(flat, typical)
        rest = torch.where(extreme, 0.0, flat)
        shape = tuple(tensor.shape)
        return cls(
            shape,
            typical,
            float(torch.linalg.vector_norm(rest)) / math.sqrt(max(1, len(flat))),
            int(extreme.sum()),
            tuple(flat[positions(path, shape, len(flat))].tolist()),
            tuple(_projections(path, shape, rest)),
        )

    @classmethod
    def from_json(cls, row: Any) -> Recorded:
        """Read the result of `to_json`.

        Raises:
            ValueError: `row` has another form.
        """
        try:
            found = cls(
                tuple(int(size) for size in row["shape"]),
                float(row["typical"]),
                float(row["rms"]),
                int(row["extreme"]),
                tuple(map(_number, row["entries"])),
                tuple(map(float, row["projections"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("an output is not recorded as outputs are") from None
        count = math.prod(found.shape)
        if not all(map(math.isfinite, (found.typical, found.rms, *found.projections))) or found.typical <= 0:
            raise ValueError("an output has sizes that are not positive numbers")
        counts = len(found.entries), len(found.projections)
        if min(found.shape, default=0) < 0 or counts not in (_counts(count), _counts(2 * count)):
            raise ValueError("an output has more or fewer entries than its shape tells")
        return found

    def scale(self, precision: torch.dtype) -> float:
        """Return the scale for errors of small elements: the size of the sums that they come from."""
        wide = torch.finfo(precision).eps <= torch.finfo(torch.float64).eps
        return self.typical if wide else max(self.typical, self.rms)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; infinite elements become texts."""
        return asdict(self) | {
            "entries": [each if math.isfinite(each) else str(each) for each in self.entries]
        }


@dataclass(frozen=True)
class Gap:
    """The difference between an output and its record.

    Attributes:
        path: the path of the output.
        times: the difference in multiples of the allowed one; above 1 the function has changed.
        size: the largest difference seen, or the root mean square difference if that is larger.
        rms: the root mean square of the recorded values.
        text: the difference if it is not a number, else ``""``.
    """

    path: str
    times: float
    size: float
    rms: float
    text: str = ""

    def __str__(self) -> str:
        if self.text:
            return f"output{self.path} {self.text}"
        return f"output{self.path} differs by {self.size:.2g} (its values are about {self.rms:.2g})"


def gap(
    path: str,
    then: Recorded,
    now: torch.Tensor,
    precision: torch.dtype,
    free: torch.Tensor | None = None,
) -> Gap | None:
    """Return the gap between a tensor and a record of the same shape; None if there is nothing to compare.

    Args:
        path: the path of the output.
        then: the record.
        now: the present output.
        precision: the coarsest dtype involved.
        free: True for elements that may differ. Of the others, only recorded ones are compared.
    """
    allowed, flat = tolerance(precision), _real(now)
    if _counts(len(flat)) != (len(then.entries), len(then.projections)):
        text = "is complex, and was not" if now.is_complex() else "was complex, and is not"
        return Gap(path, math.inf, math.inf, then.rms, text)
    place = positions(path, then.shape, len(flat))
    entries = list(zip(then.entries, flat[place].tolist(), strict=True))
    if free is not None:
        may = free.reshape(-1).repeat_interleave(len(flat) // max(1, free.numel()))[place].tolist()
        entries = [each for each, skipped in zip(entries, may, strict=True) if not skipped]
        times, size = _entries_apart(entries, then.scale(precision), allowed)
        return Gap(path, times, size, then.rms) if entries else None
    if bool(flat.isnan().any()):
        return Gap(path, math.inf, math.inf, then.rms, "is NaN in places, and was not")
    extreme = _extreme(flat, then.typical)
    if (count := int(extreme.sum())) != then.extreme:
        text = f"has {count} infinite or extreme values, and had {then.extreme}"
        return Gap(path, math.inf, math.inf, then.rms, text)
    times, size = _entries_apart(entries, then.scale(precision), allowed)
    sums = _projections(path, then.shape, torch.where(extreme, 0.0, flat))
    apart = [abs(was - here) for was, here in zip(then.projections, sums, strict=True)]
    if apart:
        root = math.sqrt(len(flat))
        # Each error is relative to its element and to a typical one, so their squares add up to this.
        spread = allowed * math.hypot(then.rms, then.scale(precision)) * root
        times = max(times, max(apart) / (_SURE * spread))
        size = max(size, math.sqrt(sum(each * each for each in apart) / len(apart)) / root)
    return Gap(path, times, size, then.rms)


def _counts(numbers: int) -> tuple[int, int]:
    """Return how many entries and projections an output of so many numbers has."""
    return min(numbers, _KEPT), _KEPT if numbers > _KEPT else 0


def positions(path: str, shape: Sequence[int], count: int) -> torch.Tensor:
    """Choose the elements to record: all if they are few, else some that depend on name and shape."""
    if count <= _KEPT:
        return torch.arange(count)
    return synthetic.integers(f"entries {path} {tuple(shape)}", (_KEPT,), count)


def _entries_apart(
    pairs: Iterable[tuple[float, float]], typical: float, allowed: float
) -> tuple[float, float]:
    times = size = 0.0
    for was, here in pairs:
        if was == here:  # also if both are infinite
            continue
        apart = abs(was - here)
        if not math.isfinite(apart):
            return math.inf, math.inf
        times = max(times, apart / (allowed * (abs(was) + typical)))
        size = max(size, apart)
    return times, size


def _projections(path: str, shape: Sequence[int], flat: torch.Tensor) -> list[float]:
    """Return sums of all elements with 32 choices of signs; each sign is a row's times a column's.

    The list is empty if every element is recorded anyway.
    """
    if len(flat) <= _KEPT:
        return []
    width = min(len(flat), _WIDTH)
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % width)).reshape(-1, width)
    across = _signs(f"columns {path} {tuple(shape)}", width)
    down = _signs(f"rows {path} {tuple(shape)}", len(rows))
    return rows.matmul(across).mul_(down).sum(0).tolist()


def _signs(name: str, count: int) -> torch.Tensor:
    """Return random signs, (count, 32)."""
    drawn = synthetic.integers(name, (count, 2), 1 << 16)
    bits = (drawn[:, :, None] >> torch.arange(_KEPT // 2)) & 1
    return bits.reshape(count, _KEPT).double().mul_(2).sub_(1)


def _typical(flat: torch.Tensor) -> float:
    """Return the absolute value that 90 % of nonzero elements exceed; 1 if all are zero."""
    sample = flat[:: max(1, len(flat) // _SAMPLE)].abs()
    sample = sample[(sample > 0) & sample.isfinite()]
    return float(sample.kthvalue(1 + len(sample) // 10).values) if len(sample) else 1.0


def _extreme(flat: torch.Tensor, typical: float) -> torch.Tensor:
    return ~(flat.abs() <= _EXTREME * typical)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.double().reshape(-1)


def _number(entry: Any) -> float:
    return float(entry) if isinstance(entry, (int, float, str)) else math.nan
