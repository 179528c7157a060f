"""A report as text for a terminal: the verdict, what is wrong, what to do, and what was run."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from pytest_ckptcompat.keys import escape, printable
from pytest_ckptcompat.rules import RULES

from .elision import LEAST, elide, shortened
from .paste import one_column, pasted
from .rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_ckptcompat.rules import Severity

    from .report import Report

WHERE = "-vv shows all, --ckpt-report json:PATH keeps it"
NARROWEST = 60
_TIMES = "\N{MULTIPLICATION SIGN}"


def render(
    report: Report,
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
        *_suggestion(report, width, verbosity, where),
        *_as_tables(report, width, verbosity, table),
        *_promises(report, width, verbosity),
        *_stages(report, width, verbosity),
    ]
    lines = [printable(report.verdict), *_findings(report, width, verbosity, len(after), where), *after]
    return "\n".join(paint(lines, report) if color else lines)


# -- what is wrong ------------------------------------------------------------------------------------------

_MOST_LINES = {0: 58, 1: 250}
_TITLES: dict[Severity, str] = {"error": "", "warn": "warnings:", "off": "waived:"}
_LEAST_LINES: dict[Severity, int] = {"error": 16, "warn": 8, "off": 6}


def _findings(report: Report, width: int, verbosity: int, taken: int, where: str) -> list[str]:
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


_PADDING = 2  # what tabulate adds to a header's width


def _table(
    table: Sequence[Row], side: str, width: int, verbosity: int, room: int
) -> tuple[list[str], Sequence[Row]]:
    """A header and `room` lines of rows, with what does not fit into cells below; and the rows left over."""
    from tabulate import tabulate

    shown = table[:room]
    headers = ("rule", "key", side, "model")
    cells = _cells(shown, headers, width)
    text = tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True)
    head, underline, *bodies = (line.rstrip() for line in text.split("\n"))
    below = _all_below(shown, headers, cells, width, verbosity, full=True)
    if verbosity < 2 and len(bodies) + sum(map(len, below)) > room:
        below = _all_below(shown, headers, cells, width, verbosity, full=False)
    lines = [head, underline]
    for place, body in enumerate(bodies):
        if place and len(lines) - 2 + 1 + len(below[place]) > room:
            return lines, table[place:]
        lines += [body, *below[place]]
    return lines, table[len(shown) :]


def _cells(table: Sequence[Row], headers: Sequence[str], width: int) -> list[tuple[str, str, str, str]]:
    """The cells of the rows, cut so that they fit the width together."""
    counts = [f" {_TIMES}{len(row.keys):,}" if len(row.keys) > 1 else "" for row in table]
    keys = [cell(row.pattern) for row in table]
    sides = [cell(row.checkpoint) for row in table], [cell(row.model) for row in table]
    wanted = [
        max(len(key) + len(count) for key, count in zip(keys, counts, strict=True)),
        *(max(map(len, side)) for side in sides),
    ]
    least = [len(header) + _PADDING for header in headers[1:]]
    level = _level(wanted, least, width - max(len(row.rule) for row in table) - 3 * len("  "))
    keys = elide(keys, level - max(map(len, counts)))
    both = elide([*sides[0], *sides[1]], level)  # together, so that two unequal sides never look equal
    return [
        (row.rule, key + count, checkpoint, model)
        for row, key, count, checkpoint, model in zip(
            table, keys, counts, both[: len(table)], both[len(table) :], strict=True
        )
    ]


def _level(wanted: Sequence[int], least: Sequence[int], room: int) -> int:
    """The width to which the widest columns must be cut so that all fit; none gets less than its header."""
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
    *,
    full: bool,
) -> list[list[str]]:
    """For each row the lines below it: in full what had to be cut, if there is room, and the message."""
    return [
        [
            *(_in_full(row, headers, cells[place], width, verbosity) if full else []),
            *_message(row, table[place + 1 : place + 2], width, verbosity),
        ]
        for place, row in enumerate(table)
    ]


def _in_full(row: Row, headers: Sequence[str], cells: Sequence[str], width: int, verbosity: int) -> list[str]:
    most = 5000 if verbosity > 1 else 4 * width
    _, _, *names = headers
    sides = (("", row.pattern), (f"{names[0]}: ", row.checkpoint), (f"{names[1]}: ", row.model))
    return [
        line
        for (name, text), shown in zip(sides, cells[1:], strict=True)
        if "…" in shown
        for line in _indented(f"{name}{shortened(cell(text), most)}", width)
    ]


def _message(row: Row, following: Sequence[Row], width: int, verbosity: int) -> list[str]:
    """The row's message, unless the next row says the same."""
    message = _said_of(row)
    if not message or message in map(_said_of, following):
        return []
    return [f"    {line}" for line in _said(message, width - 4, verbosity, hanging="")]


