"""Operators on a model's repeated blocks: one block more, or all of them several times."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch

from pytest_ckptcompat.core import keys
from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Place(NamedTuple):
    """A key inside a block: the block's number, and the rest of the key."""

    number: int
    rest: str


def place(layers: str, key: str) -> Place | None:
    """Where in the blocks of the module `layers` a key lies; None if it lies elsewhere."""
    number, dot, rest = key.removeprefix(f"{layers}.").partition(".")
    inside = key.startswith(f"{layers}.") and dot and number.isascii() and number.isdigit()
    return Place(int(number), rest) if inside else None


def places(layers: str, state: Mapping[str, Any]) -> dict[str, Place]:
    """The keys that lie in blocks of the module `layers`, and where."""
    found = ((key, place(layers, key)) for key in state)
    return {key: inside for key, inside in found if inside is not None}


@dataclass(frozen=True, repr=False)
class insert_block(Operator):
    """Put a copy of a block between others, which move up.

    A residual block whose output projections are zero adds nothing to the stream: the function is kept, and
    training starts from it (LLaMA Pro, Wu et al. 2024, "block expansion"; where a norm stands behind the sum,
    as in the first transformers, zeros do not help, and the function comparison tells).

    ``insert_block("layers.3", at=4, zero=["self_attn.o_proj.*", "mlp.down_proj.*"])``

    Attributes:
        copy_from: the module that is copied, by its old number.
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
        """A copy that adds what its original adds, adds it twice."""
        return "" if self.zero else f"{self} adds a block whose outputs are not zero"

    def plan(self, state: State, target: State) -> Plan:
        block = self._block(state)
        zeroed = self._zeroed(block, state)
        inside = places(self._layers, state)
        plan = {key: [Write(self._named(*place), (key,))] for key, place in inside.items()}
        copies = [self._copy(key, rest, state[key], rest in zeroed) for key, rest in block.items()]
        before = [key for key, (number, _) in inside.items() if number < self.at]
        if before:
            plan[before[-1]] += copies
        else:
            first = next(iter(inside))
            plan[first] = [*copies, *plan[first]]
        return plan

    def _block(self, state: State) -> dict[str, str]:
        """The keys of the block that is copied, and what they are relative to it.

        Raises:
            RecipeError: there is no such block, or none before the new one.
        """
        inside = places(self._layers, state)
        block = {key: rest for key, (number, rest) in inside.items() if number == int(self._number)}
        if not block:
            self.matched(f"{self.copy_from}.*", state)
        last = max(number for number, _ in inside.values())
        if self.at > last + 1:
            raise self.unfit(
                self.copy_from, f"the last block is {last}, so the new one can be {last + 1} at most"
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

    def _named(self, number: int, rest: str) -> str:
        return f"{self._layers}.{number + (number >= self.at)}.{rest}"

    def _copy(self, key: str, rest: str, value: Any, zero: bool) -> Write:
        name = f"{self._layers}.{self.at}.{rest}"
        if not isinstance(value, torch.Tensor):
            return Write(name, (key,))
        optimizer_transform = None if self.optim == "reset" else _carried
        return Write(name, (key,), _zeros if zero else torch.clone, optimizer_transform)

    def destination(self, key: str) -> str | None:
        inside = place(self._layers, key)
        return key if inside is None else self._named(*inside)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """One block more: the copy is the original but for zeros, and every other block is as it was."""
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
                old = f"{self._layers}.{was}.{inside.rest}"
            if old not in before:
                yield f"{escape(new)} comes from nowhere"
            else:
                yield from _apart(new, before[old], value)
        copied = sum(key.startswith(f"{self.copy_from}.") for key in before)
        if len(after) != len(before) + copied:
            yield f"{len(after)} keys instead of {len(before) + copied}"

    def _miscopied(self, before: State, after: State) -> Iterator[str]:
        for key, old in before.items():
            if not key.startswith(f"{self.copy_from}."):
                continue
            rest = key.removeprefix(f"{self.copy_from}.")
            name = f"{self._layers}.{self.at}.{rest}"
            zero = isinstance(old, torch.Tensor) and any(keys.matches(pattern, rest) for pattern in self.zero)
            if name not in after:
                yield f"there is no {escape(name)}"
            else:
                yield from _apart(name, torch.zeros_like(old) if zero else old, after[name])


@dataclass(frozen=True, repr=False)
class stack(Operator):
    """Repeat all blocks: of n blocks, new block i is old block ``i mod n``.

    Depth growth for pretraining (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking";
    Du et al. 2024, "Stacking Your Transformers"). It does not keep the function.

    Attributes:
        layers: the module whose children the blocks are.
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
        """Each block's work is done several times."""
        return f"{self} repeats blocks"

    def plan(self, state: State, target: State) -> Plan:
        inside = places(self.layers, state)
        if not inside:
            self.matched(f"{self.layers}.0.*", state)
        count = 1 + max(number for number, _ in inside.values())
        last = [*inside][-1]
        writes = [Write(last, (last,))]
        rests = {rest for _, rest in inside.values()}
        for turn in range(1, self._turns(count, rests, target)):
            writes += self._turn(turn * count, inside, state)
        return {last: writes}

    def _turns(self, count: int, rests: Iterable[str], target: State) -> int:
        if self.times is not None:
            return self.times
        # Asked for by name, since operators that follow may give the model's blocks another.
        numbers = itertools.takewhile(
            lambda number: any(f"{self.layers}.{number}.{rest}" in target for rest in rests),
            itertools.count(),
        )
        wanted = len(list(numbers))
        if wanted % count or wanted // count < 2:
            raise self.unfit(
                self.layers, f"there are {count} blocks and the model has {wanted}, which is no multiple"
            )
        return wanted // count

    def _turn(self, further: int, inside: Mapping[str, Place], state: State) -> Iterator[Write]:
        """A copy of every block, its number that much higher; tensors are tied as in the originals."""

        def cloned(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        for key, (number, rest) in inside.items():
            name = f"{self.layers}.{number + further}.{rest}"
            if isinstance(state[key], torch.Tensor):
                yield Write(name, (key,), cloned, None if self.optim == "reset" else _carried)
            else:
                yield Write(name, (key,))

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Every block is, bit for bit, the old one whose number it has modulo their count."""
        numbers = {inside.number for key in before if (inside := place(self.layers, key))}
        count = max(numbers) + 1

        def faults() -> Iterator[str]:
            turns: dict[str, int] = dict.fromkeys(before, 0)
            for new, value in after.items():
                inside = place(self.layers, new)
                old = f"{self.layers}.{inside.number % count}.{inside.rest}" if inside else new
                if old not in before:
                    yield f"{escape(new)} comes from nowhere"
                    return
                turns[old] += 1
                yield from _apart(new, before[old], value)
            blocks = {turn for key, turn in turns.items() if place(self.layers, key)}
            others = {turn for key, turn in turns.items() if not place(self.layers, key)}
            if len(blocks) != 1 or min(blocks) < 2 or not others <= {1}:
                yield "not every block is there equally often"

        return [Claim.of(f"{self}: block i is block i mod {count}", faults, "bit for bit")]


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty(tensor.shape) if tensor.is_meta else torch.zeros_like(tensor)


def _carried(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def _apart(key: str, expected: Any, actual: Any) -> Iterator[str]:
    """The fault of a value that is not as expected; of tensors that are the same object there is none."""
    if expected is actual:
        return
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        yield from differing(key, expected, actual)
    else:
        yield f"{escape(key)} is another object"
