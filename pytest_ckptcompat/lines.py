"""Where in ``ckptcompat.toml`` a table or a key stands: tomllib does not tell."""

from __future__ import annotations

import re

_HEADING = re.compile(r"\s*\[{1,2}\s*([\w.-]+)\s*\]")


class Lines:
    """The lines of a file, looked through for its tables and their keys.

    Args:
        text: valid TOML.
        tables: how many ``[[check]]`` it holds. Where another number of headings is found, as where a text of
            several lines has some, only the first line is ever named.
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
        """The line of a key, or of the table in which it would be, counted from 1.

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
                return self._key(start, name)  # written as a list of tables in braces
            start = found[place]
        return self._key(start, key) if key else start

    def top(self, key: str) -> int:
        """The line of a table or key outside all checks."""
        heads = [number for number, name in self._headings if name.partition(".")[0] == key]
        return heads[0] if heads else self._key(0, key)

    def _key(self, start: int, key: str) -> int:
        """The line of a key of the table whose heading is in line `start`, or else that line."""
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
        for number, line in enumerate(self._lines[start:], start + 1):
            if _HEADING.match(line):
                break
            if wanted.match(line):
                return number
        return max(start, 1)
