"""Make text from files safe to print."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def escape(text: str, limit: int | None = 240) -> str:
    r"""Return text from a file on one line, in visible characters only.

    Control and format characters (newlines, escape sequences, marks that reverse the writing direction or
    join the character before, lone surrogates) become ``\n``, ``\x1b``, ``\u202e``, and a backslash is
    doubled, so that two different texts never look the same. Commands to a CI system (``::error::`` at the
    start of a line, ``##[group]``, ``##vso[...]``) are broken up.

    Args:
        text: any text.
        limit: the largest length of the result, at least 40. The middle of a longer text is replaced by the
            number of characters left out. None: no limit.
    """
    short = limit is None or len(text) <= limit
    if short and text.isascii() and text.isprintable() and not _UNSAFE.search(text):
        return text
    room = len(text) * _WIDEST if limit is None else max(limit, 40)
    whole = _fill(text, range(len(text)), room)
    return "".join(whole if len(whole) == len(text) else _cut(text, room))


def printable(text: str) -> str:
    """Return a text of this package on one line.

    Such texts should be safe already. In case one is not, unprintable characters are escaped.
    """
    line = " ".join(text.split())
    if line.isprintable() and not _COMMAND.search(line):
        return line
    line = "".join(character if character.isprintable() else code(character) for character in line)
    return _COMMAND.sub(lambda mark: _hex(mark[0]), line)


def listed(texts: Sequence[str], most: int) -> str:
    """Return the first texts, separated by commas, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _hex(character: str) -> str:
    return f"\\x{ord(character):02x}"


_COMMAND = re.compile(r"^:(?=:)|#(?=#)")

_UNSAFE = re.compile(r"^ *::|##|\\")

_WIDEST = len(r"\U0010ffff")


def _visible(text: str, place: int) -> str:
    character = text[place]
    if character == "\\":
        return r"\\"
    if character == "#" and text[place + 1 : place + 2] == "#":
        return _hex(character)
    if character == ":" and text[place + 1 : place + 2] == ":" and not text[:place].strip():
        return _hex(character)
    if character.isprintable() and unicodedata.category(character) not in ("Mn", "Me"):
        return character
    return code(character)


def code(character: str) -> str:
    """Return the escape sequence of a character."""
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, room: int) -> list[str]:
    """Return both ends of a long text, with the number of characters left out between them."""
    room -= len(f"…(+{len(text)} characters)…")
    head = _fill(text, range(len(text)), room - room // 3)
    tail = _fill(text, reversed(range(len(text))), room // 3)[::-1]
    return [*head, f"…(+{len(text) - len(head) - len(tail)} characters)…", *tail]


def _fill(text: str, places: Iterable[int], room: int) -> list[str]:
    """Return as many escaped characters as there is room for."""
    taken: list[str] = []
    for place in places:
        shown = _visible(text, place)
        room -= len(shown)
        if room < 0:
            break
        taken.append(shown)
    return taken
