"""How reports reach people through pytest: the failure text, the summary, the files of a run."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import ExceptionChainRepr, ReprEntryNative, ReprFileLocation, ReprTracebackNative

from . import terminal
from .keys import escape
from .report import SCHEMA_VERSION, Report
from .rules import Stage, finding

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from _pytest._io import TerminalWriter

    from .settings import Settings

_REPORTS = pytest.StashKey[list[Report]]()


class Incompatible(Exception):  # noqa: N818  # a verdict on the checkpoint, not an error of the test
    """What ends a test whose checkpoint does not fit; it carries the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.verdict)
        self.report = report

    @classmethod
    def without(cls, name: str, reason: str) -> Incompatible:
        """The failure of a test that was given no checkpoint though one is required."""
        found = finding("no-checkpoint", message=reason)
        return cls(Report("no checkpoint", name, findings=[found], stages=[Stage("open", "failed", reason)]))


def attach(node: pytest.Item, report: Report) -> None:
    """Keep a report with its test: for the files of the run, and the verdict as a property for JUnit."""
    node.stash.setdefault(_REPORTS, []).append(report)
    node.user_properties.append(("ckpt_verdict", report.verdict))
    node.user_properties.append(("ckpt_forward", _forward(report)))


def failure(report: Report, item: pytest.Item, settings: Settings) -> ExceptionChainRepr:
    """The report as pytest prints a failure: no traceback, and the verdict wherever one line is wanted.

    The short summary, JUnit's ``message=`` and CI annotations all read ``reprcrash.message``.
    """
    text = terminal.render(report, settings.width, settings.verbosity)
    entry = ReprEntryNative([text + "\n"])
    if not hasattr(
        item.config, "workerinput"
    ):  # a worker's failures travel by the names of pytest's own classes
        entry = _Coloured(
            [text + "\n"], terminal.render(report, settings.width, settings.verbosity, color=True)
        )
    path, line, _ = item.location
    crash = ReprFileLocation(path, (line or 0) + 1, report.verdict)
    trace = ReprTracebackNative([])
    trace.reprentries = [entry]
    return ExceptionChainRepr([(trace, crash, None)])


@dataclass(eq=False)
class _Coloured(ReprEntryNative):
    """A report that is painted where the terminal takes colours, and plain in files."""

    painted: str

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.write(self.painted + "\n" if tw.hasmarkup else "".join(self.lines))


class Summary:
    """Gathers the reports of a run from all its processes, sums them up and writes the files."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._checks: list[tuple[str, dict[str, Any]]] = []
        self._unwritten: list[str] = []
        self._without = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Send the reports along with the test's own: attributes of builtin types reach the controller."""
        report: pytest.TestReport = yield
        reports = item.stash.get(_REPORTS, None)
        if reports:
            vars(report)["ckptcompat"] = [each.to_dict() for each in reports]
            item.stash[_REPORTS] = []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test brought, from whichever process it came."""
        self._checks += [(report.nodeid, each) for each in getattr(report, "ckptcompat", [])]
        if report.skipped and isinstance(report.longrepr, tuple):
            self._without += report.longrepr[2].startswith("Skipped: no checkpoint: ")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files that were asked for; a run whose report can't be written fails."""
        if hasattr(self._config, "workerinput") or self._config.option.collectonly:
            return
        for kind, path in self._settings.reports:
            try:
                _write(kind, path, self._checks)
            except OSError as error:
                self._unwritten.append(
                    f"--ckpt-report {kind}:{path} was not written: {error.strerror or error}"
                )
        if self._unwritten and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What fits, where its forward pass ran, and how many tests had no checkpoint."""
        passed = [(nodeid, check) for nodeid, check in self._checks if check["ok"]]
        if not (self._checks or self._without or self._unwritten):
            return
        terminalreporter.section("checkpoints", sep="-")
        verbose = self._settings.verbosity > 0
        for nodeid, check in passed if verbose else passed[:_SHOWN]:
            terminalreporter.line(nodeid)
            for line in _told(Report.of(check), self._settings.width, in_full=verbose or len(passed) <= _FEW):
                terminalreporter.line(f"  {line}")
        if not verbose and len(passed) > _SHOWN:
            terminalreporter.line(f"... and {len(passed) - _SHOWN} more that fit: -v lists them")
        counts = f"{len(passed)} of {len(self._checks)} checks passed"
        if self._without:
            counts += f"; {self._without} skipped: no checkpoint (--ckpt, --ckpt-required)"
        terminalreporter.line(counts)
        for text in self._unwritten:
            terminalreporter.line(f"ERROR: {text}", red=True)


_SHOWN, _FEW = 10, 3


def _told(report: Report, width: int, *, in_full: bool) -> list[str]:
    """What a check that passed really did: the verdict; in full, what was verified and where it ran too."""
    lines = [report.verdict]
    if in_full:
        kept = [promise.name for promise in report.promises if promise.status == "kept"]
        told = [f"verified: {', '.join(kept)}"] if kept else []
        told += [
            f"not verified: {each.name}: {each.detail}"
            for each in report.promises
            if each.status == "unchecked"
        ]
        told += [
            f"{each.name}: {each.status} {each.detail}"
            for each in report.stages
            if each.name.startswith("forward")
        ]
        told += [
            f"warning: {each.rule}: {escape(each.key)} {each.message}"
            for each in report.findings
            if each.severity == "warn"
        ]
        for text in told:
            lines += textwrap.wrap(text, width - 4, subsequent_indent="  ")
    return lines


def _forward(report: Report) -> str:
    """What the forward pass came to, for a property: ``passed on cpu: ...; rehearsed cuda:0 ...``."""
    return "; ".join(
        f"{stage.status}: {stage.detail}" for stage in report.stages if stage.name.startswith("forward")
    )


def _write(kind: str, path: Path, checks: list[tuple[str, dict[str, Any]]]) -> None:
    from .writing.whole import whole_file

    if kind == "json":
        content = {
            "schema_version": SCHEMA_VERSION,
            "checks": [{"nodeid": nodeid, **check} for nodeid, check in checks],
        }
        text = json.dumps(content, indent=2) + "\n"
    elif kind == "markdown":
        from .markdown import summary

        before = path.read_text(encoding="utf-8") if path.exists() else ""
        text = before + summary([(nodeid, Report.of(check)) for nodeid, check in checks])
    else:
        from .html import Check, render

        text = render([Check(nodeid, Report.of(check)) for nodeid, check in checks])
    with whole_file(path) as file:
        file.write(text.encode())
