"""Read and write the operator tables of recipe files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.files.folders import meant_by
from pytest_ckptcompat.files.paths import unreachable

from . import registry as extensions
from .arguments import toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .base import Operator


def read(path: str) -> dict[str, Any]:
    """Return the content of a recipe file, or of a releases file.

    Raises:
        RecipeError: it can't be read, or is not TOML; the text names the file.
    """
    shown = escape(public(path))
    try:
        return parsed(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{unreachable(path, error)}{meant_by(path)}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{shown}: the recipe file is not UTF-8 text") from None
    except RecipeError as error:
        raise error.inside(shown) from None


def parsed(text: str) -> dict[str, Any]:
    """Parse the TOML of a recipe file.

    Raises:
        RecipeError: the text is not valid TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe file is not valid TOML: {error}") from None


def written(operator: Operator, heading: str = "recipe") -> str:
    """Return an operator as a table of a recipe file, followed by an empty line."""
    lines = [f"{name} = {toml(value)}" for name, value in operator.table().items()]
    return "\n".join([f"[[{heading}]]", *lines, ""])


def operator_of(table: Mapping[str, Any], number: int) -> Operator:
    """Make the operator of a table.

    Raises:
        RecipeError: the table names no operator, or its arguments are wrong.
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