def _said_of(row: Row) -> str:
    return row.message.removeprefix("waived: ")


def _indented(text: str, width: int) -> list[str]:
    """A text from a file, cut into lines wherever one is full."""
    room = width - 4 - len(r"\x3a")
    return [f"    {_harmless(text[start : start + room])}" for start in range(0, len(text), room)]


# -- what to do, and what was run ---------------------------------------------------------------------------


def _suggestion(report: Report, width: int, verbosity: int, where: str) -> list[str]:
    if report.suggestion is None:
        return []
    advice = report.advice[0].lower() + report.advice[1:]
    if not advice.endswith(":"):
        return ["", advice.removesuffix(".")]
    lines = pasted(repr(report.suggestion), width - 4)
    most = {0: 10, 1: 100}.get(verbosity, len(lines))
    if len(lines) > most:
        lines = [*lines[: most - 1], f"# ... {len(lines) - most + 1} more lines: {where}"]
    return ["", advice, *(f"    {line}" for line in lines)]


def _as_tables(report: Report, width: int, verbosity: int, table: str) -> list[str]:
    """The suggestion as TOML, if it can be pasted from here: whole, and with every line as it is."""
    written = report.suggested_toml.splitlines()
    lines = [f"[[{table}]]" if line == "[[recipe]]" else line for line in written]
    if not lines or not table or len(lines) > {0: 20, 1: 100}.get(verbosity, len(lines)):
        return []
    if any(len(line) > width - 4 or line != printable(line) or "#" in line for line in lines):
        return []
    return ["", "the same as TOML:", *(f"    {line}".rstrip() for line in lines)]


def _promises(report: Report, width: int, verbosity: int) -> list[str]:
    lines = [(promise.name, promise.status, promise.detail) for promise in report.promises]
    return _listed(("promise", "status", "detail"), lines, width, verbosity)


def _stages(report: Report, width: int, verbosity: int) -> list[str]:
    lines = [(stage.name, stage.status, stage.detail) for stage in report.stages]
    return _listed(("stage", "status", "detail"), lines, width, verbosity)


_LEAST = 24  # columns of a detail, and of a name; longer names are wrapped


def _listed(
    headers: Sequence[str], table: Iterable[tuple[str, str, str]], width: int, verbosity: int
) -> list[str]:
    from tabulate import tabulate

    table = [(printable(name), status, detail) for name, status, detail in table]
    if not table:
        return []
    room = max(width - len("unchecked") - 2 * len("  "), 2 * _LEAST)
    name_room = min(max(len(name) for name, _, _ in table), room - _LEAST)
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


# -- text ---------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text from a file for a cell: every character takes one column; none is a mark of the table itself."""
    shown = escape(text, limit=None)
    if not shown.isascii():
        shown = "".join(c if one_column(c) and c not in f"…{_TIMES}" else _code(c) for c in shown)
    return shown if shown == shown.strip(" ") else shown.replace(" ", r"\x20")


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _said(text: str, width: int, verbosity: int, hanging: str = "    ") -> list[str]:
    """A sentence in lines of at most `width` columns; at verbosity 0, two of them."""
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
    """A line that begins, perhaps because it was wrapped there, with nothing that CI takes for a command."""
    start = len(line) - len(line.lstrip())
    return f"{line[:start]}\\x3a{line[start + 1 :]}" if line.startswith("::", start) else line


# -- colours ------------------------------------------------------------------------------------------------

_COLORS = {"": "31", "warnings:": "33", "waived:": "2"}
_STATUS_COLORS = {
    **dict.fromkeys(("passed", "kept"), "32"),
    **dict.fromkeys(("failed", "broken"), "31"),
    **dict.fromkeys(("rehearsed", "skipped", "unchecked"), "33"),
}
_RULE = re.compile(rf"(?:{'|'.join(map(re.escape, RULES))})(?=[ :]|$)")
_STATUS = re.compile(rf"(?<=  )(?:{'|'.join(_STATUS_COLORS)})(?=  |$)")


def paint(lines: Iterable[str], report: Report) -> list[str]:
    """The lines of a rendered report with the verdict, the rules and the statuses in ANSI colours."""
    verdict, *others = lines
    painted = [_painted(verdict, "1;32" if report.ok else "1;31")]
    section = ""
    for line in others:
        if line in _COLORS or line.startswith(("stage ", "promise ")):
            section = line or section
        if section in _COLORS:
            color = _COLORS[section]
            word, color = _RULE.match(line), _COLORS[section]
        else:
            word = _STATUS.search(line)
            color = _STATUS_COLORS[word[0]] if word else ""
        painted.append(
            f"{line[: word.start()]}{_painted(word[0], color)}{line[word.end() :]}" if word else line
        )
    return painted


def _painted(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m"
