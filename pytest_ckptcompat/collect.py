"""``ckptcompat.toml``: the gate of a model repository without a line of test code."""

from __future__ import annotations

import re
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from .case import Case, Named
from .errors import RecipeError
from .session import CASE, PATHS, named
from .sources import ids
from .waivers import allow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADING = re.compile(r"^[ \t]*\[\[[ \t]*check[ \t]*\]\]", re.MULTILINE)


class CheckFile(pytest.File):
    """The file; each ``[[check]]`` of it is a test, or one for each checkpoint."""

    def collect(self) -> Iterator[CheckItem]:
        """The tests that the file declares.

        Raises:
            pytest.Collector.CollectError: it is no TOML, or a table is ill-formed; the text names the line.
        """
        text = self.path.read_text(encoding="utf-8")
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self.CollectError(f"{self.path}: {error}") from None
        for key in content:
            if key != "check":
                raise self.CollectError(f"{self.path}: unknown {key!r}: every table is a [[check]]")
        lines = [text.count("\n", 0, found.start()) + 1 for found in _HEADING.finditer(text)]
        tables = content.get("check", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self.CollectError(f"{self.path}: write [[check]], not [check]")
        names: set[str] = set()
        for number, table in enumerate(tables):
            line = lines[number] if len(lines) == len(tables) else 1
            try:
                name, case = _declared(table, number)
                if name in names:
                    raise ValueError(f"there are two checks called {name!r}")
            except ValueError as error:
                raise self.CollectError(f"{self.path}:{line}: [[check]]: {error}") from None
            names.add(name)
            yield from self._items(name, case, line)

    def _items(self, name: str, case: Case, line: int) -> Iterator[CheckItem]:
        alone = CheckItem.from_parent(self, name=name, case=case, paths=[], line=line)
        paths = named(case, alone)
        if not paths or (len(paths) == 1 and len(case.ckpt) == 1):
            alone.stash[PATHS] = paths
            yield alone
            return
        for path, identity in zip(paths, ids(paths), strict=True):
            yield CheckItem.from_parent(self, name=f"{name}[{identity}]", case=case, paths=[path], line=line)


class CheckItem(pytest.Item):
    """One checkpoint of one ``[[check]]``: the plugin checks it before its body runs."""

    def __init__(self, *, case: Case, paths: list[str], line: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.stash[CASE] = case
        self.stash[PATHS] = paths
        self._line = line

    def setup(self) -> None:
        """Make the modules beside the file importable, as they are for a test file."""
        folder = str(self.path.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)

    def runtest(self) -> None:
        """Nothing: the check is all there is."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the table starts."""
        return self.path, self._line - 1, self.name


def _declared(table: dict[str, Any], number: int) -> tuple[str, Case]:
    """The name and the case of a table.

    Raises:
        ValueError: a key is unknown, missing or of a wrong type.
    """
    table = dict(table)
    name = table.pop("name", f"check-{number + 1}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name wants a text, not {name!r}")
    if isinstance(table.get("recipe"), list):
        table["recipe"] = _recipe(table["recipe"])
    if "allow" in table:
        table["allow"] = [_waiver(entry) for entry in _tables("allow", table["allow"])]
    if isinstance(table.get("optimizer"), str):
        table["optimizer"] = Named(table["optimizer"])
    return name, Case.of(**table)


def _recipe(tables: Any) -> Any:
    from .recipe import Recipe

    try:
        return Recipe.from_tables(_tables("recipe", tables))
    except RecipeError as error:
        raise ValueError(f"recipe: {error}") from None


def _waiver(entry: dict[str, Any]) -> Any:
    unknown = set(entry) - {"rule", "key", "reason", "until"}
    if unknown:
        raise ValueError(f"allow: unknown {min(unknown)!r}: known are rule, key, reason, until")
    if "rule" not in entry or "reason" not in entry:
        raise ValueError("allow wants at least rule and reason")
    return allow(entry["rule"], entry.get("key", "*"), reason=entry["reason"], until=entry.get("until"))


def _tables(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{name} wants tables: write [[check.{name}]]")
    return value
