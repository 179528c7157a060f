"""A report as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import printable
from pytest_ckptcompat.report.colours import paint
from pytest_ckptcompat.report.tables import _LEAST, NARROWEST, _said, _table

from .advice import RecipeText
from .fit_text import pasted
from .rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
) -> str:
    """The whole report.

    Args:
        report: what to show.
        width: columns of the terminal; no line but the verdict is longer (60 is the least).
        verbosity: 0 shows less than 60 lines, 1 about 250, 2 everything, and cut keys in full.
        color: with ANSI colours.
        where: how the user gets to see the whole of what was cut.
        table: what operators are called in the file that the user has instead of Python, such as
            ``check.recipe``: a suggestion is given in that form too.
    """
    width = max(width, NARROWEST)
    after = [
        *_advice(report, width, verbosity, where),
        *_as_tables(report, width, verbosity, table),
        *_promises(report, width, verbosity),
        *_stages(report, width, verbosity),
    ]
    lines = [printable(report.verdict), *_findings(report, width, verbosity, len(after), where), *after]
    return "\n".join(paint(lines, report) if color else lines)


_MOST_LINES = {0: 58, 1: 250}

_TITLES: dict[Severity, str] = {"error": "", "warn": "warnings:", "off": "waived:"}

_LEAST_LINES: dict[Severity, int] = {"error": 16, "warn": 8, "off": 6}


def _findings(report: Facts, width: int, verbosity: int, taken: int, where: str) -> list[str]:
    """A table for each severity that was found; where room is short, warnings and waivers get a few lines."""
    tables = [(severity, rows(f for f in report.findings if f.severity == severity)) for severity in _TITLES]
    tables = [(severity, table) for severity, table in tables if table]
    room = _MOST_LINES.get(verbosity, 10**9) - 1 - taken
    sections: list[list[str]] = []
    while tables:
        severity, table = tables.pop()  # the least important first: what it leaves is for the others
        others = sum(_lines_wanted(other) for _, other in tables)
        title = ["", *filter(None, [_TITLES[severity]])]
        most = max(room - others, _LEAST_LINES[severity]) - len(title)
        section = _section(table, report.side, width, verbosity, most, where)
        sections.append([*title, *section])
        room -= len(sections[-1])
    return [line for section in reversed(sections) for line in section]


def _lines_wanted(table: Sequence[Row]) -> int:
    return 5 + sum(2 if row.message else 1 for row in table)


def _section(table: Sequence[Row], side: str, width: int, verbosity: int, room: int, where: str) -> list[str]:
    """Findings about keys as a table, the others as sentences, in about `room` lines."""
    sentences = [row for row in table if not (row.pattern or row.checkpoint or row.model)]
    about_keys = [row for row in table if row.pattern or row.checkpoint or row.model]
    room -= 1  # for the count of what is cut
    lines: list[str] = []
    cut: list[Row] = []
    for row in sentences:
        said = [] if cut else _said(f"{row.rule}: {row.message}".removesuffix(": "), width, verbosity)
        if cut or (lines and len(lines) + len(said) > room // 2):
            cut.append(row)
        else:
            lines += said
    if about_keys:
        tabled, rest = _table(about_keys, side, width, verbosity, max(room - len(lines) - 3, 1))
        lines = [*tabled, *[""][: len(lines)], *lines]
        cut += rest
    if cut:
        findings = sum(len(row.keys) for row in cut)
        lines += textwrap.wrap(f"... {len(cut):,} more rows ({findings:,} findings): {where}", width)
    return lines


def _advice(report: Facts, width: int, verbosity: int, where: str) -> list[str]:
    lines: list[str] = []
    for each in report.advice:
        sentence = each.sentence[0].lower() + each.sentence[1:].removesuffix(".")
        lines += ["", *_said(sentence, width, verbosity, hanging="")]
        if each.recipe is not None:
            recipe = pasted(each.recipe.python, width - 4)
            most = {0: 10, 1: 100}.get(verbosity, len(recipe))
            if len(recipe) > most:
                recipe = [*recipe[: most - 1], f"# ... {len(recipe) - most + 1} more lines: {where}"]
            lines += [f"    {line}" for line in recipe]
        for note in each.notes:
            lines += _said(note[0].lower() + note[1:].removesuffix("."), width, 1, hanging="    ")
    return lines


def _as_tables(report: Facts, width: int, verbosity: int, table: str) -> list[str]:
    """The suggestion as TOML, if it can be pasted from here: whole, and with every line as it is."""
    written = [] if report.suggestion is None else RecipeText.of(report.suggestion).toml.splitlines()
    lines = [f"[[{table}]]" if line == "[[recipe]]" else line for line in written]
    if not lines or not table or len(lines) > {0: 20, 1: 100}.get(verbosity, len(lines)):
        return []
    if any(len(line) > width - 4 or line != printable(line) or "#" in line for line in lines):
        return []
    return ["", "the same as TOML:", *(f"    {line}".rstrip() for line in lines)]


def _promises(report: Facts, width: int, verbosity: int) -> list[str]:
    lines = [(promise.name, promise.status, promise.detail) for promise in report.promises]
    return _listed(("promise", "status", "detail"), lines, width, verbosity)


def _stages(report: Facts, width: int, verbosity: int) -> list[str]:
    lines = [(stage.name, stage.status, stage.detail) for stage in report.stages]
    return _listed(("stage", "status", "detail"), lines, width, verbosity)


def _listed(
    headers: Sequence[str], table: Iterable[tuple[str, str, str]], width: int, verbosity: int
) -> list[str]:
    from tabulate import tabulate

    table = [(printable(name), status, detail) for name, status, detail in table]
    if not table:
        return []
    room = max(width - len("unchecked") - 2 * len("  "), 2 * _LEAST)
    widest = max(len(headers[0]) + 2, *(len(name) for name, _, _ in table))  # tabulate pads a header
    name_room = min(widest, room - _LEAST)
    cells = [
        (
            name if len(name) <= name_room else "\n".join(_said(name, name_room, 1, hanging="  ")),
            status,
            "\n".join(_said(detail, room - name_room, verbosity, hanging="")),
        )
        for name, status, detail in table
    ]
    text = tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True)
    return ["", *(line.rstrip() for line in text.split("\n"))]
