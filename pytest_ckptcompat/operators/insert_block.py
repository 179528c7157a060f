"""One block more."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.errors import RecipeError
from pytest_ckptcompat.keys import escape, matches
from pytest_ckptcompat.stored import materialise

from .arguments import python
from .blocks import Numbering, equal, numbers, place
from .growing import promise
from .plan import Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.rules import Promise


@dataclass(frozen=True, repr=False)
class insert_block(Numbering):
    """Put a copy of a block between others; with its last projections zero, it changes nothing.

    ``insert_block("layers.3", at=4, zero=["self_attn.o_proj.*", "mlp.down_proj.*"])``: a copy of block 3
    becomes block 4, and those from 4 on move up (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415). It keeps the
    function of blocks that add what they compute to what they got.

    Attributes:
        copy_from: the path of the block that is copied, by its old number.
        at: the number that the copy gets.
        zero: keys or globs, relative to the block, that are zero in the copy.
        optim: optimizer state of the copy: ``reset`` starts it anew; ``copy`` takes the copied block's.
    """

    copy_from: str
    at: int
    zero: tuple[str, ...] = ()
    optim: Literal["copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        layers, _, number = self.copy_from.rpartition(".")
        if not layers or not number.isdecimal():
            raise RecipeError(
                f"insert_block: {python(self.copy_from)} is no numbered block, such as 'layers.3'",
                key=self.copy_from,
            )

    @property
    def unkept(self) -> str:  # type: ignore[override]
        """What is added computes something unless it ends in zeros."""
        return "" if self.zero else f"{self!r} zeroes nothing in the copy"

    def stacked(self) -> str:
        return self.copy_from.rpartition(".")[0]

    def plan(self, state: State, target: State) -> Plan:
        blocks = self.blocks(state)
        number = int(self.copy_from.rpartition(".")[2])
        if number not in blocks:
            raise self.unused(self.copy_from, f"finds no such block: there are {numbers(blocks)}")
        if not 0 <= self.at <= max(blocks) + 1:
            raise self.unfit(
                self.copy_from, f"a block at {self.at} leaves a gap: there are {numbers(blocks)}"
            )
        for pattern in self.zero:
            if not any(matches(pattern, rest) for rest in blocks[number]):
                raise self.unused(pattern, f"zeroes nothing: the block has no {python(pattern)}")
        plan = {
            key: [Write(self._moved(block, rest), (key,))]
            for block, keys in blocks.items()
            for rest, key in keys.items()
        }
        copies = plan[list(blocks[number].values())[-1]]
        for rest, key in blocks[number].items():
            name = f"{self.stacked()}.{self.at}.{rest}"
            zero = any(matches(pattern, rest) for pattern in self.zero)
            copies.append(self.copied(name, key, state, keep=self.optim == "copy", zero=zero))
        return plan

    def destination(self, key: str) -> str | None:
        found = place(self.stacked(), key)
        return key if found is None else self._moved(*found)

    def _moved(self, block: int, rest: str) -> str:
        return f"{self.stacked()}.{block + (block >= self.at)}.{rest}"

    def prove(self, before: State, after: State, target: State) -> list[Promise]:
        """The old blocks in their order, bit for bit, and between them the copy with its zeros."""
        number = int(self.copy_from.rpartition(".")[2])

        def faults() -> Iterator[str]:
            old, new = self.blocks(before), self.blocks(after)
            came = {block if block < self.at else block + 1: block for block in old} | {self.at: number}
            if sorted(new) != sorted(came):
                yield f"the blocks are {numbers(new)}"
                return
            for block, keys in new.items():
                for rest, key in keys.items():
                    zero = block == self.at and any(matches(pattern, rest) for pattern in self.zero)
                    if not isinstance(after[key], torch.Tensor):
                        continue
                    if not zero:
                        yield from equal(key, after[key], before.get(old[came[block]].get(rest, "")))
                    elif bool(materialise(after[key]).any()):
                        yield f"{escape(key)} is not zero"

        return [promise(f"{self!r}: blocks by their number", faults(), "bit for bit")]
