"""Recipe files: the tables of operators, read and written."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest

from . import registry as extensions
from .arguments import toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .base import Operator


def parsed(text: str) -> dict[str, Any]:
    """The content of a recipe file.

    Raises:
        RecipeError: it is not valid TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe file is not valid TOML: {error}") from None


def written(operator: Operator, heading: str = "recipe") -> str:
    """An operator as a table of a recipe file, with an empty line after it."""
    lines = [f"{name} = {toml(value)}" for name, value in operator.table().items()]
    return "\n".join([f"[[{heading}]]", *lines, ""])


def operator_of(table: Mapping[str, Any], number: int) -> Operator:
    """The operator of a table.

    Raises:
        RecipeError: it names no operator, or gives it other arguments than it takes.
    """
    arguments = dict(table)
    name = arguments.pop("op", None)
    kind = extensions.operator(name) if isinstance(name, str) else None
    if kind is None:
        known = extensions.operators()
        near = nearest(name, known, 1) if isinstance(name, str) else []
        what = f"unknown op {escape(name)!r}" if isinstance(name, str) else "op is missing"
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        raise RecipeError(f"operator {number} of the recipe: {what}: {hint}")
    return kind.of_table(arguments)
