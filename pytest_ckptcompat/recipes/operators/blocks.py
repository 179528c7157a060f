"""The operators `insert_block` and `stack`: more numbered blocks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch

from pytest_ckptcompat.core import keys
from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator, did_you_mean
from pytest_ckptcompat.recipes.plan import Make, Plan, State, Write, same_for_moments
from pytest_ckptcompat.recipes.promises import differing, displaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Place(NamedTuple):
    """A key inside a block: the module whose children are the blocks, the block's number, and the rest."""

    layers: str
    number: int
    rest: str

    def moved(self, number: int) -> str:
        """Return the key at the same place of another block."""
        return f"{self.layers}.{number}.{self.rest}"


def place(layers: str, key: str) -> Place | None:
    """Return the place of a key in the blocks of a module, or None if it is elsewhere.

    The module is a path or a glob. Of nested modules that match, the outer one counts.
    """
    parts = key.split(".")
    for end in range(1, len(parts) - 1):
        if parts[end].isascii() and parts[end].isdigit():
            path = ".".join(parts[:end])
            if path == layers or ("*" in layers and keys.matches(layers, path)):
                return Place(path, int(parts[end]), ".".join(parts[end + 1 :]))
    return None


def places(layers: str, state: State) -> dict[str, dict[str, Place]]:
    """Return the keys in blocks and their places, grouped by module."""
    found: dict[str, dict[str, Place]] = {}
    for key in state:
        if (inside := place(layers, key)) is not None:
            found.setdefault(inside.layers, {})[key] = inside
    return found


@dataclass(frozen=True, repr=False)
class insert_block(Operator):
    """Insert a copy of a block between others, which move up.

    A residual block whose output projections are zero adds nothing, so the function is kept, and training
    starts from there (LLaMA Pro, Wu et al. 2024, "block expansion"). If a norm follows the sum, as in the
    first transformers, zeros do not help. The comparison of outputs shows that.

    ``insert_block("layers.3", at=4, zero=["self_attn.o_proj.*", "mlp.down_proj.*"])``

    Attributes:
        copy_from: the block that is copied, by its old number; with stars (``*.layers.3``), one in every
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
        layers, number = self._block
        if not layers or not number.isdigit() or self.at < 0:
            raise RecipeError(
                "insert_block needs a numbered module (layers.3) and at=, a number", key=self.copy_from
            )

    @property
    def _block(self) -> tuple[str, str]:
        """The module whose children are the blocks, and the number of the copied one."""
        layers, _, number = self.copy_from.rpartition(".")
        return layers, number

    def caveat(self, state: State, target: State) -> str:
        # A copy without zeros adds its original's output twice.
        return "" if self.zero else f"{self} adds a block whose outputs are not zero"

    def plan(self, state: State, target: State) -> Plan:
        found = places(self._block[0], state)
        if not found:
            self.matched(f"{self.copy_from}.*", state)
        plan: dict[str, list[Write]] = {}
        for layers, inside in found.items():
            copies = list(self._copies(layers, inside, state))
            plan |= {key: [Write(self._named(each), (key,))] for key, each in inside.items()}
            before = [key for key, each in inside.items() if each.number < self.at]
            beside = before[-1] if before else next(iter(inside))
            plan[beside] = plan[beside] + copies if before else copies + plan[beside]
        return plan

    def _named(self, old: Place) -> str:
        return old.moved(old.number + (old.number >= self.at))

    def _copies(self, layers: str, inside: Mapping[str, Place], state: State) -> Iterator[Write]:
        """Yield what makes the new block of a module."""
        number = self._block[1]
        block = {key: each for key, each in inside.items() if each.number == int(number)}
        last = max(each.number for each in inside.values())
        if not block:
            self.matched(f"{layers}.{number}.*", state)
        if self.at > last + 1:
            raise self.unfit(
                f"{layers}.{number}", f"the last block is {last}, so the new one can be {last + 1} at most"
            )
        tensors = [each.rest for key, each in block.items() if isinstance(state[key], torch.Tensor)]
        zeroed: set[str] = set()
        for pattern in self.zero:
            chosen = keys.select(pattern, tensors)
            if not chosen:
                why = "which the block does not have" + did_you_mean(pattern, tensors)
                raise self.unused(pattern, f"has {python(pattern)} in zero=, {why}")
            zeroed.update(chosen)
        for key, each in block.items():
            make = _zeros if each.rest in zeroed else torch.clone
            yield _copied(key, each.moved(self.at), state, make, self.optim)

    def destination(self, key: str) -> str | None:
        inside = place(self._block[0], key)
        return key if inside is None else self._named(inside)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that the copy is the original except for zeros, and the other blocks are unchanged."""
        layers, number = self._block
        inside = {key: found for key in before if (found := place(layers, key))}
        names = {key: each.moved(self.at) for key, each in inside.items() if each.number == int(number)}

        def others() -> Iterator[str]:
            yield from displaced(before, after, self.destination)
            if len(after) != len(before) + len(names):
                yield f"{len(after)} keys instead of {len(before) + len(names)}"

        def copy() -> Iterator[str]:
            expected = {key: before[key] for key in names}
            for key, value in expected.items():
                zero = any(keys.matches(pattern, inside[key].rest) for pattern in self.zero)
                if zero and isinstance(value, torch.Tensor):
                    expected[key] = torch.zeros_like(value)
            yield from displaced(expected, after, names.get)

        kept = f"{len(self.zero)} patterns zero, the rest bit-equal"
        return [
            Claim.of(f"{self}: other blocks kept", others, "bit for bit"),
            Claim.of(f"{self}: the copy", copy, kept),
        ]


