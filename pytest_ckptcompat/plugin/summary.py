"""Collect the reports of a run from all processes, summarise them, and write the report files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from .marks import is_marked
from .session import CHECKS, NO_CHECKPOINT, REPORTS, settings, shelf

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_ckptcompat.report.run_report import Run


class Summary:
    """A plugin that collects the reports of a run and writes the files; each process has one."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._run: Run | None = None
        self._checked: set[str] = set()
        self._unwritten: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Attach the reports to the test's own; attributes of builtin types reach the controller."""
        report: pytest.TestReport = yield
        reports = item.stash.get(REPORTS, [])
        if reports or _is_check(item):
            # Only the HTML page also shows the keys that fit.
            whole = any(kind == "html" for kind, _ in settings(self._config).reports)
            vars(report)["ckptcompat"] = [
                {**each.to_dict(), "fitting": dict(each.fitting) if whole else {}} for each in reports
            ]
            item.stash[REPORTS] = []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the reports of a test from any process; if a test is rerun, those of the last run."""
        checks = getattr(report, "ckptcompat", None)
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        lacking = NO_CHECKPOINT in reason
        if checks is None and not lacking:
            return
        run = self._known()
        outcome: str = report.outcome
        if outcome == "rerun":  # pytest-rerunfailures: another attempt follows
            run.checks = [each for each in run.checks if each[0] != report.nodeid]
            return
        if checks:
            from pytest_ckptcompat.report.facts import Facts

            run.checks += [(report.nodeid, Facts.of(check)) for check in checks]
            run.unchecked.pop(report.nodeid, None)
            self._checked.add(report.nodeid)
        elif report.nodeid not in self._checked and report.when != "teardown":
            run.unchecked[report.nodeid] = _LACKING if lacking else _REASONS.get(report.outcome, _NOT_RUN)

    def _known(self) -> Run:
        """Return what is known about this run; never called in runs without checkpoints."""
        if self._run is None:
            from pytest_ckptcompat.report.run_report import Run

            self._run = Run()
        return self._run

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the requested files. A run whose report can't be written fails."""
        if hasattr(self._config, "workerinput") or self._config.option.collectonly:
            return
        chosen = self._config.option.ckpt_report
        if self._run is None and not chosen:
            return
        run = self._known()
        run.interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        for item in getattr(session, "items", ()):
            if item.nodeid not in self._checked and _is_check(item):
                run.unchecked.setdefault(item.nodeid, _NOT_RUN)
        if not chosen or _another_rank_writes():
            return
        from pytest_ckptcompat.core.keys import natural
        from pytest_ckptcompat.report.run_report import write

        if self._config.getoption("numprocesses", None):  # the order of arrival differs from run to run
            run.checks.sort(key=lambda each: natural(each[0]))
        for kind, path in settings(self._config).reports:
            try:
                write("--ckpt-report", kind, path, run)
            except ValueError as error:
                self._unwritten.append(str(error))
        if self._unwritten and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print which checkpoints fit, where the forward pass ran, and how many tests had no checkpoint."""
        run = self._run
        if run is None or not (run.checks or run.unchecked or self._unwritten):
            return
        from pytest_ckptcompat.report.run_report import told

        passed = [(nodeid, check) for nodeid, check in run.checks if check.ok]
        chosen = settings(self._config)
        verbose = chosen.verbosity > 0
        terminalreporter.section("checkpoints", sep="-")
        for nodeid, check in passed if verbose else passed[:_SHOWN]:
            terminalreporter.line(nodeid)
            for line in told(check, chosen.width, in_full=verbose or len(passed) <= _FEW):
                terminalreporter.line(f"  {line}")
        if not verbose and len(passed) > _SHOWN:
            terminalreporter.line(f"... and {len(passed) - _SHOWN} more that fit: -v lists them")
        counts = [run.summary] if run.checks or run.unchecked else []
        if chosen.update_locks:
            changed = ", ".join(shelf(self._config).rewritten)
            counts.append(
                f"locks rewritten: {changed} (git diff shows how)" if changed else "no lock changed"
            )
        if counts:
            terminalreporter.line("; ".join(counts))
        for text in self._unwritten:
            terminalreporter.line(f"ERROR: {text}", red=True)


def _is_check(item: pytest.Item) -> bool:
    """Return whether a test must have a report."""
    return CHECKS in item.stash or is_marked(item)


_LACKING = "skipped: no checkpoint (--ckpt, --ckpt-required)"
_NOT_RUN = "not run"
_REASONS = {"skipped": "skipped", "failed": "failed before the check"}
"""Outcome of a test -> why it has no report."""


def _another_rank_writes() -> bool:
    """Return whether another rank writes the files: under torchrun every rank runs every test."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


_SHOWN, _FEW = 10, 3
