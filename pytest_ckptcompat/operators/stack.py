"""All layers again."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.errors import RecipeError

from .blocks import Numbering, equal
from .growing import promise
from .plan import Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.rules import Promise


@dataclass(frozen=True, repr=False)
class stack(Numbering):
    """Put all layers on top of themselves, once or more: layer j becomes a copy of layer ``j mod n``.

    The function is another one; training goes on from there (StackBERT, Gong et al. 2019).

    Attributes:
        layers: the path of the numbered layers.
        times: how often they are there afterwards.
        optim: optimizer state of the copies: ``copy`` takes the copied layers', ``reset`` starts it anew.
    """

    layers: str
    times: int = 2
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 2:
            raise RecipeError(
                "stack: times wants how often the layers are there, at least 2", key=self.layers
            )

    @property
    def unkept(self) -> str:  # type: ignore[override]
        """Every layer is gone through again."""
        return f"{self!r} goes through layers again"

    def stacked(self) -> str:
        return self.layers

    def plan(self, state: State, target: State) -> Plan:
        blocks = self.blocks(state)
        depth = max(blocks) + 1
        keys = [(block, rest, key) for block, keys in blocks.items() for rest, key in keys.items()]
        copies = [
            self.copied(f"{self.layers}.{block + depth * time}.{rest}", key, state, keep=self.optim == "copy")
            for time in range(1, self.times)
            for block, rest, key in keys
        ]
        last = keys[-1][2]
        return {last: [Write(last, (last,)), *copies]}

    def prove(self, before: State, after: State, target: State) -> list[Promise]:
        """Every layer is, bit for bit, the old one that it stands for."""

        def faults() -> Iterator[str]:
            old, new = self.blocks(before), self.blocks(after)
            if len(new) != len(old) * self.times:
                yield f"{len(new)} layers instead of {len(old) * self.times}"
            for block, keys in new.items():
                for rest, key in keys.items():
                    came = before.get(f"{self.layers}.{block % (max(old) + 1)}.{rest}")
                    if isinstance(after[key], torch.Tensor):
                        yield from equal(key, after[key], came)

        return [promise(f"{self!r}: layer j is layer j mod n", faults(), "bit for bit")]
