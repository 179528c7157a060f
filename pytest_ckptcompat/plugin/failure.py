"""A report as pytest prints a failure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from _pytest._code.code import ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTracebackNative

from pytest_ckptcompat.report import terminal

from .toml_file import CheckItem

if TYPE_CHECKING:
    import pytest
    from _pytest._io import TerminalWriter

    from pytest_ckptcompat.report.report import Report

    from .settings import Settings


def failure(report: Report, item: pytest.Item, settings: Settings) -> ReprExceptionInfo:
    """The report as pytest prints a failure: no traceback, and the verdict wherever one line is wanted.

    The short summary, JUnit's ``message=`` and CI annotations all read ``reprcrash.message``.
    """
    table = "check.recipe" if isinstance(item, CheckItem) else ""
    render = partial(terminal.render, report, settings.width, settings.verbosity, table=table)
    text = render() + "\n"
    entry = ReprEntryNative([text])
    if not hasattr(item.config, "workerinput"):  # from a worker, only pytest's own classes can travel
        entry = _Coloured([text], render(color=True))
    path, line, _ = item.location
    crash = ReprFileLocation(path, (line or 0) + 1, report.verdict)
    trace = ReprTracebackNative([])
    trace.reprentries = [entry]
    return ReprExceptionInfo(trace, crash)  # no chain: what draws chains anew would find no frames in it


@dataclass(eq=False)
class _Coloured(ReprEntryNative):
    """A report that is painted where the terminal takes colours, and plain in files."""

    painted: str

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.write(self.painted + "\n" if tw.hasmarkup else "".join(self.lines))
