"""Fit texts to a width: keys are cut, sentences wrapped, cells escaped to one column for each character."""

from __future__ import annotations

import textwrap
import unicodedata
from itertools import count
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import code, escape, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TIMES = "\N{MULTIPLICATION SIGN}"

LEAST = 10
"""The least room in which anything sensible can be shown."""


def elide(texts: Sequence[str], room: int) -> list[str]:
    """Cut texts to at most `room` characters each (at least `LEAST`), with ``…`` for what was cut.

    Different texts stay different: if cutting the middle would hide the difference, the part after the common
    beginning is kept, and if that is not enough, the texts are numbered, ``…[2]…``.
    No text may contain ``…`` itself.
    """
    room = max(room, LEAST)
    short = {text: _without_middle(text, room) for text in texts}
    for alike in _clashes(short):
        start = _common(alike)
        short.update((text, _with_window(text, start, room)) for text in alike)
    taken = set(short.values())
    numbers = count(1)
    for text in [text for alike in _clashes(short) for text in alike]:
        short[text] = next(form for n in numbers if (form := _numbered(text, n, room)) not in taken)
    return [short[text] for text in texts]


def shortened(text: str, most: int) -> str:
    """Cut a text to about `most` characters, with the number of characters cut from its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…(+{len(text) - most} characters)…{text[len(text) - (most - most // 2) :]}"


def _common(texts: Sequence[str]) -> int:
    """Return the length of the common beginning of the texts."""
    first, last = min(texts), max(texts)  # all other texts sort between these two
    unequal = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(unequal, len(first))


def _clashes(short: dict[str, str]) -> Iterator[list[str]]:
    """Return groups of texts that would look the same."""
    seen: dict[str, list[str]] = {}
    for text, shown in short.items():
        seen.setdefault(shown, []).append(text)
    return (texts for texts in seen.values() if len(texts) > 1)


def _without_middle(text: str, room: int) -> str:
    # The end of a key says more than its beginning: which projection, weight or bias.
    return text if len(text) <= room else _joined(text, room // 4, "…", room)


def _with_window(text: str, start: int, room: int) -> str:
    head = room // 5
    window = text[start : start + room // 3]
    tail = room - head - len(window) - 2
    if start + len(window) + tail >= len(text):
        return _joined(text, head, "…", room)
    return _joined(text, head, f"…{window}…", room)


def _numbered(text: str, number: int, room: int) -> str:
    middle = f"…[{number}]…"
    return _joined(text, max(min(room // 4, room - len(middle)), 0), middle, room)


def _joined(text: str, head: int, middle: str, room: int) -> str:
    """Return the beginning, the middle, and as much of the end as fits."""
    tail = max(room - head - len(middle), 0)
    return f"{text[:head]}{middle}{text[len(text) - tail :]}"


def cell(text: str) -> str:
    """Escape text from a file for a cell: each character takes one column, and none is a table mark."""
    shown = escape(text, limit=None)
    if not shown.isascii():
        shown = "".join(c if one_column(c) and c not in f"…{TIMES}" else code(c) for c in shown)
    return shown if shown == shown.strip(" ") else shown.replace(" ", r"\x20")


def wrapped(text: str, width: int, verbosity: int, hanging: str = "") -> list[str]:
    """Wrap a sentence to lines of at most `width` columns; at verbosity 0, at most three."""
    text = printable(text)
    if not (text.isascii() or all(map(one_column, text))):
        width //= 2  # room for characters that take two columns
    if "::" in text:
        width -= len(r"\x3a")
    lines = textwrap.wrap(
        text, width, subsequent_indent=hanging, max_lines=None if verbosity else 3, placeholder=" ..."
    )
    return list(map(_harmless, lines))


def indented(text: str, width: int) -> list[str]:
    """Cut an escaped text into indented lines of full width."""
    room = width - 4 - len(r"\x3a")
    return [f"    {_harmless(text[start : start + room])}" for start in range(0, len(text), room)]


def _harmless(line: str) -> str:
    """Escape the start of a line, perhaps made by wrapping, if CI would take it as a command."""
    start = len(line) - len(line.lstrip())
    return f"{line[:start]}\\x3a{line[start + 1 :]}" if line.startswith("::", start) else line


def one_column(character: str) -> bool:
    """Return whether every terminal shows the character in exactly one column."""
    if character.isascii():
        return character.isprintable()
    return (
        character.isprintable()
        and unicodedata.east_asian_width(character) not in "WF"
        and unicodedata.category(character) not in ("Mn", "Me", "Mc")
    )


# -- tables -------------------------------------------------------------------------------------------------

PADDING = 2  # tabulate adds this to a header's width


def tabulated(
    headers: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] | None = None
) -> list[str]:
    """Return the lines of a table of texts, each cell in one or several lines."""
    from tabulate import tabulate

    text = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align)
    return text.split("\n")


def columns_of(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Return the width of these columns of a table, with the space that separates them from others."""
    return sum(
        max(len(header) + PADDING, *map(len, cells)) + len("  ")
        for header, *cells in zip(headers, *rows, strict=True)
    )
