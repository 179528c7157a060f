"""Render reports as GitHub-flavoured markdown, for the step summary of a pull request."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import escape, printable

from .advice_text import python_lines
from .rows import Row, rows, stage_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_ckptcompat.core.findings import Promise, Stage

    from .facts import Facts

_MOST_BYTES = 600_000  # GitHub drops a step summary of more than 1 MiB
_FIRST_ROWS = 20


def render(report: Facts, title: str = "") -> str:
    """Render one report: the verdict as a heading, the findings, the advice and the stages.

    Args:
        report: the report.
        title: the title, such as a test's id; shown below the verdict.
    """
    table = rows(sorted(report.untold, key=lambda found: _SEVERITIES.index(found.severity)))
    parts = [
        f"### {'✅' if report.ok else '❌'} {_text(report.verdict)}",
        *([_code(title)] if title else []),
        *_findings(table, report.side),
        *_advice(report),
        *_details("Promises of the recipe", _outcomes("promise", report.promises)),
        *_details("Stages", _outcomes("stage", stage_rows(report.stages))),
    ]
    return "\n\n".join(parts) + "\n"


def summary(checks: Sequence[tuple[str, Facts]], heading: str) -> str:
    """Render the reports of a run: failed ones in full, the others as one table.

    The text always stays below the size that GitHub shows; what is left out is counted.

    Args:
        checks: (test's id, report) of each check.
        heading: the outcome of the run in one line.
    """
    failed = [(title, report) for title, report in checks if not report.ok]
    fit = [(title, report) for title, report in checks if report.ok]
    parts = [f"## Checkpoints: {_text(heading)}\n"]
    size = len(parts[0].encode())
    for done, (title, report) in enumerate(failed):
        part = render(report, title)
        if (size := size + len(part.encode())) > _MOST_BYTES:
            parts.append(f"{len(failed) - done} more checks failed; the JSON report has them.\n")
            break
        parts.append(part)
    lines = list(_fitting((_code(title), _text(_outcome(report))) for title, report in fit))
    if lines:
        more = [f"and {len(fit) - len(lines)} more"] if len(fit) > len(lines) else []
        parts.append("\n\n".join([_table(("check", "verdict"), lines), *more]) + "\n")
    return "\n".join(parts)


# -- parts --------------------------------------------------------------------------------------------------

_SEVERITIES = ("error", "warn", "off")


def _findings(table: Sequence[Row], side: str) -> list[str]:
    if not table:
        return []
    noted = any(row.message or row.severity != "error" for row in table)
    headers = ("rule", "key", side, "model", *(["note"] if noted else []))
    lines = list(_fitting(_cells(row)[: len(headers)] for row in table))
    parts = [_table(headers, lines[:_FIRST_ROWS])]
    if len(table) > _FIRST_ROWS:
        total, shown = (sum(len(row.keys) for row in part) for part in (table, table[: len(lines)]))
        counted = f"all {total:,} findings" if shown == total else f"{shown:,} of {total:,} findings"
        parts += _details(f"{counted}; the JSON report keeps every key", _table(headers, lines))
    return parts


def _outcome(report: Facts) -> str:
    """Return the verdict of a passed check, with counts of its promises by status."""
    words = {"unchecked": "not checked"}
    found = Counter(
        "kept" if each.status == "kept" else f"{words.get(each.status, each.status)} ({each.detail})"
        for each in report.promises
    )
    return "; ".join([report.verdict, *(f"promises {what}: {count}" for what, count in found.items())])


def _fitting(lines: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Yield as many lines as there is room for."""
    room = _MOST_BYTES // 3
    for cells in lines:
        room -= sum(len(cell.encode()) for cell in cells) + 3 * len(cells)
        if room < 0:
            return
        yield cells


def _cells(row: Row) -> tuple[str, ...]:
    note = f"warning: {row.message}" if row.severity == "warn" else row.message
    return (
        row.rule,
        _code(row.pattern) + row.times,
        _code(row.checkpoint),
        _code(row.model),
        _text(note.removesuffix(": ")),
    )


def _advice(report: Facts) -> Iterator[str]:
    for each in report.advice:
        if each.recipe is None:
            yield _text(each.sentence)
        else:
            python = "\n".join(python_lines(each.recipe, 100))
            toml = each.recipe.toml.strip()
            if len(python) + len(toml) > _MOST_BYTES // 4:
                yield "A recipe would make it load; it is too long to show here; the JSON report has it."
                return
            yield each.sentence
            yield _block("python", python)
            yield from _details("As TOML, for a recipe file", _block("toml", toml) if toml else "")
        yield from map(_text, each.notes)


def _outcomes(name: str, outcomes: Iterable[Promise | Stage]) -> str:
    lines = [(_text(outcome.name), outcome.status, _text(outcome.detail)) for outcome in outcomes]
    return _table((name, "status", "detail"), lines) if lines else ""


def _details(title: str, inside: str) -> list[str]:
    return [f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>"] if inside else []


def _table(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *lines))


# -- text ---------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Escape text inside a line, so that nothing becomes markup, a link or a mention."""
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", printable(text)).replace("@", "@<wbr>")


_MARKS = re.compile(r"[&<>\"'`|*\[\]~\\#!$^{}]|(?<!\w)_|_(?!\w)|(?<=[a-z]):(?=//)|(?<=www)\.")


def _code(text: str) -> str:
    """Return text from a file as a code span; pipes are escaped, since they would end a table cell."""
    if not text:
        return ""
    shown = escape(text, limit=1000).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padding = " " if shown.strip() and (shown[0] in " `" or shown[-1] in " `") else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def _block(language: str, text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
