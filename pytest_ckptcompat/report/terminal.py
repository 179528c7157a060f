"""Render a report as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.escape import printable

from .advice_text import advice_lines
from .colours import paint
from .fit_text import (
    LEAST,
    PADDING,
    cell,
    elide,
    indented,
    shortened,
    tabulated,
    wrapped,
)
from .rows import Row, rows, stage_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_ckptcompat.core.findings import Promise, Stage
    from pytest_ckptcompat.core.rules import Severity

    from .facts import Facts

WHERE = "-vv shows all, --ckpt-report json:PATH keeps it"

NARROWEST = 60


class View(NamedTuple):
    """How much of a report is shown.

    Attributes:
        width: the columns of the terminal.
        verbosity: 0, 1 or 2.
        whole: whether a cut key is shown whole below its row.
        where: how the user can see what was cut.
    """

    width: int
    verbosity: int
    whole: bool
    where: str


def render(
    report: Facts,
    width: int = 80,
    verbosity: int = 0,
    *,
    color: bool = False,
    where: str = WHERE,
    table: str = "",
    whole: bool = False,
) -> str:
    """Render the report.

    Args:
        report: the report.
        width: the columns of the terminal, at least 60. Only the verdict, recipes to paste and, with `whole`,
            keys may be longer.
        verbosity: 0 or less shows under 60 lines plus a long suggestion, 1 about 250, 2 everything.
        color: whether to use ANSI colours.
        where: how the user can see what was cut.
        table: the name of the tables of operators in the user's TOML file, such as ``check.recipe``; a
            suggestion is then given as TOML.
        whole: show a cut key whole below its row, for when nobody can widen the terminal.
    """
    view = View(max(width, NARROWEST), max(verbosity, 0), whole, where)
    advice = advice_lines(report, view.width, table)
    outcomes = (("promise", report.promises), ("stage", stage_rows(report.stages)))
    after = [line for name, each in outcomes for line in _listed(name, each, view)]
    taken = min(len(advice), _ADVICE) + len(after)
    lines = [printable(report.verdict), *_findings(report, view, taken), *advice, *after]
    return "\n".join(paint(lines, report) if color else lines)


_MOST_LINES = {0: 58, 1: 250}

_ADVICE = 12
"""The lines that findings leave free for a suggestion. A longer one is not cut and lengthens the report."""

_TITLES: dict[Severity, str] = {"error": "", "warn": "warnings:", "off": "waived:"}

_LEAST_LINES: dict[Severity, int] = {"error": 16, "warn": 8, "off": 6}


def _findings(report: Facts, view: View, taken: int) -> list[str]:
    """Return a table for each severity; if room is short, warnings and waivers get only a few lines."""
    found = report.untold
    tables = [(severity, rows(f for f in found if f.severity == severity)) for severity in _TITLES]
    tables = [(severity, table) for severity, table in tables if table]
    room = _MOST_LINES.get(view.verbosity, 10**9) - 1 - taken
    sections: list[list[str]] = []
    while tables:
        severity, table = tables.pop()  # the least important first; the others get the rest of the room
        others = sum(_lines_wanted(other) for _, other in tables)
        title = ["", *filter(None, [_TITLES[severity]])]
        most = max(room - others, _LEAST_LINES[severity]) - len(title)
        sections.append([*title, *_section(table, report.side, view, most)])
        room -= len(sections[-1])
    return [line for section in reversed(sections) for line in section]


def _lines_wanted(table: Sequence[Row]) -> int:
    return 5 + sum(2 if row.message else 1 for row in table)


def _section(table: Sequence[Row], side: str, view: View, room: int) -> list[str]:
    """Return findings about keys as a table and the others as sentences, in about `room` lines."""
    sentences = [row for row in table if not (row.pattern or row.checkpoint or row.model)]
    about_keys = [row for row in table if row.pattern or row.checkpoint or row.model]
    room -= 1  # for the line that counts what was cut
    lines: list[str] = []
    cut: list[Row] = []
    for row in sentences:
        text = f"{row.rule}: {row.message}".removesuffix(": ")
        said = [] if cut else wrapped(text, view.width, view.verbosity, hanging="    ")
        if cut or (lines and len(lines) + len(said) > room // 2):
            cut.append(row)
        else:
            lines += said
    if about_keys:
        tabled, rest = _table(about_keys, side, view, max(room - len(lines) - 3, 1))
        lines = [*tabled, *[""][: len(lines)], *lines]
        cut += rest
    if cut:
        findings = sum(len(row.keys) for row in cut)
        in_rows = f" in {len(cut):,} rows" if findings > len(cut) else ""
        lines += textwrap.wrap(f"... {findings:,} more findings{in_rows}: {view.where}", view.width)
    return lines


_LEAST_DETAIL = 24
"""The least columns of a detail, and of a name; longer names are wrapped."""


def _listed(head: str, outcomes: Iterable[Promise | Stage], view: View) -> list[str]:
    """Return promises or stages as a table under a heading of that name."""
    table = [(printable(each.name), each.status, each.detail) for each in outcomes]
    if not table:
        return []
    room = max(view.width - len("unchecked") - 2 * len("  "), 2 * _LEAST_DETAIL)
    widest = max(len(head) + PADDING, *(len(name) for name, _, _ in table))
    name_room = min(widest, room - _LEAST_DETAIL)
    cells = [
        (
            name if len(name) <= name_room else "\n".join(wrapped(name, name_room, 1, hanging="  ")),
            status,
            "\n".join(wrapped(detail, room - name_room, view.verbosity)),
        )
        for name, status, detail in table
    ]
    return ["", *tabulated((head, "status", "detail"), cells)]


# -- the table of keys --------------------------------------------------------------------------------------

_WHOLE = 5000
"""The length up to which a key is always shown whole; longer ones are an attack."""


def _table(table: Sequence[Row], side: str, view: View, room: int) -> tuple[list[str], Sequence[Row]]:
    """Return a header, `room` lines of rows with cut texts below them, and the remaining rows."""
    shown = table[:room]
    headers = ("rule", "key", side, "model")
    cells = _cells(shown, headers, view.width)
    head, underline, *bodies = tabulated(headers, cells)
    messages = [_message(row, shown[place : place + 1], view) for place, row in enumerate(shown, 1)]
    below = [_in_full(row, side, cut, view) + m for row, cut, m in zip(shown, cells, messages, strict=True)]
    if not view.whole and view.verbosity < 2 and len(bodies) + sum(map(len, below)) > room:
        below = messages
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
    least = [len(header) + PADDING for header in headers[1:]]
    level = _level(wanted, least, width - max(len(row.rule) for row in table) - 3 * len("  "))
    keys = keys if wanted[0] <= level else elide(keys, level - max(map(len, counts)))
    both = elide([*sides[0], *sides[1]], level)  # together, so that two different sides never look alike
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


def _in_full(row: Row, side: str, cells: Sequence[str], view: View) -> list[str]:
    """Return the cut texts of a row: the key on its own line if it is wanted whole, the rest wrapped."""
    most = _WHOLE if view.whole or view.verbosity > 1 else 4 * view.width
    texts = (("", row.pattern), (f"{side}: ", row.checkpoint), ("model: ", row.model))
    return [
        line
        for (name, text), shown in zip(texts, cells[1:], strict=True)
        if "…" in shown
        for line in indented(
            f"{name}{shortened(cell(text), most)}", most if view.whole and not name else view.width
        )
    ]


def _message(row: Row, following: Sequence[Row], view: View) -> list[str]:
    """Return the row's message, unless the next row has the same."""
    message = _said_of(row)
    if not message or message in map(_said_of, following):
        return []
    return [f"    {line}" for line in wrapped(message, view.width - 4, view.verbosity)]


def _said_of(row: Row) -> str:
    return row.message.removeprefix("waived: ")
