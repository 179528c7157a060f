"""The base classes of operators that make one tensor of several, or several of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.deferred import materialise

from .arguments import python
from .base import Operator
from .globs import filled, stars
from .per_tensor import shape
from .plan import Make, Plan, State, Write, same_for_moments
from .promises import differing
from .rows import joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Regrouping(Operator):
    """An operator that joins tensors, the parts, along a dimension of a whole; or the reverse.

    Attributes:
        new_dimension: whether only the whole has the dimension.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""
    new_dimension: ClassVar[bool] = False

    dim: int
    optim: str

    @property
    def taken(self) -> tuple[str, ...]:
        """The keys or globs of the tensors that go."""
        raise NotImplementedError

    def destination(self, key: str) -> str | None:
        """Return None for a key that goes; its tensor has no single new name."""
        return None if any(stars(pattern, key) is not None for pattern in self.taken) else key

    def checked(self, key: str, state: State, more: int = 0) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            RecipeError: there is no dimension `dim`, even if it has `more` dimensions.
        """
        has = shape(state[key])
        if has is None or not -len(has) - more <= self.dim < len(has) + more:
            raise self.unfit(key, f"it is {shown(has or ())}, with no dimension {self.dim}")
        return has

    def misfits(self, key: str, whole: Any, parts: Sequence[Any]) -> Iterator[str]:
        """Yield faults unless the whole, cut at the parts' sizes, gives the parts."""
        if not all(isinstance(each, torch.Tensor) for each in (whole, *parts)):
            yield f"{escape(key)}: a tensor is not there"
            return
        whole, parts = materialise(whole), [materialise(part) for part in parts]
        parts = [part.unsqueeze(self.dim) if self.new_dimension else part for part in parts]
        sizes = [part.shape[self.dim] for part in parts]
        if sum(sizes) != whole.shape[self.dim]:
            yield f"{escape(key)}: {whole.shape[self.dim]} rows for {sizes}"
            return
        for part, piece in zip(parts, torch.split(whole, sizes, self.dim), strict=True):
            yield from differing(key, part, piece)


class Joining(Regrouping):
    """An operator that makes one tensor of several."""

    to: str

    def groups(self, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the name of each new tensor, and its sources."""
        for key in self.matched(self.taken[0], state):
            values = stars(self.taken[0], key) or ()
            sources = (key, *(filled(pattern, values) for pattern in self.taken[1:]))
            for source in sources:
                if source not in state:
                    raise self.unfit(key, f"there is no {python(source)} beside it")
            yield filled(self.to, values), sources

    def plan(self, state: State, target: State) -> Plan:
        """Plan each new tensor at the place of its first source."""

        def make(*tensors: torch.Tensor) -> torch.Tensor:
            parts = [each.unsqueeze(self.dim) for each in tensors] if self.new_dimension else tensors
            return joined(parts, self.dim)

        moments = same_for_moments(make, self.optim)
        places = {key: place for place, key in enumerate(state)}
        plan: dict[str, list[Write]] = {}
        for name, sources in self.groups(state):
            self.check(name, sources, state, target)
            plan |= {source: [] for source in sources}
            plan[min(sources, key=places.__getitem__)] = [Write(name, sources, make, moments)]
        return plan

    def check(self, name: str, sources: Sequence[str], state: State, target: State) -> None:
        """Require that tensors can be joined.

        Raises:
            RecipeError: shapes or dtypes do not fit together.
        """
        first, dtype = self.checked(sources[0], state, int(self.new_dimension)), state[sources[0]].dtype
        for source in sources[1:]:
            has = self.checked(source, state, int(self.new_dimension))
            alike = has == first if self.new_dimension else _rest(has, self.dim) == _rest(first, self.dim)
            if not alike:
                raise self.unfit(source, f"it is {shown(has)} and {python(sources[0])} is {shown(first)}")
            if state[source].dtype != dtype:
                raise self.unfit(source, f"it has another dtype than {python(sources[0])}: cast one")

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the new tensor, taken apart, gives the old tensors."""

        def faults() -> Iterator[str]:
            for name, sources in self.groups(before):
                yield from self.misfits(name, after.get(name), [before[source] for source in sources])

        how = "slice by slice" if self.new_dimension else "taken apart"
        return [Claim.of(f"{self}: {how}, the old tensors", faults, "bit for bit")]


class Parting(Regrouping):
    """An operator that makes several tensors of one."""

    key: str

    @property
    def taken(self) -> tuple[str, ...]:
        """The key or glob of the tensors that go."""
        return (self.key,)

    def parts(self, key: str, state: State, target: State) -> list[tuple[str, int]]:
        """Return the names of the parts and their sizes, in order."""
        raise NotImplementedError

    def plan(self, state: State, target: State) -> Plan:
        """Plan the parts at the place of the whole."""
        plan: dict[str, list[Write]] = {}
        for key in self.matched(self.key, state):
            start = 0
            plan[key] = []
            for name, size in self.parts(key, state, target):
                make = self._slice(start, size)
                plan[key].append(Write(name, (key,), make, same_for_moments(make, self.optim)))
                start += size
        return plan

    def _slice(self, start: int, size: int) -> Make:
        def make(tensor: torch.Tensor) -> torch.Tensor:
            part = tensor.narrow(self.dim, start, size)
            part = part.squeeze(self.dim) if self.new_dimension else part
            return part.clone(memory_format=torch.contiguous_format)

        return make

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the parts, joined, give the old tensor."""

        def faults() -> Iterator[str]:
            for key in self.matched(self.key, before):
                parts = [after.get(name) for name, _ in self.parts(key, before, target)]
                yield from self.misfits(key, before[key], parts)

        how = "stacked" if self.new_dimension else "joined"
        return [Claim.of(f"{self}: {how}, the old tensor", faults, "bit for bit")]


def _rest(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return all sizes except that of `dim`."""
    dim %= len(sizes)
    return sizes[:dim] + sizes[dim + 1 :]
