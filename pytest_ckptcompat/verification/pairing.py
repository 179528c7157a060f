"""Pair outputs of the old and the new model, and find the old part of each new output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from pytest_ckptcompat.tensors.difference import Difference, difference

from .regions import put_back, ways

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .regions import Rows
    from .run_copies import Batches


class Way(NamedTuple):
    """A place where an old output may be: a new output, and the dimension whose rows have moved."""

    path: str
    moved: int | None


class Gap(NamedTuple):
    """The difference of an output, also in multiples of the allowed one."""

    times: float
    apart: Difference
    scale: float
    path: str
    batch: int
    mode: str


@dataclass
class Candidate:
    """One way of pairing an old output, and the gaps that it leaves on all batches."""

    way: Way
    old_shape: torch.Size
    new_shape: torch.Size
    gaps: list[Gap] = field(default_factory=list)

    @property
    def worst(self) -> Gap:
        """The gap with the largest `times`; up to 1 is allowed."""
        return max(self.gaps, key=lambda gap: gap.times)


class Pairing:
    """Two models' outputs side by side, each old one paired with a new one.

    Outputs are paired by name, or by shape if that leaves one way. The same way is taken in all batches.
    Among several ways, those that agree win: two outputs do not agree by accident.

    Attributes:
        chosen: old path -> the chosen candidate.
        alone: old paths with no counterpart, or with several that the shapes allow.
    """

    def __init__(self, old: Batches, new: Batches, rows: Rows, allowed: float) -> None:
        """Pair outputs on the same batches; `allowed` is relative to an output's largest value."""
        self._old, self._new, self._rows, self._allowed = old, new, rows, allowed
        self.chosen: dict[str, Candidate] = {}
        first = next(iter(old))
        for path in old[first]:
            if candidates := self._measured(path, [path]):
                self.chosen[path] = min(candidates, key=lambda each: each.worst.times)
        while left := [path for path in old[first] if path not in self.chosen]:
            taken = {candidate.way.path for candidate in self.chosen.values()}
            free = [path for path in new[first] if path not in taken]
            found = _next({path: self._measured(path, free) for path in left})
            if found is None:
                break
            self.chosen[found.worst.path] = found
        self.alone = tuple(left)

    @property
    def gaps(self) -> list[Gap]:
        """The gaps between all paired outputs."""
        return [gap for candidate in self.chosen.values() for gap in candidate.gaps]

    def is_renumbered(self, candidate: Candidate) -> bool:
        """Return whether entries that both outputs have are in other places."""
        if (dim := candidate.way.moved) is None:
            return False
        kept, now = self._rows[candidate.old_shape[dim], candidate.new_shape[dim]]
        return kept != now

    def outside(self, reach: Sequence[Mapping[str, torch.Tensor]]) -> list[Gap]:
        """Return the gaps without everything in reach: for each batch, new path -> mask of its elements."""
        return [
            gap
            for path, candidate in self.chosen.items()
            for each in self._measured(path, [candidate.way.path], reach)
            if each.way == candidate.way
            for gap in each.gaps
        ]

    def _measured(
        self, path: str, others: list[str], reach: Sequence[Mapping[str, torch.Tensor]] = ()
    ) -> list[Candidate]:
        """Return the ways in which an old output fits into new ones, in all batches."""
        found: dict[Way, Candidate] = {}
        count = 0
        for number, ((mode, batch), outputs) in enumerate(self._old.items()):
            if (before := outputs.get(path)) is None:
                continue
            count += 1
            # Statistics of a small batch amplify rounding.
            limit = self._allowed * (10 if mode == "train" else 1)
            after = self._new[mode, batch]
            for way in _ways(before, others, after, self._rows):
                now = put_back(way.moved, after[way.path], before, self._rows)
                if reach:
                    excused = reach[number][way.path]
                    excused = put_back(
                        way.moved, excused, torch.zeros_like(before, dtype=torch.bool), self._rows
                    )
                    now = torch.where(excused, before, now)
                candidate = found.setdefault(way, Candidate(way, before.shape, after[way.path].shape))
                candidate.gaps.append(Gap(*_apart(before, now, limit), path, batch, mode))
        return [each for each in found.values() if len(each.gaps) == count]


def _next(candidates: Mapping[str, list[Candidate]]) -> Candidate | None:
    """Return a certain pairing: of outputs that agree, or of two that fit only each other.

    Outputs of the same shape are tried before larger ones.
    """
    for each in (each for several in candidates.values() for each in several):
        if each.worst.times <= 1:
            return each
    for exact in (True, False):
        fitting = {
            path: {each.way.path for each in several if not exact or each.old_shape == each.new_shape}
            for path, several in candidates.items()
        }
        for path, others in fitting.items():
            if len(others) == 1 and sum(others <= each for each in fitting.values()) == 1:
                only = (each for each in candidates[path] if each.way.path in others)
                return min(only, key=lambda each: each.worst.times)
    return None


def _ways(
    before: torch.Tensor, others: list[str], after: Mapping[str, torch.Tensor], rows: Rows
) -> Iterator[Way]:
    """Yield every place for an old output among new ones."""
    for other in others if before.numel() else ():
        if other in after:
            yield from (Way(other, moved) for moved in ways(before.shape, after[other].shape, rows))


def _apart(expected: torch.Tensor, actual: torch.Tensor, allowed: float) -> tuple[float, Difference, float]:
    """Return the difference in multiples of the allowed one, the difference, and the largest value."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    apart = difference(expected, actual, 0.0) or Difference(0.0)
    # An output of only zeros still has the rounding of what went into it.
    least = 1e-5 if allowed <= 1e-8 else 1e-3
    return apart.size / (allowed * max(scale, least)), apart, scale
