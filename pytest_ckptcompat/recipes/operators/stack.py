"""The operator `stack`: all blocks of a model, several times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.numbered import Place, apart, place, places
from pytest_ckptcompat.recipes.plan import Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, repr=False)
class stack(Operator):
    """Repeat all blocks: of n blocks, new block i is old block ``i mod n``.

    Depth growth for pretraining (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking";
    Du et al. 2024, "Stacking Your Transformers"). It does not keep the function.

    ``stack("layers", times=2)``

    Attributes:
        layers: the module whose children the blocks are; or a glob, and the blocks of each are repeated.
        times: how often they stand there afterwards; as often as the model has them, if it is left out.
        optim: optimizer state of the repeated blocks: ``reset`` starts it anew; ``copy`` repeats it too.
    """

    rounds: ClassVar[bool] = False

    layers: str
    times: int | None = None
    optim: Literal["reset", "copy"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times is not None and self.times < 2:
            raise RecipeError("stack: times wants a whole number above 1", key=self.layers)

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function changes: each block's work is done several times."""
        return f"{self} repeats blocks"

    def plan(self, state: State, target: State) -> Plan:
        found = places(self.layers, state)
        if not found:
            self.matched(f"{self.layers}.0.*", state)
        plan: dict[str, list[Write]] = {}
        for layers, inside in found.items():
            count = 1 + max(each.number for each in inside.values())
            last = [*inside][-1]
            plan[last] = [Write(last, (last,))]
            rests = {each.rest for each in inside.values()}
            for turn in range(1, self._turns(layers, count, rests, target)):
                plan[last] += self._turn(turn * count, inside, state)
        return plan

    def _turns(self, layers: str, count: int, rests: Iterable[str], target: State) -> int:
        if self.times is not None:
            return self.times
        # Look keys up one by one: later operators may rename the model's blocks.
        numbers = itertools.takewhile(
            lambda number: any(f"{layers}.{number}.{rest}" in target for rest in rests),
            itertools.count(),
        )
        wanted = len(list(numbers))
        if wanted % count or wanted // count < 2:
            raise self.unfit(
                layers, f"there are {count} blocks and the model has {wanted}, which is not a multiple"
            )
        return wanted // count

    def _turn(self, further: int, inside: Mapping[str, Place], state: State) -> Iterator[Write]:
        """Yield a copy of every block with a number higher by `further`; tied tensors stay tied."""

        def cloned(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        for key, (layers, number, rest) in inside.items():
            name = f"{layers}.{number + further}.{rest}"
            if isinstance(state[key], torch.Tensor):
                yield Write(name, (key,), cloned, None if self.optim == "reset" else _carried)
            else:
                yield Write(name, (key,))

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that block i is old block ``i mod n``, bit for bit."""
        counts = {
            layers: 1 + max(each.number for each in inside.values())
            for layers, inside in places(self.layers, before).items()
        }

        def faults() -> Iterator[str]:
            turns: dict[str, int] = dict.fromkeys(before, 0)
            for new, value in after.items():
                inside = place(self.layers, new)
                old = new
                if inside is not None and inside.layers in counts:
                    old = f"{inside.layers}.{inside.number % counts[inside.layers]}.{inside.rest}"
                if old not in before:
                    yield f"{escape(new)} comes from nowhere"
                    return
                turns[old] += 1
                yield from apart(new, before[old], value)
            blocks: dict[str, set[int]] = {}
            for key, turn in turns.items():
                inside = place(self.layers, key)
                blocks.setdefault("" if inside is None else inside.layers, set()).add(turn)
            others = blocks.pop("", {1})
            if others != {1} or any(len(found) != 1 or min(found) < 2 for found in blocks.values()):
                yield "not every block is there equally often"

        count = " or ".join(map(str, sorted(set(counts.values()))))
        return [Claim.of(f"{self}: block i is block i mod {count}", faults, "bit for bit")]


def _carried(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()
