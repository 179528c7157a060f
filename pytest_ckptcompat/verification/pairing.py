"""Pair outputs of the old and the new model, and find the old part of each new output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.tensors.difference import Difference, difference

from .regions import pairings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from .reach import Reach
    from .regions import Rows
    from .run_copies import Outputs


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
    exact: bool = True
    gaps: list[Gap] = field(default_factory=list)

    def counts(self, size: int) -> bool:
        """Return whether a dimension of the old output, except the first (samples), has that size."""
        return size in self.old_shape[1:]

    def is_renumbered(self, rows: Rows) -> bool:
        """Return whether entries that both outputs have are in other places."""
        if (dim := self.way.moved) is None:
            return False
        kept, now = rows[self.old_shape[dim], self.new_shape[dim]]
        return kept != now

    @property
    def worst(self) -> Gap:
        """The gap with the largest `times`; up to 1 is allowed."""
        return max(self.gaps, key=lambda gap: gap.times)


@dataclass(frozen=True)
class Pairing:
    """A pairing of old and new outputs.

    Attributes:
        chosen: old path -> the chosen candidate.
        alone: old paths with no counterpart, or with several that the shapes allow.
    """

    chosen: Mapping[str, Candidate]
    alone: tuple[str, ...]


class Comparing:
    """Two models' outputs side by side.

    Attributes:
        old: the old model's outputs.
        new: the new model's outputs.
        modes: the modes that are compared.
        rows: where the rows of a dimension went.
        allowed: the tolerated difference, relative to the output's largest value.
    """

    def __init__(self, old: Outputs, new: Outputs, modes: list[str], rows: Rows, allowed: float) -> None:
        self.old, self.new, self.modes, self.rows, self.allowed = old, new, modes, rows, allowed

    def paired(self) -> Pairing:
        """Pair every old output with a new one, by name, or by shape if that leaves one way.

        The same way is taken in all batches. Among several ways, those that agree win: two outputs do not
        agree by accident.
        """
        first = self.modes[0]
        before, after = list(self.old.modes[first][0]), list(self.new.modes[first][0])
        chosen: dict[str, Candidate] = {}
        for path in before:
            if path in after and (ways := self._measured(path, [path])):
                chosen[path] = min(ways, key=lambda each: each.worst.times)
        while left := [path for path in before if path not in chosen]:
            taken = {candidate.way.path for candidate in chosen.values()}
            free = [path for path in after if path not in taken]
            found = _next({path: self._measured(path, free) for path in left})
            if found is None:
                return Pairing(chosen, tuple(left))
            chosen[found.gaps[0].path] = found
        return Pairing(chosen, ())

    def outside(self, pairing: Pairing, reach: Reach) -> list[Gap]:
        """Return the gaps of a pairing, without everything in reach of a step."""
        return [
            gap
            for path, candidate in pairing.chosen.items()
            for each in self._measured(path, [candidate.way.path], reach)
            if each.way == candidate.way
            for gap in each.gaps
        ]

    def _measured(self, path: str, others: list[str], reach: Reach | None = None) -> list[Candidate]:
        """Return the ways in which an old output fits into new ones, in all batches."""
        found: dict[Way, Candidate] = {}
        count = 0
        for mode in self.modes:
            for batch, (before, after) in enumerate(
                zip(self.old.modes[mode], self.new.modes[mode], strict=True)
            ):
                if path not in before:
                    continue
                count += 1
                # Statistics of a small batch amplify rounding.
                limit = self.allowed * (10 if mode == "train" else 1)
                for way, was, now in _places(path, others, before, after, self.rows):
                    if reach is not None:
                        now = reach.excused(mode, batch, before[path], *way, was, now, self.rows)
                    shapes = before[path].shape, after[way.path].shape
                    candidate = found.setdefault(way, Candidate(way, *shapes))
                    candidate.exact &= shapes[0] == shapes[1]
                    candidate.gaps.append(Gap(*_apart(was, now, limit), path, batch, mode))
        return [each for each in found.values() if len(each.gaps) == count]


def _next(ways: Mapping[str, list[Candidate]]) -> Candidate | None:
    """Return a certain pairing: of outputs that agree, or of two that fit only each other.

    Outputs of the same shape are tried before larger ones.
    """
    for candidates in ways.values():
        if agreeing := [each for each in candidates if each.worst.times <= 1]:
            return agreeing[0]
    for exact in (True, False):
        fitting = {
            path: {each.way.path for each in candidates if each.exact or not exact}
            for path, candidates in ways.items()
        }
        for path, others in fitting.items():
            if len(others) == 1 and sum(others <= each for each in fitting.values()) == 1:
                return min(
                    (each for each in ways[path] if each.way.path in others),
                    key=lambda each: each.worst.times,
                )
    return None


def _places(
    path: str,
    others: list[str],
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    rows: Rows,
) -> Iterator[tuple[Way, torch.Tensor, torch.Tensor]]:
    """Yield every way of placing an old output in new ones, with both sides."""
    expected = before[path]
    if expected.numel() == 0:
        return
    for other in others:
        if other in after:
            for moved, was, now in pairings(expected, after[other], rows):
                yield Way(other, moved), was, now


def _apart(expected: torch.Tensor, actual: torch.Tensor, allowed: float) -> tuple[float, Difference, float]:
    """Return the difference in multiples of the allowed one, the difference, and the largest value."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    apart = difference(expected, actual, 0.0) or Difference(0.0)
    # An output of only zeros still has the rounding of what went into it.
    least = 1e-5 if allowed <= 1e-8 else 1e-3
    return apart.size / (allowed * max(scale, least)), apart, scale
