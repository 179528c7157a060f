"""Read and write the tables of recipe files and releases files."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import nearest
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.files.folders import meant_by
from pytest_ckptcompat.files.paths import display, unreachable

from . import registry
from .arguments import toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .base import Operator

TODAY = "today"
"""A reserved name: the check of today's model has it."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    kind = registry.operator(name) if isinstance(name, str) else None
    if kind is None:
        known = registry.operators()
        near = nearest(name, known, 1) if isinstance(name, str) else []
        what = f"unknown op {escape(name)!r}" if isinstance(name, str) else "op is missing"
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        raise RecipeError(f"operator {number} of the recipe: {what}: {hint}")
    return kind.of_table(arguments)


def check_names(names: Sequence[str]) -> None:
    """Raise RecipeError if names are not unique, or can't be part of a test's name.

    Raises:
        RecipeError: a name is ill-formed or appears twice, or there are no names.
    """
    if not names:
        raise RecipeError("there is no release: make one with ckptcompat release")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == TODAY:
            raise RecipeError(
                f"{escape(public(str(name)), 60)!r} is not a name of a release: use letters and digits, then "
                f"also dots, dashes and underscores, but not {TODAY!r}"
            )
        if name in names[:number]:
            raise RecipeError(f"there are two releases called {name!r}")


def locks_of_releases(path: str) -> dict[str, str]:
    """Return name -> path of the lock, for every release in a file. No lock is read.

    Raises:
        RecipeError: the file can't be read, or is not a releases file. The message names it.
    """
    content = read(path)
    try:
        if "release" not in content:
            raise RecipeError("it has no [[release]]")
        folder = os.path.dirname(path)  # noqa: PTH120  # "" stays ""
        return {each["name"]: os.path.join(folder, each["lock"]) for each in release_tables(content)}  # noqa: PTH118
    except RecipeError as error:
        raise error.inside(display(path)) from None


def release_tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ``[[release]]`` tables of a releases file, with ``name`` and ``lock`` validated.

    Raises:
        RecipeError: a table is ill-formed.
    """
    tables = content["release"]
    if other := [key for key in content if key != "release"]:
        raise RecipeError(f"unknown {escape(other[0])!r}: a releases file holds [[release]] tables alone")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RecipeError("releases are a list of tables: write [[release]]")
    for number, table in enumerate(tables, 1):
        place = f"release {number}"
        if unknown := [key for key in table if key not in ("name", "lock", "recipe")]:
            raise RecipeError(f"{place}: unknown {escape(unknown[0])!r}: known are name, lock, recipe")
        if absent := [key for key in ("name", "lock") if key not in table]:
            raise RecipeError(f"{place}: {absent[0]} is missing")
        _check_lock(table["lock"], place)
    check_names([table["name"] for table in tables])
    return tables


def _check_lock(lock: Any, place: str) -> None:
    inside = isinstance(lock, str) and lock.strip() != "" and "://" not in lock
    parts = PurePosixPath(lock.replace("\\", "/")).parts if inside else ()
    if not parts or ".." in parts or PurePosixPath(lock).is_absolute() or PureWindowsPath(lock).drive:
        shown = escape(str(lock), 80)
        raise RecipeError(
            f"{place}: lock={shown!r} is not a file in the folder of the releases file, or below it"
        )
