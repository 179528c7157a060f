"""Tables whose cells are cut to fit the width."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape, printable

from .fit_text import LEAST, elide, one_column, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rows import Row


NARROWEST = 60

_TIMES = "\N{MULTIPLICATION SIGN}"

_WHOLE = 5000
"""The length up to which a key is always shown whole; longer ones are an attack."""

_PADDING = 2  # tabulate adds this to a header's width


def _table(
    table: Sequence[Row], side: str, width: int, verbosity: int, whole: bool, room: int
) -> tuple[list[str], Sequence[Row]]:
    """Return a header, `room` lines of rows with cut texts below them, and the remaining rows."""
    from tabulate import tabulate

    shown = table[:room]
    headers = ("rule", "key", side, "model")
    cells = _cells(shown, headers, width)
    text = tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True)
    head, underline, *bodies = (line.rstrip() for line in text.split("\n"))
    below = _all_below(shown, headers, cells, width, verbosity, whole, full=True)
    if not whole and verbosity < 2 and len(bodies) + sum(map(len, below)) > room:
        below = _all_below(shown, headers, cells, width, verbosity, whole, full=False)
    lines = [head, underline]
    for place, body in enumerate(bodies):
        if place and len(lines) - 2 + 1 + len(below[place]) > room:
            return lines, table[place:]
        lines += [body, *below[place]]
    return lines, table[len(shown) :]


def _cells(table: Sequence[Row], headers: Sequence[str], width: int) -> list[tuple[str, str, str, str]]:
    """Return the cells of the rows, cut so that they fit the width together."""
    counts = [row.times for row in table]
    keys = [cell(row.pattern) for row in table]
    sides = [cell(row.checkpoint) for row in table], [cell(row.model) for row in table]
    wanted = [
        max(len(key) + len(count) for key, count in zip(keys, counts, strict=True)),
        *(max(map(len, side)) for side in sides),
    ]
    least = [len(header) + _PADDING for header in headers[1:]]
    level = _level(wanted, least, width - max(len(row.rule) for row in table) - 3 * len("  "))
    keys = keys if wanted[0] <= level else elide(keys, level - max(map(len, counts)))
    both = elide([*sides[0], *sides[1]], level)  # together, so that two different sides never look
    return [
        (row.rule, key + count, checkpoint, model)
        for row, key, count, checkpoint, model in zip(
            table, keys, counts, both[: len(table)], both[len(table) :], strict=True
        )
    ]


def _level(wanted: Sequence[int], least: Sequence[int], room: int) -> int:
    """Return the width to cut columns to, so that all fit; no column is narrower than its header."""
    levels = range(max(wanted), LEAST, -1)
    fitting = (
        level
        for level in levels
        if sum(max(min(want, level), header) for want, header in zip(wanted, least, strict=True)) <= room
    )
    return next(fitting, LEAST)


def _all_below(
    table: Sequence[Row],
    headers: Sequence[str],
    cells: Sequence[Sequence[str]],
    width: int,
    verbosity: int,
    whole: bool,
    *,
    full: bool,
) -> list[list[str]]:
    """Return the lines below each row: cut texts in full, if there is room, and the message."""
    return [
        [
            *(_in_full(row, headers, cells[place], width, verbosity, whole) if full else []),
            *_message(row, table[place + 1 : place + 2], width, verbosity),
        ]
        for place, row in enumerate(table)
    ]


def _in_full(
    row: Row, headers: Sequence[str], cells: Sequence[str], width: int, verbosity: int, whole: bool
) -> list[str]:
    """Return the cut texts of a row: the key on its own line if `whole`, the rest wrapped."""
    most = _WHOLE if whole or verbosity > 1 else 4 * width
    _, _, *names = headers
    sides = (("", row.pattern), (f"{names[0]}: ", row.checkpoint), (f"{names[1]}: ", row.model))
    return [
        line
        for (name, text), shown in zip(sides, cells[1:], strict=True)
        if "…" in shown
        for line in _indented(f"{name}{shortened(cell(text), most)}", most if whole and not name else width)
    ]


def _message(row: Row, following: Sequence[Row], width: int, verbosity: int) -> list[str]:
    """Return the row's message, unless the next row has the same."""
    message = _said_of(row)
    if not message or message in map(_said_of, following):
        return []
    return [f"    {line}" for line in _said(message, width - 4, verbosity, hanging="")]


def _said_of(row: Row) -> str:
    return row.message.removeprefix("waived: ")


def _indented(text: str, width: int) -> list[str]:
    """Cut a text from a file into lines of full width."""
    room = width - 4 - len(r"\x3a")
    return [f"    {_harmless(text[start : start + room])}" for start in range(0, len(text), room)]


_LEAST = 24  # the least columns of a detail, and of a name; longer names are wrapped


def cell(text: str) -> str:
    """Escape text from a file for a cell: each character takes one column, and none is a table mark."""
    shown = escape(text, limit=None)
    if not shown.isascii():
        shown = "".join(c if one_column(c) and c not in f"…{_TIMES}" else _code(c) for c in shown)
    return shown if shown == shown.strip(" ") else shown.replace(" ", r"\x20")


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _said(text: str, width: int, verbosity: int, hanging: str = "    ") -> list[str]:
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


def _harmless(line: str) -> str:
    """Escape the start of a line, perhaps made by wrapping, if CI would take it as a command."""
    start = len(line) - len(line.lstrip())
    return f"{line[:start]}\\x3a{line[start + 1 :]}" if line.startswith("::", start) else line
