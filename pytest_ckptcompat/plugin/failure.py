"""Show reports as failures of pytest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from _pytest._code.code import ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTracebackNative

from pytest_ckptcompat.report import terminal
from pytest_ckptcompat.report.report import Report

from .session import CheckItem
from .terminal_line import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest
    from _pytest._io import TerminalWriter

    from .settings import Settings

_PACKAGE = __name__.partition(".")[0]


def failure(reports: Sequence[Report], item: pytest.Item, settings: Settings) -> ReprExceptionInfo:
    """Return the reports as a failure for pytest: no traceback, and the verdict as the one-line message.

    The short summary, JUnit's ``message=`` and CI annotations all use ``reprcrash.message``.
    """
    table = "check.recipe" if isinstance(item, CheckItem) else ""
    text, painted = (
        "\n\n".join(
            terminal.render(
                report,
                settings.width,
                settings.verbosity,
                table=table,
                color=color,
                whole=not Terminal(item.config).watched(),
            )
            for report in reports
        )
        for color in (False, True)
    )
    entry = ReprEntryNative([text + "\n"])
    if not hasattr(item.config, "workerinput"):  # workers can only send pytest's own classes
        entry = _Coloured([text + "\n"], painted)
    path, line, _ = item.location
    more = f" (and {len(reports) - 1} more)" if len(reports) > 1 else ""
    crash = ReprFileLocation(path, (line or 0) + 1, reports[0].verdict + more)
    trace = ReprTracebackNative([])
    trace.reprentries = [] if item.config.option.tbstyle == "line" else [entry]
    return ReprExceptionInfo(trace, crash)  # no chain: code that renders chains would find no frames


def end_at_caller(error: BaseException | None) -> None:
    """Cut the traceback of an error of this package, and of what it was raised for, where the test called it.

    What is behind tells a user nothing, and pytest prints the arguments of the innermost function: an address
    among them may hold a password.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        frames, trace = list[TracebackType](), error.__traceback__
        while trace is not None:
            frames.append(trace)
            trace = trace.tb_next
        ours = [_is_ours(each) for each in frames]
        if isinstance(error, (ValueError, KeyError)) and ours and ours[-1] and not ours[0]:
            frames[ours.index(True) - 1].tb_next = None
        error = error.__cause__ or error.__context__


def _is_ours(trace: TracebackType) -> bool:
    """Return whether a frame is in code that tests call, not in code that calls tests."""
    module = str(trace.tb_frame.f_globals.get("__name__"))
    return module.partition(".")[0] == _PACKAGE and not module.endswith(".running")


def add_reports(
    failed: pytest.TestReport,
    excinfo: pytest.ExceptionInfo[BaseException],
    given: Iterable[Report],
    settings: Settings,
) -> None:
    """Show the failing reports that a failed test was given, or that are in a failed assertion's frame."""
    found = {id(report): report for report in given}
    if isinstance(excinfo.value, AssertionError):
        for value in excinfo.traceback[-1].frame.f_locals.values():
            if issubclass(type(value), Report) and not value.ok:
                found[id(value)] = value
    add_section = getattr(failed.longrepr, "addsection", None)
    for report in found.values() if add_section else ():
        text = terminal.render(report, settings.width, settings.verbosity)
        add_section(f"report of {report.checkpoint}", text)  # type: ignore[misc]


class Unread(Report):
    """A report that records whether anything in it was `read`."""

    read = False

    @classmethod
    def given(cls, report: Report) -> Self:
        """Copy a report, as not read yet."""
        return cls(**{each.name: getattr(report, each.name) for each in fields(report)})

    def __getattribute__(self, name: str) -> Any:
        if name != "read" and not name.startswith("_"):
            object.__setattr__(self, "read", True)
        return super().__getattribute__(name)


@dataclass(eq=False)
class _Coloured(ReprEntryNative):
    """A report that is coloured in terminals that support it, and plain in files."""

    painted: str

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.write(self.painted + "\n" if tw.hasmarkup else "".join(self.lines))
