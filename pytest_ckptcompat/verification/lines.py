"""Rows and columns of a model's tensors, found again among those of a checkpoint's.

A fused, split, stacked or reordered tensor shares whole lines with the tensors that it was made of. Lines are
looked up by a hash of a few elements, and compared bit for bit before they count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import torch

from pytest_ckptcompat.tensors.difference import bits

from .same_values import constant, conversions, converted, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LEAST = 4  # elements of a line: fewer are found anywhere
_HASHED = 8  # elements of a line that are looked at before all of them are
_MOST_LINES = 64  # a vector is split into at most so many lines, or into lines of the sizes that heads have
_SAMPLED = 32  # lines that tell whether looking for all of them is worth while
_HEADS = (16, 32, 64, 128)
_BASE = 0x9E3779B97F4A7C15  # an odd number without a pattern
_PIECE = 16 << 20  # bytes of lines compared at a time


@dataclass
class _Cut:
    """A tensor of the model as lines of one length, and which of them were found.

    Attributes:
        name: of the tensor.
        lines: (number, length), a view where that is possible.
        found: whether each was found.
        sources: the checkpoint's keys in which they were.
    """

    name: str
    lines: torch.Tensor
    found: torch.Tensor
    sources: list[str] = field(default_factory=list)


class Lines:
    """The lines of some tensors of a model, looked up in one tensor of the checkpoint after the other."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._cuts: dict[tuple[int, torch.dtype], list[_Cut]] = {}
        for name, tensor in tensors.items():
            if plain(tensor):
                for lines in _cuts(tensor.detach()):
                    cut = _Cut(name, lines, torch.zeros(len(lines), dtype=torch.bool))
                    self._cuts.setdefault((lines.shape[1], lines.dtype), []).append(cut)
        self._hashes: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def fits(self, value: torch.Tensor) -> bool:
        """Whether a tensor of the checkpoint has lines of a length that is looked for; by its shape alone."""
        lengths = {length for length, _ in self._cuts}
        return any(cut.shape[1] in lengths for cut in _cuts(torch.empty(value.shape, device="meta")))

    def look_in(self, key: str, value: torch.Tensor, *, thoroughly: bool = True) -> bool:
        """Note which lines a tensor of the checkpoint has; whether there are any that are not constant.

        Args:
            key: of the checkpoint.
            value: in memory.
            thoroughly: look for every line even where a sample of them finds nothing, and for shorter ones
                even where all are found.
        """
        found = False
        for theirs in _cuts(value) if plain(value) else ():
            whole = False
            for kind in self._cuts:
                if kind[0] == theirs.shape[1]:
                    for conversion in conversions(value.dtype, kind[1]):
                        if thoroughly or self._likely(kind, theirs, conversion):
                            told, every = self._matched(kind, key, theirs, conversion)
                            found |= told
                            whole |= told and every
            if whole and not thoroughly:  # shorter lines have nothing to add
                break
        return found

    def complete(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The tensors of which every line was found, but for constant ones; and where."""
        for cuts in self._cuts.values():
            for cut in cuts:
                if cut.sources and all(constant(line) for line in cut.lines[~cut.found]):
                    yield cut.name, tuple(dict.fromkeys(cut.sources))

    def part(self) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
        """The tensors of which some lines were found: name, where, how many, of how many."""
        for cuts in self._cuts.values():
            for cut in cuts:
                if cut.sources:
                    yield cut.name, tuple(dict.fromkeys(cut.sources)), int(cut.found.sum()), len(cut.found)

    def _likely(
        self, kind: tuple[int, torch.dtype], theirs: torch.Tensor, conversion: tuple[torch.dtype, ...]
    ) -> bool:
        """Whether a line of a tensor is among those that are looked for; of many, some tell."""
        step = 1 if len(theirs) > len(self._hashed(kind)[0]) else -(-len(theirs) // _SAMPLED)
        return bool(self._known(kind, _hash(theirs[::step], conversion)).any())

    def _known(self, kind: tuple[int, torch.dtype], wanted: torch.Tensor) -> torch.Tensor:
        hashes = self._hashed(kind)[0]
        nearest = torch.searchsorted(hashes, wanted).clamp_(max=len(hashes) - 1)
        return hashes[nearest] == wanted

    def _matched(
        self,
        kind: tuple[int, torch.dtype],
        key: str,
        theirs: torch.Tensor,
        conversion: tuple[torch.dtype, ...],
    ) -> tuple[bool, bool]:
        """Note the lines that are found; whether any tells something, and whether these are all of theirs."""
        cuts = self._cuts[kind]
        hashes, order, ends = self._hashed(kind)
        wanted = _hash(theirs, conversion)
        known = self._known(kind, wanted)
        if not known.any():
            return False, False
        wanted, line = _first_of_each(wanted[known])
        line = known.nonzero().squeeze(1)[line]
        place = torch.searchsorted(hashes, wanted)
        count = torch.searchsorted(hashes, wanted, right=True) - place
        if int(count.max()) > 1:  # lines that the model has several times
            line = torch.repeat_interleave(line, count)
            place = torch.repeat_interleave(place - count.cumsum(0) + count, count) + torch.arange(len(line))
        place, sorting = order[place].sort()
        line = line[sorting]
        owner = torch.bucketize(place, ends, right=True)
        told, every = False, bool(known.all())
        for number in sorted(set(owner.tolist())):
            cut, his = cuts[number], owner == number
            ours = place[his] - (int(ends[number]) - len(cut.lines))
            tells, same = _compared(cut, key, ours, theirs, line[his], conversion)
            told, every = told or tells, every and same
        return told, every

    def _hashed(self, kind: tuple[int, torch.dtype]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The hashes of all lines of a kind, sorted; where each stands; and where each tensor's lines end."""
        if kind not in self._hashes:
            hashes = [_hash(cut.lines, (kind[1],)) for cut in self._cuts[kind]]
            ends = torch.tensor([len(each) for each in hashes]).cumsum(0)
            self._hashes[kind] = (*torch.cat(hashes).sort(stable=True), ends)
        return self._hashes[kind]


def _cuts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor as lines, (number, length), in every way in which tensors are fused, split and stacked."""
    if tensor.numel() < _LEAST:
        return
    flat = tensor.reshape(1, -1)
    yield flat
    lengths = {prod(tensor.shape[place:]) for place in range(1, tensor.dim())}
    if tensor.dim() == 1:
        size = tensor.numel()
        lengths = {size // parts for parts in range(2, _MOST_LINES + 1) if size % parts == 0}
        lengths |= {head for head in _HEADS if size % head == 0}
    for length in sorted(lengths - {tensor.numel()}, reverse=True):
        if length >= _LEAST:
            yield flat.view(-1, length)
    if tensor.dim() == 2 and tensor.shape[0] >= _LEAST:
        yield tensor.t()


def _hash(lines: torch.Tensor, conversion: tuple[torch.dtype, ...]) -> torch.Tensor:
    few = converted(lines[:, _places(lines.shape[1]).to(lines.device)], conversion)
    numbers = bits(few).to(torch.int64).reshape(len(lines), -1)
    return (numbers * _factors(numbers.shape[1])).sum(1)  # modulo 2 ** 64


@lru_cache
def _places(length: int) -> torch.Tensor:
    """Where the elements stand that are hashed."""
    count = min(length, _HASHED)
    return torch.arange(count) * (length - 1) // max(1, count - 1)


@lru_cache
def _factors(count: int) -> torch.Tensor:
    return torch.tensor([pow(_BASE, power, 1 << 63) for power in range(1, count + 1)])


def _first_of_each(hashes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hashes without repetitions, and where each stands first."""
    ordered, order = hashes.sort(stable=True)
    fresh = torch.ones(len(ordered), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return ordered[fresh], order[fresh]


def _compared(
    cut: _Cut,
    key: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    line: torch.Tensor,
    conversion: tuple[torch.dtype, ...],
) -> tuple[bool, bool]:
    """Compare lines side by side, and note those that are equal.

    Returns:
        Whether one of them tells anything, and whether all are equal.
    """
    size = max(1, _PIECE // max(1, cut.lines.shape[1] * cut.lines.element_size()))
    told, every = False, True
    for mine, yours in zip(torch.split(ours, size), torch.split(line, size), strict=True):
        left = bits(_picked(cut.lines, mine).cpu()).reshape(len(mine), -1)
        right = bits(converted(_picked(theirs, yours), conversion)).reshape(len(mine), -1)
        whole = torch.equal(left, right)  # which is much faster than line by line
        same = torch.ones(len(mine), dtype=torch.bool) if whole else (left == right).all(1)
        every = every and bool(same.all())
        if same.any():
            cut.found[mine[same]] = True
            some = left[same][:_SAMPLED]
            if not told and bool((some != some[:, :1]).any()):
                told = True
                cut.sources.append(key)
    return told, every


def _picked(lines: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Some of the lines; a view where they follow each other."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers) and torch.equal(numbers, torch.arange(first, last + 1)):
        return lines[first : last + 1]
    return lines[numbers.to(lines.device)]
