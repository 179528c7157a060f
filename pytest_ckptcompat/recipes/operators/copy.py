"""The operator `copy`: a second tensor with the same values."""

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
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, repr=False)
class copy(Operator):
    """Copy a tensor to a second key, in memory of its own.

    ``copy("embed.weight", "lm_head.weight")`` unties a head from its embedding; ``copy("head.*", "head2.*")``
    starts a second head from the first (`torch.clone`).

    Attributes:
        key: an exact key or a glob.
        to: the name of the copy, with as many stars. A tensor that is there already is replaced.
        optim: optimizer state of the copy: ``copy`` copies it too, ``reset`` starts it anew.
    """

    rounds: ClassVar[bool] = False

    key: str
    to: str
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("copy", self.key, self.to)
        if self.key == self.to:
            raise RecipeError("copy: key and to are the same", key=self.key)

    def caveat(self, state: State, target: State) -> str:
        for key, name in self._pairs(state):
            if name in state and memory(state[name]) != memory(state[key]):
                return f"{self} replaces {python(name)}"
        return ""

    def plan(self, state: State, target: State) -> Plan:
        def cloned(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone(memory_format=torch.contiguous_format)

        optimizer_transform = (lambda _, tensor: tensor.clone()) if self.optim == "copy" else None
        plan: dict[str, list[Write]] = {}
        for key, name in self._pairs(state):
            there = name in state
            anchor = name if there else key
            writes = plan.setdefault(anchor, [Write(anchor, (anchor,))])
            if isinstance(state[key], torch.Tensor):
                write = Write(name, (key,), cloned, optimizer_transform, overwrites=there)
            else:
                write = Write(name, (key,), overwrites=there)
            writes[0 if there else len(writes) :] = [write, *writes[1:]] if there else [write]
        return plan

    def _pairs(self, state: State) -> Iterator[tuple[str, str]]:
        """Yield each key and the name of its copy."""
        for key in self.matched(self.key, state):
            name = filled(self.to, stars(self.key, key) or ())
            if name != key:
                yield key, name

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the copy has the original's bytes and its own memory; the original is unchanged."""

        def faults() -> Iterator[str]:
            for key, name in self._pairs(before):
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
