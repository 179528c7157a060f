"""``ckptcompat.toml``: checks for a model repository without any test code."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.checks.waivers import allow
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.recipes.recipe_text import TODAY, locks_of_releases

from .checkpoints import ids
from .session import CHECKS, CheckItem, Declared, named, resolved, shelf

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADING = re.compile(r"\s*\[{1,2}\s*([\w.-]+)\s*\]")


class Lines:
    """The lines of a TOML file, to find the lines of its tables and keys.

    Args:
        text: valid TOML.
        tables: how many ``[[check]]`` tables it has. If another number of headings is found, for example
            because a multi-line text contains some, every answer is the first line.
    """

    def __init__(self, text: str, tables: int) -> None:
        self._lines = text.splitlines()
        self._headings = [
            (number, found[1])
            for number, line in enumerate(self._lines, 1)
            if (found := _HEADING.match(line))
        ]
        checks = [number for number, name in self._headings if name == "check"]
        self._checks = checks if len(checks) == tables else []

    def of(self, check: int, inner: tuple[str, int] | None = None, key: str = "") -> int:
        """Return the line of a key, or of the table that would contain it, counted from 1.

        Args:
            check: which ``[[check]]``, from 0.
            inner: which table inside it: (``"recipe"``, 0) is its first ``[[check.recipe]]``.
            key: the key; ``""`` for the table itself.
        """
        if not self._checks:
            return 1
        start = self._checks[check]
        if inner is not None:
            name, place = inner
            end = next((line for line in self._checks if line > start), len(self._lines) + 1)
            found = [line for line, each in self._headings if start < line < end and each == f"check.{name}"]
            if place >= len(found):
                return self._key(start, name)  # written as a list of inline tables
            start = found[place]
        return self._key(start, key) if key else start

    def top(self, key: str) -> int:
        """Return the line of a table or key outside all checks."""
        heads = [number for number, name in self._headings if name.partition(".")[0] == key]
        return heads[0] if heads else self._key(0, key)

    def _key(self, start: int, key: str) -> int:
        """Return the line of a key in the table with its heading in line `start`, or else that line."""
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
        for number, line in enumerate(self._lines[start:], start + 1):
            if _HEADING.match(line):
                break
            if wanted.match(line):
                return number
        return max(start, 1)


class _MisstatedError(ValueError):
    """Raised for a fault in a table; says where: an inner table such as ``("recipe", 0)``, and a key."""

    def __init__(self, text: str, table: dict[str, Any], inner: tuple[str, int] | None = None) -> None:
        super().__init__(text)
        self.inner = inner
        said = re.findall(r"\w+", re.sub(r"^allow\(.*?\): ", "", text))
        self.key = next((word for word in said[:7] if word in table), "")


class CheckFile(pytest.File):
    """The file; each ``[[check]]`` is a test, or one test for each checkpoint."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the tests that the file declares.

        Raises:
            pytest.Collector.CollectError: the file is not valid TOML, has no check, or has unknown tables.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            content = tomllib.loads(text)
        except UnicodeDecodeError:
            raise self.CollectError(f"{self.nodeid}: not UTF-8 text: save it as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise self.CollectError(f"{self.nodeid}: not valid TOML: {error}") from None
        if not content.get("check", content):
            raise self.CollectError(f"{self.nodeid}: there is no [[check]], so nothing would be checked")
        tables = content.get("check", [])
        lines = Lines(text, len(tables) if isinstance(tables, list) else 0)
        for key in content:
            if key != "check":
                hint = f"write [[check.{key}]], below its [[check]]" if key in _INNER else _EVERY
                raise self.CollectError(f"{self.nodeid}:{lines.top(key)}: unknown {key!r}: {hint}")
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.CollectError(f"{self.nodeid}:{lines.top('check')}: write [[check]], not [check]")
        names: set[str] = set()
        for number, table in enumerate(tables):
            try:
                name, case, releases = _declared(table, number)
                if name in names:
                    raise _MisstatedError(f"name: there are two checks called {name!r}", table)
            except _MisstatedError as error:
                taken = _name(table, number) in names
                yield self._misstated(error, {} if taken else table, number, lines)
                continue
            names.add(name)
            if releases:
                yield from self._of_releases(name, case, releases, lines.of(number, key="releases"))
            else:
                yield from self._items(name, case, lines.of(number))

    def _misstated(
        self, error: _MisstatedError, table: dict[str, Any], number: int, lines: Lines
    ) -> CheckItem:
        line = lines.of(number, error.inner, error.key)
        heading = f"check.{error.inner[0]}" if error.inner else "check"
        fault = f"{self.nodeid}:{line}: [[{heading}]]: {error}"
        return CheckItem.from_parent(self, name=public(_name(table, number)), line=line, fault=fault)

    def _of_releases(
        self, name: str, case: CheckArguments, releases: str, line: int
    ) -> Iterator[pytest.Item]:
        """Yield a test for each release, from its lock, and one that compares the last with today's model."""
        (path, *_) = resolved(releases, CheckItem.from_parent(self, name=name, line=line))
        try:
            locks = locks_of_releases(path)
        except RecipeError as error:
            fault = f"{self.nodeid}:{line}: [[check]]: {error}"
            yield CheckItem.from_parent(self, name=name, line=line, fault=fault)
            return
        shelf(self.config).kept.update(locks.values())
        upgraded = replace(case, recipe=str(Path(path).absolute()))  # it is resolved again from this file
        for release, lock in locks.items():
            checks = [Declared(upgraded, lock)]
            yield CheckItem.from_parent(self, name=f"{name}[{release}]", checks=checks, line=line)
        checks = [Declared(case, lock, drift=True)]
        yield CheckItem.from_parent(self, name=f"{name}[{TODAY}]", checks=checks, line=line)

    def _items(self, name: str, case: CheckArguments, line: int) -> Iterator[CheckItem]:
        alone = CheckItem.from_parent(self, name=name, line=line)
        paths = named(case, alone)
        if not paths or (len(paths) == 1 and len(case.ckpt) == 1):
            alone.stash[CHECKS] = [Declared(case, paths[0] if paths else None)]
            yield alone
            return
        for path, identity in zip(paths, ids(paths), strict=True):
            checks = [Declared(case, path)]
            yield CheckItem.from_parent(self, name=f"{name}[{identity}]", checks=checks, line=line)


def _declared(table: dict[str, Any], number: int) -> tuple[str, CheckArguments, str]:
    """Return the name and the case of a table, and its releases file, if any.

    Raises:
        _MisstatedError: a key is unknown, missing or of a wrong type.
    """
    arguments = {key: value for key, value in table.items() if key not in ("name", "releases")}
    name = _name(table, number)
    if name != table.get("name", name):
        raise _MisstatedError(f"name wants a text of one line, not {table['name']!r}", table)
    for inner in _INNER:
        value = table.get(inner, [])
        tables = isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
        if not tables and not (inner == "recipe" and isinstance(value, str)):
            raise _MisstatedError(f"{inner} wants tables: write [[check.{inner}]]", table)
    if isinstance(table.get("recipe"), list):
        arguments["recipe"] = _recipe(table["recipe"])
    if "allow" in table:
        arguments["allow"] = [_waiver(entry, place) for place, entry in enumerate(table["allow"])]
    try:
        return public(name), CheckArguments.of(**arguments), _releases(table)
    except ValueError as error:
        raise _MisstatedError(str(error), table) from None


def _releases(table: dict[str, Any]) -> str:
    """Return the path of the releases file, or ``""`` if the table names none.

    Raises:
        ValueError: it is not a path, or another key also says what is checked.
    """
    releases = table.get("releases", "")
    if not isinstance(releases, str) or ("releases" in table and not releases.strip()):
        raise ValueError(f"releases wants the path of a releases file, not {releases!r}")
    for other in ("ckpt", "recipe", "loader"):
        if releases and other in table:
            raise ValueError(f"{other} beside releases: the releases file names the locks and the recipes")
    return releases


def _name(table: dict[str, Any], number: int) -> str:
    """Return the name of a table, or one made from its number."""
    name = table.get("name")
    return name if isinstance(name, str) and name.isprintable() and name else f"check-{number + 1}"


_INNER = ("recipe", "allow")

_WAIVER = ("rule", "key", "reason", "until")

_EVERY = "every table is a [[check]]"


def _recipe(tables: list[dict[str, Any]]) -> Any:
    from pytest_ckptcompat.recipes.recipe import Recipe

    recipe = Recipe()
    for count, table in enumerate(tables, 1):
        try:
            recipe = Recipe.from_tables(tables[:count])
        except RecipeError as error:
            raise _MisstatedError(str(error), table, ("recipe", count - 1)) from None
    return recipe


def _waiver(entry: dict[str, Any], place: int) -> Any:
    unknown = [key for key in entry if key not in _WAIVER]
    try:
        if unknown:
            near = difflib.get_close_matches(unknown[0], _WAIVER, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_WAIVER)}"
            raise ValueError(f"allow: unknown {unknown[0]!r}: {hint}")
        if "rule" not in entry or "reason" not in entry:
            raise ValueError("allow wants at least rule and reason")
        return allow(entry["rule"], entry.get("key", "*"), reason=entry["reason"], until=entry.get("until"))
    except ValueError as error:
        raise _MisstatedError(str(error), entry, ("allow", place)) from None
