"""The reports of a whole run: summary lines and files."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.claim import UNASKED
from pytest_ckptcompat.core.escape import escape

from .facts import SCHEMA_VERSION
from .rows import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_ckptcompat.core.rules import Severity

    from .facts import Facts


FORMATS = ("json", "markdown", "html")


@dataclass
class Run:
    """The checks of a run, and the tests without one.

    Attributes:
        checks: (test's id, report), in the order of completion.
        unchecked: id of a test without a report -> why.
        interrupted: whether the run ended before its last test.
    """

    checks: list[tuple[str, Facts]] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def summary(self) -> str:
        """How many checks passed, of how many, and why the others were not made."""
        passed = sum(report.ok for _, report in self.checks)
        total = len(self.checks) + len(self.unchecked)
        reasons = Counter(self.unchecked.values())
        told = [f"{passed} of {total} checks passed", *(f"{n} {reason}" for reason, n in reasons.items())]
        return f"{'interrupted: ' if self.interrupted else ''}{'; '.join(told)}"


def targets(option: str, texts: Iterable[str]) -> tuple[tuple[str, Path], ...]:
    """Parse the ``FORMAT:PATH`` values of an option into formats and files.

    Raises:
        ValueError: a value has another form, can't be written, or names the same file as another.
    """
    found: dict[Path, str] = {}
    for text in texts:
        try:
            kind, path = _target(option, text)
        except OSError as error:
            raise ValueError(f"{option} {text!r}: it can't be written: {error.strerror or error}") from None
        if path in found:
            raise ValueError(f"{option} {text!r}: another report is written to that file")
        found[path] = kind
    return tuple((kind, path) for path, kind in found.items())


def _target(option: str, text: str) -> tuple[str, Path]:
    kind, _, name = text.partition(":")
    if kind not in FORMATS or not name:
        raise ValueError(f"{option} {text!r}: use json:PATH, markdown:PATH or html:PATH")
    path = Path(name).absolute()
    if name == "-" or (path.exists() and not path.is_file()):
        what = "a folder" if path.is_dir() else "not a regular file: reports are written to files alone"
        raise ValueError(f"{option} {text!r}: {name} is {what}")
    above = next(folder for folder in path.parents if folder.exists())  # missing folders below it are created
    if not above.is_dir():
        raise ValueError(f"{option} {text!r}: {name} can't be written: {above} is a file, not a folder")
    if path.is_file() and _is_binary(path):
        raise ValueError(f"{option} {text!r}: {name} is not a text file and would be lost")
    return kind, path


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(4096)


def told(report: Facts, width: int, *, in_full: bool) -> list[str]:
    """Return what a passed check really did: the verdict and, in full, what was verified and where."""
    lines = [report.verdict]
    if in_full:
        kept = [promise.name for promise in report.promises if promise.status == "kept"]
        told = [f"verified: {', '.join(kept)}"] if kept else []
        told += _unverified(report)
        told += _forward(report)
        told += [*_noted(report, "off", ""), *_noted(report, "warn", "warning: ")]
        for text in told:
            lines += textwrap.wrap(text, width - 4, subsequent_indent="  ")
    return lines


def _forward(report: Facts) -> Iterator[str]:
    """Yield where the forward pass ran, or why it did not."""
    unasked = any(stage.name == "verify" and stage.detail == UNASKED for stage in report.stages)
    for stage in report.stages:
        if stage.name.startswith("forward") and stage.status != "skipped":
            yield f"{stage.name}: {stage.status} {stage.detail}"
        elif stage.name.startswith("forward") and not unasked:  # otherwise already reported
            yield f"{stage.name}: skipped: {stage.detail}"


def _noted(report: Facts, severity: Severity, word: str) -> Iterator[str]:
    """Yield findings that do not fail the check, in a few lines for each rule."""
    table = rows(found for found in report.findings if found.severity == severity)
    for rule, of_rule in groupby(table, key=lambda row: row.rule):
        shown = list(of_rule)
        for row in shown[:_MOST_ROWS]:
            sides = " -> ".join(filter(None, (row.checkpoint, row.model)))
            parts = escape(row.pattern) + row.times, sides, row.message
            yield f"{word}{rule}: {', '.join(filter(None, parts))}"
        if more := sum(len(row.keys) for row in shown[_MOST_ROWS:]):
            yield f"{word}{rule}: {more:,} more, which --ckpt-report lists"


_MOST_ROWS = 3


def _unverified(report: Facts) -> list[str]:
    """Return unchecked promises, grouped by reason, or why nothing was checked."""
    reasons: dict[str, list[str]] = {}
    for promise in report.promises:
        if promise.status == "unchecked":
            reasons.setdefault(promise.detail, []).append(promise.name)
    changed = [f"{each.name}: {each.detail}" for each in report.promises if each.status == "changed"]
    if reasons or changed:
        return [
            *(f"not checked ({reason}): {'; '.join(names)}" for reason, names in reasons.items()),
            *changed,
        ]
    return [
        f"values not checked: {each.detail}"
        for each in report.stages
        if each.name == "verify" and each.status == "skipped"
    ]


def write(option: str, kind: str, path: Path, run: Run) -> None:
    """Write the reports of a run to a file, completely or not at all; markdown is appended.

    Raises:
        ValueError: the file can't be written. The message starts with the option.
    """
    from pytest_ckptcompat.files.atomic_write import whole_file

    if kind == "json":
        content = {
            "schema_version": SCHEMA_VERSION,
            "interrupted": run.interrupted,
            "checks": [{"nodeid": nodeid, **report.to_dict()} for nodeid, report in run.checks],
            "unchecked": [{"nodeid": nodeid, "reason": reason} for nodeid, reason in run.unchecked.items()],
        }
        text = json.dumps(content, indent=2) + "\n"
    elif kind == "markdown":
        from .markdown import summary

        text = summary(run.checks, run.summary)
    else:
        from .html import render

        text = render(run.checks, run.summary)
    try:
        before = path.read_bytes() if kind == "markdown" and path.exists() else b""
        with whole_file(path) as file:
            file.write(before + text.encode())
    except OSError as error:
        raise ValueError(f"{option} {kind}:{path} was not written: {error.strerror or error}") from None
