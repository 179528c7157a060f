"""The operators `rename`, `strip_prefix`, `add_prefix` and `drop`, which change only keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.keys import matches, nearest
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import displaced

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, repr=False)
class Renaming(Operator):
    """An operator that renames keys. Every tensor stays the same object."""

    rounds: ClassVar[bool] = False
    changes_function: ClassVar[str] = ""

    def named(self, key: str) -> str:
        """Return the new name of a key."""
        raise NotImplementedError

    def chosen(self, state: State) -> list[str]:
        """Return the keys to rename.

        Raises:
            RecipeError: there are none.
        """
        raise NotImplementedError

    def plan(self, state: State, target: State) -> Plan:
        return {key: [Write(self.named(key), (key,))] for key in self.chosen(state)}

    def destination(self, key: str) -> str | None:
        return self.named(key)

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that all tensors are still there, bit for bit, under their new names."""

        def faults() -> Iterator[str]:
            if len(before) != len(after):
                yield f"{len(after)} keys instead of {len(before)}"
            renamed = set(self.chosen(before))
            yield from displaced(before, after, lambda key: self.named(key) if key in renamed else key)

        return [Claim.of(f"{self}: bytes unchanged", faults, f"{len(after)} keys")]


@dataclass(frozen=True, repr=False)
class rename(Renaming):
    """Rename keys.

    Attributes:
        pattern: an exact key or a glob.
        to: the new name, with as many stars as the pattern: each stands for what the pattern's star at the
            same place stood for; or with none. ``rename("net.*", "backbone.*")``.
    """

    pattern: str
    to: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if "*" in self.to:
            alike("rename", self.pattern, self.to)

    def chosen(self, state: State) -> list[str]:
        keys = self.matched(self.pattern, state)
        if all(self.named(key) == key for key in keys):
            raise self.unused(self.pattern, "gives no key another name")
        return keys

    def named(self, key: str) -> str:
        found = stars(self.pattern, key)
        return key if found is None else filled(self.to, found)


@dataclass(frozen=True, repr=False)
class strip_prefix(Renaming):
    """Strip a prefix from every key that has it: ``strip_prefix("module.")``.

    Attributes:
        prefix: whole parts of a key, no glob, with or without the last dot; or a text such as ``net_``.
    """

    prefix: str

    def chosen(self, state: State) -> list[str]:
        keys = [key for key in state if self.named(key) != key]
        if not keys:
            near = nearest(f"{self.prefix}*", state.keys(), 1)
            hint = f"; there is {python(near[0])}" if near else ""
            raise self.unused(self.prefix, f"finds no key that begins with {python(self.prefix)}{hint}")
        return keys

    def named(self, key: str) -> str:
        rest = key.removeprefix(self.prefix)
        inside_a_word = self.prefix[-1:].isalnum() and not rest.startswith(".")  # ``net`` of ``network.fc``
        return key if rest == key or inside_a_word else rest.removeprefix(".") or key


@dataclass(frozen=True, repr=False)
class add_prefix(Renaming):
    """Add a prefix to every key: ``add_prefix("model.")``.

    Attributes:
        prefix: a plain text, with its last dot.
    """

    prefix: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prefix:
            raise RecipeError("add_prefix: the prefix is empty", rule="recipe-unused-op")

    def chosen(self, state: State) -> list[str]:
        return list(state)

    def named(self, key: str) -> str:
        return self.prefix + key


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
            yield from displaced(before, after, lambda key: None if matches(self.pattern, key) else key)

        return [Claim.of(f"{self}: the rest is unchanged", faults, f"{len(after)} keys")]
