"""The reports of a run, gathered from all its processes: told in the summary, written to files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from .session import REPORTS, settings, shelf

if TYPE_CHECKING:
    from collections.abc import Generator


class Summary:
    """Gathers the reports of a run from all its processes, sums them up and writes the files."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._checks: list[tuple[str, dict[str, Any]]] = []
        self._unwritten: list[str] = []
        self._without = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Send the reports along with the test's own: attributes of builtin types reach the controller."""
        report: pytest.TestReport = yield
        reports = item.stash.get(REPORTS, None)
        if reports:
            # The page shows the keys that fit too; no other report needs that much.
            whole = any(kind == "html" for kind, _ in settings(self._config).reports)
            vars(report)["ckptcompat"] = [
                {**each.to_dict(), "fitting": dict(each.fitting) if whole else {}} for each in reports
            ]
            item.stash[REPORTS] = []
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a test brought, from whichever process it came; of a test that is run again, the last."""
        outcome: str = report.outcome
        if outcome == "rerun":  # pytest-rerunfailures: another attempt follows
            self._checks = [(nodeid, check) for nodeid, check in self._checks if nodeid != report.nodeid]
            return
        self._checks += [(report.nodeid, each) for each in getattr(report, "ckptcompat", [])]
        if report.skipped and isinstance(report.longrepr, tuple):
            self._without += report.longrepr[2].startswith("Skipped: no checkpoint: ")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files that were asked for; a run whose report can't be written fails."""
        if hasattr(self._config, "workerinput") or self._config.option.collectonly:
            return
        if not self._config.option.ckpt_report or _another_rank_writes():
            return
        from pytest_ckptcompat.core.keys import natural
        from pytest_ckptcompat.report.run_report import write

        if self._config.getoption("numprocesses", None):  # as they came in, each run would have another order
            self._checks.sort(key=lambda each: natural(each[0]))
        for kind, path in settings(self._config).reports:
            try:
                write(kind, path, self._checks)
            except OSError as error:
                self._unwritten.append(
                    f"--ckpt-report {kind}:{path} was not written: {error.strerror or error}"
                )
        if self._unwritten and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What fits, where its forward pass ran, and how many tests had no checkpoint."""
        if not (self._checks or self._without or self._unwritten):
            return
        from pytest_ckptcompat.report.run_report import told

        passed = [(nodeid, check) for nodeid, check in self._checks if check["ok"]]
        chosen = settings(self._config)
        verbose = chosen.verbosity > 0
        terminalreporter.section("checkpoints", sep="-")
        for nodeid, check in passed if verbose else passed[:_SHOWN]:
            terminalreporter.line(nodeid)
            for line in told(check, chosen.width, in_full=verbose or len(passed) <= _FEW):
                terminalreporter.line(f"  {line}")
        if not verbose and len(passed) > _SHOWN:
            terminalreporter.line(f"... and {len(passed) - _SHOWN} more that fit: -v lists them")
        counts = [f"{len(passed)} of {len(self._checks)} checks passed"] if self._checks else []
        if self._without:
            counts.append(f"{self._without} skipped: no checkpoint (--ckpt, --ckpt-required)")
        if chosen.update_locks:
            changed = ", ".join(shelf(self._config).rewritten)
            counts.append(
                f"locks rewritten: {changed} (git diff shows how)" if changed else "no lock changed"
            )
        if counts:
            terminalreporter.line("; ".join(counts))
        for text in self._unwritten:
            terminalreporter.line(f"ERROR: {text}", red=True)


def _another_rank_writes() -> bool:
    """Under torchrun every rank runs every test; the files are rank 0's, or they would be written over."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


_SHOWN, _FEW = 10, 3
