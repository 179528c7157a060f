"""The operators `tie` and `copy`: the values of keys under further names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.plan import Plan, State, Write, same_for_moments
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class Naming(Operator):
    """An operator that gives the values of keys further names."""

    rounds: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        """The keys or globs: first the one whose values are taken, then those that get them."""
        raise NotImplementedError

    def pairs(self, state: State) -> Iterator[tuple[str, str]]:
        """Yield each key that the first glob matches, with each of its further names."""
        first, *others = self.names
        for key in self.matched(first, state):
            values = stars(first, key) or ()
            for name in dict.fromkeys(filled(other, values) for other in others):
                if name != key:
                    yield key, name

    def caveat(self, state: State, target: State) -> str:
        for key, name in self.pairs(state):
            if name in state and memory(state[name]) != memory(state[key]):
                return f"{self} replaces {python(name)}"
        return ""


@dataclass(frozen=True, repr=False)
class tie(Naming):
    """Tie keys: they share the first one's tensor: ``tie(["lm_head.weight", "embed.weight"])``.

    Attributes:
        keys: exact keys or globs, whose stars match the same text. The first must be in the checkpoint. The
            others get its tensor: keys that exist lose their own, and the rest are added.
    """

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.keys) < 2:
            raise RecipeError("tie: keys needs at least two", key=self.keys[0])
        alike("tie", *self.keys)

    @property
    def names(self) -> tuple[str, ...]:
        return self.keys

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        for key, name in self.pairs(state):
            if name not in state:
                plan.setdefault(key, [Write(key, (key,))]).append(Write(name, (key,)))
            elif memory(state[name]) != memory(state[key]):
                plan[name] = [Write(name, (key,), overwrites=True)]
        if not plan:
            raise self.unused(self.keys[0], "changes nothing: they are tied")
        return plan

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that all names share the first's storage, whose bytes are unchanged.

        A model that does not tie them gets a copy of the values for each name, which is reported.
        """

        def faults() -> Iterator[str]:
            for key, name in self.pairs(before):
                if not (key in after and name in after and memory(after[name]) == memory(after[key])):
                    yield f"{escape(name)} does not share the memory of {escape(key)}"
                elif isinstance(before[key], torch.Tensor):
                    yield from differing(key, before[key], after[key])

        for key, name in self.pairs(before):
            one, other = target.get(key), target.get(name)
            if torch.is_tensor(one) and torch.is_tensor(other) and memory(one) != memory(other):
                told = f"the model does not tie {escape(name, 60)}: it keeps a copy of its own"
                return [Claim.of(f"{self}: equal values", faults, told)]
        return [Claim.of(f"{self}: shared", faults)]


@dataclass(frozen=True, repr=False)
class copy(Naming):
    """Copy a tensor to a second key, in memory of its own.

    ``copy("embed.weight", "lm_head.weight")`` unties a head from its embedding; ``copy("head.*", "head2.*")``
    starts a second head from the first (`torch.clone`).

    Attributes:
        key: an exact key or a glob.
        to: the name of the copy, with as many stars. A tensor that is there already is replaced.
        optim: optimizer state of the copy: ``copy`` copies it too, ``reset`` starts it anew.
    """

    key: str
    to: str
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("copy", self.key, self.to)
        if self.key == self.to:
            raise RecipeError("copy: key and to are the same", key=self.key)

    @property
    def names(self) -> tuple[str, ...]:
        return self.key, self.to

    def plan(self, state: State, target: State) -> Plan:
        moments = same_for_moments(_cloned, self.optim)
        plan: dict[str, list[Write]] = {}
        for key, name in self.pairs(state):
            there, is_tensor = name in state, isinstance(state[key], torch.Tensor)
            write = Write(name, (key,), _cloned if is_tensor else None, moments if is_tensor else None, there)
            if there:
                plan[name] = [write, *plan.get(name, [])[1:]]
            else:
                plan.setdefault(key, [Write(key, (key,))]).append(write)
        return plan

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the copy has the original's bytes and its own memory; the original is unchanged."""

        def faults() -> Iterator[str]:
            for key, name in self.pairs(before):
                if not isinstance(before[key], torch.Tensor):
                    continue
                for each in (key, name):
                    if each not in after:
                        yield f"there is no {escape(each)}"
                        return
                    yield from differing(each, before[key], after[each])
                if memory(after[key]) == memory(after[name]):
                    yield f"{escape(name)} shares the memory of {escape(key)}"

        yield Claim.of(f"{self}: a copy of its own", faults, "bit for bit")


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