@dataclass(frozen=True, repr=False)
class stack(Operator):
    """Repeat all blocks: of n blocks, new block i is old block ``i mod n``.

    Depth growth for pretraining (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking";
    Du et al. 2024, "Stacking Your Transformers"). It does not keep the function.

    ``stack("layers", times=2)``

    Attributes:
        layers: the module whose children the blocks are; or a glob, and the blocks of each are repeated.
        times: how many times each block is there afterwards; as often as in the model, if it is left out.
        optim: optimizer state of the repeated blocks: ``reset`` starts it anew; ``copy`` repeats it too.
    """

    rounds: ClassVar[bool] = False

    layers: str
    times: int | None = None
    optim: Literal["reset", "copy"] = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times is not None and self.times < 2:
            raise RecipeError("stack: times must be at least 2", key=self.layers)

    def caveat(self, state: State, target: State) -> str:
        return f"{self} repeats blocks"

    def plan(self, state: State, target: State) -> Plan:
        found = places(self.layers, state)
        if not found:
            self.matched(f"{self.layers}.0.*", state)
        plan: dict[str, list[Write]] = {}
        for layers, inside in found.items():
            count, last = _count(inside), list(inside)[-1]
            plan[last] = [Write(last, (last,))]
            for turn in range(1, self._times(layers, inside, target)):
                # A function of its own for each turn: tensors are tied within a turn alone.
                def cloned(tensor: torch.Tensor) -> torch.Tensor:
                    return tensor.clone()

                plan[last] += [
                    _copied(key, each.moved(each.number + turn * count), state, cloned, self.optim)
                    for key, each in inside.items()
                ]
        return plan

    def _times(self, layers: str, inside: Mapping[str, Place], target: State) -> int:
        """Return how many times each block of a module is there afterwards."""
        if self.times is not None:
            return self.times
        # Look keys up one by one: later operators may rename the model's blocks.
        rests = {each.rest for each in inside.values()}
        numbers = itertools.count()
        wanted = next(n for n in numbers if not any(f"{layers}.{n}.{rest}" in target for rest in rests))
        count = _count(inside)
        if wanted % count or wanted < 2 * count:
            raise self.unfit(
                layers, f"there are {count} blocks and the model has {wanted}, which is not a multiple"
            )
        return wanted // count

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that block i is old block ``i mod n``, bit for bit."""
        found = places(self.layers, before)
        counts = {layers: _count(inside) for layers, inside in found.items()}

        def original(key: str) -> str:
            inside = place(self.layers, key)
            if inside is None or inside.layers not in counts:
                return key
            return inside.moved(inside.number % counts[inside.layers])

        def faults() -> Iterator[str]:
            for key, value in after.items():
                if original(key) in before:
                    yield from differing(key, before[original(key)], value)
                else:
                    yield f"{escape(key)} comes from nowhere"
            more = (
                len(inside) * (self._times(layers, inside, target) - 1) for layers, inside in found.items()
            )
            wanted = len(before) + sum(more)
            if len(after) != wanted:
                yield f"{len(after)} keys instead of {wanted}"

        told = " or ".join(map(str, sorted(set(counts.values()))))
        return [Claim.of(f"{self}: block i is block i mod {told}", faults, "bit for bit")]


def _count(inside: Mapping[str, Place]) -> int:
    return 1 + max(each.number for each in inside.values())


def _copied(key: str, name: str, state: State, make: Make, optim: str) -> Write:
    """Return what makes a second tensor, or gives anything else a second name."""
    if not isinstance(state[key], torch.Tensor):
        return Write(name, (key,))
    return Write(name, (key,), make, same_for_moments(torch.clone, optim))


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_zeros(tensor.shape)
