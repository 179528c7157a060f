"""Prefixes that wrappers put before every key: taken away, or put there."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ckptcompat.errors import RecipeError
from pytest_ckptcompat.keys import nearest

from .arguments import python
from .renaming import Renaming

if TYPE_CHECKING:
    from .plan import State


@dataclass(frozen=True, repr=False)
class strip_prefix(Renaming):
    """Take a prefix from every key that has it: ``strip_prefix("module.")``.

    Attributes:
        prefix: a plain text, no glob; its last dot may be left out.
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
        return (key.removeprefix(self.prefix).removeprefix(".") if key.startswith(self.prefix) else "") or key


@dataclass(frozen=True, repr=False)
class add_prefix(Renaming):
    """Put a prefix before every key: ``add_prefix("model.")``.

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
