"""The operator `insert_block`: one more block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from pytest_ckptcompat.core import keys
from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.numbered import Place, apart, place, places
from pytest_ckptcompat.recipes.plan import Plan, State, Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, repr=False)
class insert_block(Operator):
    """Insert a copy of a block between others, which move up.

    A residual block whose output projections are zero adds nothing to the stream: the function is kept, and
    training starts from it (LLaMA Pro, Wu et al. 2024, "block expansion"; where a norm stands behind the sum,
    as in the first transformers, zeros do not help, and the function comparison tells).

    ``insert_block("layers.3", at=4, zero=["self_attn.o_proj.*", "mlp.down_proj.*"])``

    Attributes:
        copy_from: the module that is copied, by its old number; with stars (``*.layers.3``) one of every
            module that they match.
        at: the number of the copy. Blocks from this one on get the next number.
        zero: keys or globs, relative to the block: tensors of the copy that are zero.
        optim: optimizer state of the copy: ``reset`` starts it anew; ``copy`` copies it too.
    """

    rounds: ClassVar[bool] = False

    copy_from: str
    at: int
    zero: tuple[str, ...] = ()
    optim: Literal["reset", "copy"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._layers or not self._number.isdigit() or self.at < 0:
            raise RecipeError(
                "insert_block wants a numbered module (layers.3) and at=, a number", key=self.copy_from
            )

    @property
    def _layers(self) -> str:
        return self.copy_from.rpartition(".")[0]

    @property
    def _number(self) -> str:
        return self.copy_from.rpartition(".")[2]

    @property
    def changes_function(self) -> str:  # type: ignore[override]
        """Why the function may change: a copy without zeros adds its original's output twice."""
        return "" if self.zero else f"{self} adds a block whose outputs are not zero"

    def plan(self, state: State, target: State) -> Plan:
        found = places(self._layers, state)
        if not found:
            self.matched(f"{self.copy_from}.*", state)
        return {
            key: writes
            for layers, inside in found.items()
            for key, writes in self._planned(layers, inside, state).items()
        }

    def _planned(self, layers: str, inside: Mapping[str, Place], state: State) -> dict[str, list[Write]]:
        block = self._block(layers, inside, state)
        zeroed = self._zeroed(block, state)
        plan = {key: [Write(self._named(place), (key,))] for key, place in inside.items()}
        copies = [self._copy(layers, key, rest, state[key], rest in zeroed) for key, rest in block.items()]
        before = [key for key, place in inside.items() if place.number < self.at]
        if before:
            plan[before[-1]] += copies
        else:
            first = next(iter(inside))
            plan[first] = [*copies, *plan[first]]
        return plan

    def _block(self, layers: str, inside: Mapping[str, Place], state: State) -> dict[str, str]:
        """Return the keys of the copied block -> their names relative to the block.

        Raises:
            RecipeError: there is no such block, or the new number would leave a gap.
        """
        block = {key: place.rest for key, place in inside.items() if place.number == int(self._number)}
        last = max(place.number for place in inside.values())
        if not block:
            self.matched(f"{layers}.{self._number}.*", state)
        if self.at > last + 1:
            raise self.unfit(
                f"{layers}.{self._number}",
                f"the last block is {last}, so the new one can be {last + 1} at most",
            )
        return block

    def _zeroed(self, block: Mapping[str, str], state: State) -> set[str]:
        tensors = [rest for key, rest in block.items() if isinstance(state[key], torch.Tensor)]
        zeroed: set[str] = set()
        for pattern in self.zero:
            chosen = keys.select(pattern, tensors)
            if not chosen:
                near = " or ".join(map(python, keys.nearest(pattern, tensors)))
                hint = f": did you mean {near}?" if near else ""
                raise self.unused(
                    pattern, f"has {python(pattern)} in zero=, which the block does not have{hint}"
                )
            zeroed.update(chosen)
        return zeroed

    def _named(self, place: Place) -> str:
        return f"{place.layers}.{place.number + (place.number >= self.at)}.{place.rest}"

    def _copy(self, layers: str, key: str, rest: str, value: Any, zero: bool) -> Write:
        name = f"{layers}.{self.at}.{rest}"
        if not isinstance(value, torch.Tensor):
            return Write(name, (key,))
        optimizer_transform = None if self.optim == "reset" else _carried
        return Write(name, (key,), _zeros if zero else torch.clone, optimizer_transform)

    def destination(self, key: str) -> str | None:
        inside = place(self._layers, key)
        return key if inside is None else self._named(inside)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the copy is the original except for zeros, and the other blocks are unchanged."""
        return [
            Claim.of(f"{self}: other blocks kept", lambda: self._displaced(before, after), "bit for bit"),
            Claim.of(
                f"{self}: the copy",
                lambda: self._miscopied(before, after),
                f"{len(self.zero)} patterns zero, the rest bit-equal",
            ),
        ]

    def _displaced(self, before: State, after: State) -> Iterator[str]:
        for new, value in after.items():
            inside = place(self._layers, new)
            old = new
            if inside is not None:
                if inside.number == self.at:
                    continue
                was = inside.number if inside.number < self.at else inside.number - 1
                old = f"{inside.layers}.{was}.{inside.rest}"
            if old not in before:
                yield f"{escape(new)} comes from nowhere"
            else:
                yield from apart(new, before[old], value)
        copied = len(self._originals(before))
        if len(after) != len(before) + copied:
            yield f"{len(after)} keys instead of {len(before) + copied}"

    def _originals(self, before: State) -> dict[str, Place]:
        """Return the keys of the copied blocks, with their places."""
        found = {key: place(self._layers, key) for key in before}
        number = int(self._number)
        return {key: each for key, each in found.items() if each is not None and each.number == number}

    def _miscopied(self, before: State, after: State) -> Iterator[str]:
        for key, inside in self._originals(before).items():
            old, rest = before[key], inside.rest
            name = f"{inside.layers}.{self.at}.{rest}"
            zero = isinstance(old, torch.Tensor) and any(keys.matches(pattern, rest) for pattern in self.zero)
            if name not in after:
                yield f"there is no {escape(name)}"
            else:
                yield from apart(name, torch.zeros_like(old) if zero else old, after[name])


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty(tensor.shape) if tensor.is_meta else torch.zeros_like(tensor)


def _carried(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()
