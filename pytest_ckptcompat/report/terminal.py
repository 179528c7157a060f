"""Render a report as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import printable
from pytest_ckptcompat.report.colours import paint
from pytest_ckptcompat.report.tables import _LEAST, NARROWEST, _said, _table

from .advice_text import advice_lines
from .rows import Row, rows, stage_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_ckptcompat.core.findings import Promise, Stage
    from pytest_ckptcompat.core.rules import Severity

    from .facts import Facts

WHERE = "-vv shows all, --ckpt-report json:PATH keeps it"


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
    width, verbosity = max(width, NARROWEST), max(verbosity, 0)
    advice = advice_lines(report, width, table)
    outcomes = (("promise", report.promises), ("stage", stage_rows(report.stages)))
    after = [line for name, each in outcomes for line in _listed(name, each, width, verbosity)]
    taken = min(len(advice), _ADVICE) + len(after)
    findings = _findings(report, width, verbosity, whole, taken, where)
    lines = [printable(report.verdict), *findings, *advice, *after]
    return "\n".join(paint(lines, report) if color else lines)


_MOST_LINES = {0: 58, 1: 250}

_ADVICE = 12
"""The lines that findings leave free for a suggestion. A longer one is not cut and lengthens the report."""

_TITLES: dict[Severity, str] = {"error": "", "warn": "warnings:", "off": "waived:"}

_LEAST_LINES: dict[Severity, int] = {"error": 16, "warn": 8, "off": 6}


def _findings(report: Facts, width: int, verbosity: int, whole: bool, taken: int, where: str) -> list[str]:
    """Return a table for each severity; if room is short, warnings and waivers get only a few lines."""
    found = report.untold
    tables = [(severity, rows(f for f in found if f.severity == severity)) for severity in _TITLES]
    tables = [(severity, table) for severity, table in tables if table]
    room = _MOST_LINES.get(verbosity, 10**9) - 1 - taken
    sections: list[list[str]] = []
    while tables:
        severity, table = tables.pop()  # the least important first; the others get the rest of the room
        others = sum(_lines_wanted(other) for _, other in tables)
        title = ["", *filter(None, [_TITLES[severity]])]
        most = max(room - others, _LEAST_LINES[severity]) - len(title)
        section = _section(table, report.side, width, verbosity, whole, most, where)
        sections.append([*title, *section])
        room -= len(sections[-1])
    return [line for section in reversed(sections) for line in section]


def _lines_wanted(table: Sequence[Row]) -> int:
    return 5 + sum(2 if row.message else 1 for row in table)


def _section(
    table: Sequence[Row], side: str, width: int, verbosity: int, whole: bool, room: int, where: str
) -> list[str]:
    """Return findings about keys as a table and the others as sentences, in about `room` lines."""
    sentences = [row for row in table if not (row.pattern or row.checkpoint or row.model)]
    about_keys = [row for row in table if row.pattern or row.checkpoint or row.model]
    room -= 1  # for the line that counts what was cut
    lines: list[str] = []
    cut: list[Row] = []
    for row in sentences:
        said = [] if cut else _said(f"{row.rule}: {row.message}".removesuffix(": "), width, verbosity)
        if cut or (lines and len(lines) + len(said) > room // 2):
            cut.append(row)
        else:
            lines += said
    if about_keys:
        tabled, rest = _table(about_keys, side, width, verbosity, whole, max(room - len(lines) - 3, 1))
        lines = [*tabled, *[""][: len(lines)], *lines]
        cut += rest
    if cut:
        findings = sum(len(row.keys) for row in cut)
        in_rows = f" in {len(cut):,} rows" if findings > len(cut) else ""
        lines += textwrap.wrap(f"... {findings:,} more findings{in_rows}: {where}", width)
    return lines


def _listed(head: str, outcomes: Iterable[Promise | Stage], width: int, verbosity: int) -> list[str]:
    """Promises or stages as a table under a heading of that name."""
    from tabulate import tabulate

    table = [(printable(each.name), each.status, each.detail) for each in outcomes]
    if not table:
        return []
    room = max(width - len("unchecked") - 2 * len("  "), 2 * _LEAST)
    widest = max(len(head) + 2, *(len(name) for name, _, _ in table))  # tabulate pads a header
    name_room = min(widest, room - _LEAST)
    cells = [
        (
            name if len(name) <= name_room else "\n".join(_said(name, name_room, 1, hanging="  ")),
            status,
            "\n".join(_said(detail, room - name_room, verbosity, hanging="")),
        )
        for name, status, detail in table
    ]
    text = tabulate(cells, headers=(head, "status", "detail"), tablefmt="simple", disable_numparse=True)
    return ["", *(line.rstrip() for line in text.split("\n"))]
