"""The operator `tie`: one tensor under several names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, repr=False)
class tie(Operator):
    """Tie keys: they share the first one's tensor: ``tie(["lm_head.weight", "embed.weight"])``.

    Attributes:
        keys: exact keys or globs whose stars stand for the same. The first must be there; others that are get
            its tensor instead of their own, and those that are not come into being.
    """

    rounds: ClassVar[bool] = False

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.keys) < 2:
            raise RecipeError("tie: keys wants two at least", key=self.keys[0])
        alike("tie", *self.keys)

    def caveat(self, state: State, target: State) -> str:
        for first, others in self._groups(state):
            for other in others:
                if other in state and memory(state[other]) != memory(state[first]):
                    return f"{self} replaces {python(other)}"
        return ""

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        for first, others in self._groups(state):
            new = [Write(other, (first,)) for other in others if other not in state]
            if new:
                plan[first] = [Write(first, (first,)), *new]
            for other in others:
                if other in state and memory(state[other]) != memory(state[first]):
                    plan[other] = [Write(other, (first,), overwrites=True)]
        if not plan:
            raise self.unused(self.keys[0], "changes nothing: they are tied")
        return plan

    def _groups(self, state: State) -> Iterator[tuple[str, list[str]]]:
        for first in self.matched(self.keys[0], state):
            values = stars(self.keys[0], first) or ()
            yield first, [filled(pattern, values) for pattern in self.keys[1:]]

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that all names share the first's storage, whose bytes are unchanged.

        A model that does not tie them gets a copy of the values for each name, which is reported.
        """

        def faults() -> Iterator[str]:
            for first, others in self._groups(before):
                for other in others:
                    if not (
                        first in after and other in after and memory(after[other]) == memory(after[first])
                    ):
                        yield f"{escape(other)} does not share the memory of {escape(first)}"
                if isinstance(before[first], torch.Tensor) and first in after:
                    yield from differing(first, before[first], after[first])

        apart = self._apart(before, target)
        if apart:
            told = f"the model does not tie {escape(apart, 60)}: it keeps a copy of its own"
            return [Claim.of(f"{self}: equal values", faults, told)]
        return [Claim.of(f"{self}: shared", faults)]

    def _apart(self, state: State, target: State) -> str:
        """Return a name that the model does not tie to the first one, or ``""``."""
        for first, others in self._groups(state):
            for other in others:
                one, two = target.get(first), target.get(other)
                if torch.is_tensor(one) and torch.is_tensor(two) and memory(one) != memory(two):
                    return other
        return ""
