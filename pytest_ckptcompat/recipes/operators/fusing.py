"""The operators `concat` and `split`: join tensors, and split them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.recipes.rows import joined
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, repr=False)
class concat(Operator):
    """Concatenate: ``concat(["*.q.weight", "*.k.weight", "*.v.weight"], "*.qkv.weight", dim=0)``.

    Attributes:
        keys: exact keys or globs, in the order in which they are joined; the stars of all stand for the same.
        to: the name of what they make, with as many stars.
        dim: along which they are joined.
        optim: optimizer state: ``copy`` joins it as well, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    keys: tuple[str, ...]
    to: str
    dim: int
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("concat", *self.keys, self.to)

    def plan(self, state: State, target: State) -> Plan:
        def make(*tensors: torch.Tensor) -> torch.Tensor:
            return joined(tensors, self.dim)

        optimizer_transform = (lambda _, *tensors: make(*tensors)) if self.optim == "copy" else None
        places = {key: place for place, key in enumerate(state)}
        plan: dict[str, list[Write]] = {}
        for name, sources in self._groups(state):
            self._hold_together(sources, state)
            first = min(sources, key=places.__getitem__)
            plan |= {source: [] for source in sources} | {
                first: [Write(name, sources, make, optimizer_transform)]
            }
        return plan

    def destination(self, key: str) -> str | None:
        return None if any(stars(pattern, key) is not None for pattern in self.keys) else key

    def _groups(self, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the name of each new tensor, and its sources."""
        for key in self.matched(self.keys[0], state):
            values = stars(self.keys[0], key) or ()
            sources = (key, *(filled(pattern, values) for pattern in self.keys[1:]))
            for source in sources:
                if source not in state:
                    raise self.unfit(key, f"there is no {python(source)} beside it")
            yield filled(self.to, values), sources

    def _hold_together(self, sources: Sequence[str], state: State) -> None:
        first = state[sources[0]]
        for source in sources:
            has = shape(state[source])
            if has is None or not -len(has) <= self.dim < len(has):
                raise self.unfit(source, f"it is {shown(has or ())}, with no dimension {self.dim}")
            if _rest(state[source], self.dim) != _rest(first, self.dim):
                raise self.unfit(
                    source, f"it is {shown(has)} and {python(sources[0])} is {shown(tuple(first.shape))}"
                )
            if state[source].dtype != first.dtype:
                raise self.unfit(source, f"it has another dtype than {python(sources[0])}: cast one")

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the new tensor, split at the old sizes, gives the old tensors."""

        def faults() -> Iterator[str]:
            for name, sources in self._groups(before):
                yield from _taken_apart(name, after.get(name), [before[each] for each in sources], self.dim)

        return [Claim.of(f"{self}: taken apart, the old tensors", faults, "bit for bit")]


@dataclass(frozen=True, repr=False)
class split(Operator):
    """Split a tensor: ``split("*.qkv.weight", ["*.q.weight", "*.k.weight", "*.v.weight"], dim=0)``.

    Attributes:
        key: an exact key or a glob.
        to: the names of the parts, with as many stars.
        dim: along which it is cut.
        sizes: of the parts; the model's if they are left out, or equal ones if it does not have them.
        optim: optimizer state: ``copy`` cuts it as well, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    key: str
    to: tuple[str, ...]
    dim: int
    sizes: tuple[int, ...] | None = None
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("split", self.key, *self.to)

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        for key in self.matched(self.key, state):
            names, sizes = self._parts(key, state, target)
            starts = accumulate(sizes, initial=0)
            plan[key] = [
                Write(name, (key,), make := _narrowed(self.dim, start, size), self._carry(make))
                for name, size, start in zip(names, sizes, starts, strict=False)
            ]
        return plan

    def destination(self, key: str) -> str | None:
        return None if stars(self.key, key) is not None else key

    def _carry(self, make: Callable[..., torch.Tensor]) -> Any:
        return (lambda _, tensor: make(tensor)) if self.optim == "copy" else None

    def _parts(self, key: str, state: State, target: State) -> tuple[list[str], list[int]]:
        """Return the names and sizes of the parts."""
        has = shape(state[key])
        if has is None or not -len(has) <= self.dim < len(has):
            raise self.unfit(key, f"it is {shown(has or ())}, with no dimension {self.dim}")
        names = [filled(pattern, stars(self.key, key) or ()) for pattern in self.to]
        whole = has[self.dim]
        if self.sizes is not None:
            sizes = list(self.sizes)
        else:
            wanted = [shape(target.get(name)) for name in names]
            known = [each[self.dim] for each in wanted if each is not None and len(each) == len(has)]
            sizes = known if len(known) == len(names) else [whole // len(names)] * len(names)
        if sum(sizes) != whole or len(sizes) != len(names):
            raise self.unfit(key, f"dimension {self.dim} has {whole}, which is not cut into {sizes}")
        return names, sizes

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the parts, joined, give the old tensor."""

        def faults() -> Iterator[str]:
            for key in self.matched(self.key, before):
                names = [filled(pattern, stars(self.key, key) or ()) for pattern in self.to]
                yield from _taken_apart(key, before[key], [after.get(name) for name in names], self.dim)

        return [Claim.of(f"{self}: joined, the old tensor", faults, "bit for bit")]


def _narrowed(dim: int, start: int, size: int) -> Callable[..., torch.Tensor]:
    return lambda tensor: tensor.narrow(dim, start, size).clone(memory_format=torch.contiguous_format)


def _rest(tensor: torch.Tensor, dim: int) -> list[int]:
    """Return all sizes except that of `dim`."""
    sizes = list(tensor.shape)
    del sizes[dim]
    return sizes


def _taken_apart(key: str, whole: Any, parts: Sequence[Any], dim: int) -> Iterator[str]:
    """Yield faults unless a tensor, split at the parts' sizes, gives the parts."""
    if whole is None or any(part is None for part in parts):
        yield f"{escape(key)}: a tensor is not there"
        return
    whole, parts = materialise(whole), [materialise(part) for part in parts]
    sizes = [part.shape[dim] for part in parts]
    if sum(sizes) != whole.shape[dim]:
        yield f"{escape(key)}: {whole.shape[dim]} rows for {sizes}"
        return
    for part, piece in zip(parts, torch.split(whole, sizes, dim), strict=True):
        yield from differing(key, part, piece)
