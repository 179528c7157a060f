"""Find rows and columns of a model's tensors in the tensors of a checkpoint.

A fused, split, stacked or reordered tensor shares whole lines (rows or columns) with the tensors that it was
made of. Lines are looked up by a hash of a few elements, and then compared bit for bit.
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

    from .same_values import Conversion

    Kind = tuple[int, torch.dtype]
    """The length and the dtype of lines."""

_LEAST = 4  # elements of a line; shorter lines would match anywhere
_HASHED = 8  # elements of a line that the hash covers
_MOST_LINES = 64  # the most lines that a vector is split into, unless they have the size of a head
_SAMPLED = 32  # lines that are tried before all of them are looked for
_HEADS = (16, 32, 64, 128)
_BASE = 0x9E3779B97F4A7C15  # an arbitrary odd number
_PIECE = 16 << 20  # bytes of lines compared at a time


@dataclass
class Cut:
    """A tensor of the model cut into lines of one length, with those that were found.

    Attributes:
        name: the name of the tensor.
        lines: shape (number, length); a view if possible.
        found: which lines were found.
        sources: the checkpoint's keys in which they were found.
    """

    name: str
    lines: torch.Tensor
    found: torch.Tensor
    sources: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all lines were found, except constant ones."""
        return all(map(constant, self.lines.index_select(0, (~self.found).nonzero().flatten())))


class Lines:
    """The lines of a model's tensors, to look up in the checkpoint's tensors one after the other."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._cuts: dict[Kind, list[Cut]] = {}
        for name, tensor in tensors.items():
            if plain(tensor):
                for lines in _cuts(tensor.detach()):
                    cut = Cut(name, lines, torch.zeros(len(lines), dtype=torch.bool))
                    self._cuts.setdefault((lines.shape[1], lines.dtype), []).append(cut)
        self._hashes: dict[Kind, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def fits(self, value: torch.Tensor) -> bool:
        """Return whether a tensor's shape allows lines of a length that is looked for."""
        lengths = {length for length, _ in self._cuts}
        return any(cut.shape[1] in lengths for cut in _cuts(torch.empty(value.shape, device="meta")))

    def look_in(self, key: str, value: torch.Tensor, *, thoroughly: bool = True) -> bool:
        """Note which lines a tensor of the checkpoint has; return whether any is not constant.

        `thoroughly`: look for every line, even if a sample of them finds nothing, and for shorter lines, even
        if all longer ones are found.
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

    def found(self) -> Iterator[Cut]:
        """Yield the cuts of which lines were found."""
        for cuts in self._cuts.values():
            yield from (cut for cut in cuts if cut.sources)

    def _likely(self, kind: Kind, theirs: torch.Tensor, conversion: Conversion) -> bool:
        """Return whether a line of a tensor is among those looked for; of many lines, a sample decides."""
        step = 1 if len(theirs) > len(self._hashed(kind)[0]) else -(-len(theirs) // _SAMPLED)
        return bool(self._known(kind, _hash(theirs[::step], conversion)).any())

    def _known(self, kind: Kind, wanted: torch.Tensor) -> torch.Tensor:
        hashes = self._hashed(kind)[0]
        nearest = torch.searchsorted(hashes, wanted).clamp_(max=len(hashes) - 1)
        return hashes[nearest] == wanted

    def _matched(
        self,
        kind: Kind,
        key: str,
        theirs: torch.Tensor,
        conversion: Conversion,
    ) -> tuple[bool, bool]:
        """Note lines that are found; return whether any is not constant, and whether all are found."""
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
        if int(count.max()) > 1:  # the model has some lines several times
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

    def _hashed(self, kind: Kind) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return sorted hashes of a kind's lines, where each stands, and where each tensor's lines end."""
        if kind not in self._hashes:
            hashes = [_hash(cut.lines, (kind[1],)) for cut in self._cuts[kind]]
            ends = torch.tensor([len(each) for each in hashes]).cumsum(0)
            self._hashes[kind] = (*torch.cat(hashes).sort(stable=True), ends)
        return self._hashes[kind]


def _cuts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor as lines, (number, length), in every way that fusing, splitting and stacking allow."""
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


def _hash(lines: torch.Tensor, conversion: Conversion) -> torch.Tensor:
    few = converted(lines.index_select(1, _places(lines.shape[1]).to(lines.device)), conversion)
    numbers = bits(few).to(torch.int64).reshape(len(lines), -1)
    return (numbers * _factors(numbers.shape[1])).sum(1)  # modulo 2 ** 64


@lru_cache
def _places(length: int) -> torch.Tensor:
    """Return the positions of the hashed elements."""
    count = min(length, _HASHED)
    return torch.arange(count) * (length - 1) // max(1, count - 1)


@lru_cache
def _factors(count: int) -> torch.Tensor:
    return torch.tensor([pow(_BASE, power, 1 << 63) for power in range(1, count + 1)])


def _first_of_each(hashes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct hashes, sorted, and the first position of each."""
    ordered, order = hashes.sort(stable=True)
    fresh = torch.ones(len(ordered), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return ordered[fresh], order[fresh]


def _compared(
    cut: Cut,
    key: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    line: torch.Tensor,
    conversion: Conversion,
) -> tuple[bool, bool]:
    """Note lines that are pairwise equal; return whether any is not constant, and whether all are equal."""
    size = max(1, _PIECE // max(1, cut.lines.shape[1] * cut.lines.element_size()))
    told, every = False, True
    for mine, yours in zip(torch.split(ours, size), torch.split(line, size), strict=True):
        left = bits(_picked(cut.lines, mine).cpu()).reshape(len(mine), -1)
        right = bits(converted(_picked(theirs, yours), conversion)).reshape(len(mine), -1)
        whole = torch.equal(left, right)  # much faster than line by line
        same = torch.ones(len(mine), dtype=torch.bool) if whole else (left == right).all(1)
        every = every and bool(same.all())
        if same.any():
            cut.found[mine[same]] = True
            some = left[same][:_SAMPLED]
            if not told and bool((some != some[:, :1]).any()):
                told = True
                if key not in cut.sources:
                    cut.sources.append(key)
    return told, every


def _picked(lines: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return some of the lines, as a view if they are consecutive."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last - first + 1 == len(numbers) and torch.equal(numbers, torch.arange(first, last + 1)):
        return lines[first : last + 1]
    return lines.index_select(0, numbers.to(lines.device))
