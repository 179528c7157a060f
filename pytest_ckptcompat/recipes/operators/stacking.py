"""The operators `stack_tensors` and `unbind`: add a dimension to stack tensors, and undo it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.recipes.rows import bits
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, repr=False)
class stack_tensors(Operator):
    """Stack tensors of one shape along a new dimension (`torch.stack`).

    Separate experts become one fused tensor:
    ``stack_tensors("layers.*.experts.*.w1.weight", "layers.*.experts.w1", dim=0)``
    (transformers' ``MergeModulelist``).

    Attributes:
        keys: one glob, whose last star counts the tensors, in natural order (``experts.2`` before
            ``experts.10``); or a list of exact keys or globs, in the order in which they are stacked.
        to: the name of what they make: with one star less than a single glob, with as many as each key of a
            list.
        dim: where the new dimension stands.
        optim: optimizer state: ``copy`` stacks it as well, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    keys: str | tuple[str, ...]
    to: str
    dim: int = 0
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.keys, tuple):
            alike("stack_tensors", *self.keys, self.to)
        elif self.keys.count("*") != self.to.count("*") + 1:
            raise RecipeError(
                f"stack_tensors: {python(self.keys)} needs one star more than {python(self.to)}: "
                "the last one counts the tensors",
                key=self.keys,
            )

    def plan(self, state: State, target: State) -> Plan:
        def make(*tensors: torch.Tensor) -> torch.Tensor:
            return _stacked(tensors, self.dim)

        optimizer_transform = (lambda _, *tensors: make(*tensors)) if self.optim == "copy" else None
        places = {key: place for place, key in enumerate(state)}
        plan: dict[str, list[Write]] = {}
        for name, sources in self._groups(state):
            self._require_one_shape(name, sources, state, target)
            first = min(sources, key=places.__getitem__)
            plan |= {source: [] for source in sources} | {
                first: [Write(name, sources, make, optimizer_transform)]
            }
        return plan

    def destination(self, key: str) -> str | None:
        return None if any(stars(pattern, key) is not None for pattern in self._patterns) else key

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (self.keys,) if isinstance(self.keys, str) else self.keys

    def _groups(self, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the name of each new tensor, and its sources."""
        first = self._patterns[0]
        if isinstance(self.keys, str):
            counted: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
            for key in self.matched(first, state):
                counted[(stars(first, key) or ())[:-1]].append(key)
            for values, found in counted.items():
                yield filled(self.to, values), tuple(sorted(found, key=natural))
            return
        for key in self.matched(first, state):
            values = stars(first, key) or ()
            sources = tuple(filled(pattern, values) for pattern in self.keys)
            for source in sources:
                if source not in state:
                    raise self.unfit(key, f"there is no {python(source)} beside it")
            yield filled(self.to, values), sources

    def _require_one_shape(self, name: str, sources: Sequence[str], state: State, target: State) -> None:
        first = state[sources[0]]
        for source in sources:
            has = shape(state[source])
            if has is None or has != shape(first):
                other = shown(shape(first) or ())
                raise self.unfit(source, f"it is {shown(has or ())} and {python(sources[0])} is {other}")
            if state[source].dtype != first.dtype:
                raise self.unfit(source, f"it has another dtype than {python(sources[0])}: cast one")
        if not -first.dim() - 1 <= self.dim <= first.dim():
            raise self.unfit(sources[0], f"it is {shown(tuple(first.shape))}: dim={self.dim} is out of range")
        wanted = shape(target.get(name))
        if wanted is not None and wanted != _sizes(first, len(sources), self.dim):
            made = shown(_sizes(first, len(sources), self.dim))
            why = f"{len(sources)} tensors make {made}, and the model has {shown(wanted)}"
            raise self.unfit(sources[0], why)

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the slices of the new tensor are the old tensors."""

        def faults() -> Iterator[str]:
            for name, sources in self._groups(before):
                old = [before[source] for source in sources]
                yield from _unstacked(name, after.get(name), old, self.dim)

        yield Claim.of(f"{self}: slice by slice, the old tensors", faults, "bit for bit")


@dataclass(frozen=True, repr=False)
class unbind(Operator):
    """Unbind a tensor along a dimension, which goes (`torch.unbind`).

    A fused tensor becomes separate experts:
    ``unbind("layers.*.experts.w1", "layers.*.experts.*.w1.weight")``.

    Attributes:
        key: an exact key or a glob.
        to: one name with one star more than `key`, whose last one counts from 0; or a list of names with as
            many stars.
        dim: the dimension that goes.
        optim: optimizer state: ``copy`` takes it apart as well, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    key: str
    to: str | tuple[str, ...]
    dim: int = 0
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.to, tuple):
            alike("unbind", self.key, *self.to)
        elif self.to.count("*") != self.key.count("*") + 1:
            raise RecipeError(
                f"unbind: {python(self.to)} needs one star more than {python(self.key)}: "
                "the last one counts the tensors",
                key=self.key,
            )

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        for key in self.matched(self.key, state):
            plan[key] = [
                Write(name, (key,), make := _slice(self.dim, place), self._carry(make))
                for place, name in enumerate(self._names(key, state))
            ]
        return plan

    def _carry(self, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor] | None:
        return (lambda _, tensor: make(tensor)) if self.optim == "copy" else None

    def destination(self, key: str) -> str | None:
        return None if stars(self.key, key) is not None else key

    def _names(self, key: str, state: State) -> list[str]:
        """Return the names of the parts, in order."""
        has, values = shape(state[key]), stars(self.key, key) or ()
        if has is None or not -len(has) <= self.dim < len(has):
            raise self.unfit(key, f"it is {shown(has or ())}, with no dimension {self.dim}")
        if isinstance(self.to, str):
            return [filled(self.to, (*values, str(place))) for place in range(has[self.dim])]
        if len(self.to) != has[self.dim]:
            raise self.unfit(
                key, f"dimension {self.dim} has {has[self.dim]}, and to has {len(self.to)} names"
            )
        return [filled(pattern, values) for pattern in self.to]

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that each part is its slice of the old tensor."""

        def faults() -> Iterator[str]:
            for key in self.matched(self.key, before):
                parts = [after.get(name) for name in self._names(key, before)]
                yield from _unstacked(key, before[key], parts, self.dim)

        yield Claim.of(f"{self}: stacked, the old tensor", faults, "bit for bit")


def _sizes(like: torch.Tensor, count: int, dim: int) -> tuple[int, ...]:
    sizes = list(like.shape)
    sizes.insert(dim % (len(sizes) + 1), count)
    return tuple(sizes)


def _stacked(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Do `torch.stack` for every dtype; on meta, only the shape is computed."""
    first = tensors[0]
    if first.is_meta:
        return first.new_empty(_sizes(first, len(tensors), dim))
    return torch.stack([bits(tensor) for tensor in tensors], dim).view(first.dtype)


def _slice(dim: int, place: int) -> Callable[..., torch.Tensor]:
    return lambda tensor: tensor.select(dim, place).clone(memory_format=torch.contiguous_format)


def _unstacked(key: str, whole: object, parts: Sequence[object], dim: int) -> Iterator[str]:
    """Yield faults unless a tensor has exactly these slices."""
    if not isinstance(whole, torch.Tensor) or not all(isinstance(part, torch.Tensor) for part in parts):
        yield f"{escape(key)}: a tensor is not there"
        return
    whole = materialise(whole)
    if not -whole.dim() <= dim < whole.dim() or whole.shape[dim] != len(parts):
        yield f"{escape(key)}: it is {shown(tuple(whole.shape))} for {len(parts)} tensors"
        return
    for place, part in enumerate(parts):
        yield from differing(key, part, whole.select(dim, place))  # type: ignore[arg-type]
