"""Numbered blocks of a model, which operators move and copy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from pytest_ckptcompat.keys import escape

from .arguments import python
from .growing import differing
from .operator import Operator
from .plan import State, Write

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place(NamedTuple):
    """A key inside a numbered block: ``layers.3.attn.weight`` is block 3, ``attn.weight``."""

    block: int
    rest: str


def place(layers: str, key: str) -> Place | None:
    """Where a key is below ``layers.``; None if it is not in a numbered block there."""
    found = re.fullmatch(r"([0-9]{1,9})\.(.+)", key[len(layers) + 1 :], re.DOTALL)
    if not key.startswith(f"{layers}.") or found is None:
        return None
    return Place(int(found[1]), found[2])


@dataclass(frozen=True, repr=False)
class Numbering(Operator):
    """An operator that gives numbered blocks other numbers, and copies some."""

    def stacked(self) -> str:
        """The path of the numbered blocks."""
        raise NotImplementedError

    def blocks(self, state: State) -> dict[int, dict[str, str]]:
        """Number -> the block's keys, without and with what stands before them.

        Raises:
            RecipeError: there are none.
        """
        blocks: dict[int, dict[str, str]] = {}
        for key in state:
            found = place(self.stacked(), key)
            if found is not None:
                blocks.setdefault(found.block, {})[found.rest] = key
        if not blocks:
            self.matched(f"{self.stacked()}.*", state)
            raise self.unused(self.stacked(), f"finds no numbered blocks below {python(self.stacked())}")
        return blocks

    def copied(self, name: str, key: str, state: State, *, keep: bool, zero: bool = False) -> Write:
        """One key of a copy; a tensor of its own, so that the copy is not tied to the block."""
        if not isinstance(state[key], torch.Tensor):
            return Write(name, (key,))
        return Write(name, (key,), torch.zeros_like if zero else torch.clone, _carried if keep else None)


def _carried(_: bool, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def equal(key: str, one: torch.Tensor, other: object) -> Iterator[str]:
    """The fault of a block's tensor that is not the other one."""
    if isinstance(other, torch.Tensor):
        yield from differing(key, one, other)
    else:
        yield f"{escape(key)}: it has no counterpart"


def numbers(blocks: dict[int, dict[str, str]]) -> str:
    """The numbers of blocks, as texts show them."""
    return ", ".join(map(str, sorted(blocks)[:20])) + (" and more" if len(blocks) > 20 else "")
