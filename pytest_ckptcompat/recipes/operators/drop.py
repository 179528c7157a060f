"""The operator `drop`: keys that the new model lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import matches
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.promises import differing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.plan import Plan, State


@dataclass(frozen=True, repr=False)
class drop(Operator):
    """Drop keys: ``drop("aux.*")``.

    Attributes:
        pattern: an exact key or a glob.
    """

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    pattern: str

    def plan(self, state: State, target: State) -> Plan:
        return {key: [] for key in self.matched(self.pattern, state)}

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that keys outside the pattern are still there, with the same bytes."""

        def faults() -> Iterator[str]:
            for key, old in before.items():
                if key not in after:
                    if not matches(self.pattern, key):
                        yield f"{escape(key)} is gone"
                elif isinstance(old, torch.Tensor):
                    yield from differing(key, old, after[key])

        return [Claim.of(f"{self}: the rest is unchanged", faults, f"{len(after)} keys")]
