"""Which output of the new model an output of the old one is, and where in it the old part lies."""

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
    """A place where an old output may be: in which new output, and the dimension whose rows have moved."""

    path: str
    moved: int | None


class Gap(NamedTuple):
    """How far off an output is, and how many times as far as is allowed."""

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
        """Whether the old output has that many entries along a dimension, the one of samples left out."""
        return size in self.old_shape[1:]

    def is_renumbered(self, rows: Rows) -> bool:
        """Whether entries that both outputs have stand in other places."""
        if (dim := self.way.moved) is None:
            return False
        kept, now = rows[self.old_shape[dim], self.new_shape[dim]]
        return kept != now

    @property
    def worst(self) -> Gap:
        """The largest gap; up to 1 is allowed."""
        return max(self.gaps, key=lambda gap: gap.times)


@dataclass(frozen=True)
class Pairing:
    """What was paired.

    Attributes:
        chosen: old path -> the way that was taken.
        alone: old paths that have no counterpart, or of which shapes leave several.
    """

    chosen: Mapping[str, Candidate]
    alone: tuple[str, ...]


class Comparing:
    """Two models' outputs side by side.

    Attributes:
        old: the old model's.
        new: the new model's.
        modes: which of their modes are compared.
        rows: where the rows of a dimension went.
        allowed: the difference, relative to the output's largest value, that is none.
    """

    def __init__(self, old: Outputs, new: Outputs, modes: list[str], rows: Rows, allowed: float) -> None:
        self.old, self.new, self.modes, self.rows, self.allowed = old, new, modes, rows, allowed

    def paired(self) -> Pairing:
        """Pair every old output with a new one: by its name, or else by shape where that leaves one way.

        In all batches the same way is taken. Among several ways those that agree win: two outputs do not
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
        """The gaps of a pairing with all that lies in reach of a step left out."""
        return [
            gap
            for path, candidate in pairing.chosen.items()
            for each in self._measured(path, [candidate.way.path], reach)
            if each.way == candidate.way
            for gap in each.gaps
        ]

    def _measured(self, path: str, others: list[str], reach: Reach | None = None) -> list[Candidate]:
        """The ways in which an old output fits into some new ones, in all batches."""
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
    """A pairing that is sure: of outputs that agree, else of two that alone fit each other.

    Those of one shape are looked at before those of which the new one is larger.
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
    """Every way of placing an old output in new ones, with both sides of it."""
    expected = before[path]
    if expected.numel() == 0:
        return
    for other in others:
        if other in after:
            for moved, was, now in pairings(expected, after[other], rows):
                yield Way(other, moved), was, now


def _apart(expected: torch.Tensor, actual: torch.Tensor, allowed: float) -> tuple[float, Difference, float]:
    """By how many times the allowed difference two outputs differ, their difference, their largest value."""
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    apart = difference(expected, actual, 0.0) or Difference(0.0)
    # An output of zeros alone still has the rounding of what went into it.
    least = 1e-5 if allowed <= 1e-8 else 1e-3
    return apart.size / (allowed * max(scale, least)), apart, scale
