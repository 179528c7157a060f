"""pytest's terminal, for a line that comes and goes while a test runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class Terminal:
    """Writes through pytest's own reporter, past what captures the output of the test.

    Args:
        config: pytest's. Workers of pytest-xdist have no reporter, and so no terminal.
    """

    def __init__(self, config: Any) -> None:
        self._reporter = config.pluginmanager.get_plugin("terminalreporter")
        self._capture = config.pluginmanager.get_plugin("capturemanager")

    def watched(self) -> bool:
        """Whether it is a terminal."""
        return self._reporter is not None and bool(self._reporter.isatty)  # a bool before pytest 9

    def show(self, text: str) -> None:
        """Write the line below the one where the tests' letters are, over what it was."""
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            self._reporter.ensure_newline()
            self._reporter.rewrite(text, erase=True)
            self._reporter.write("\r", flush=True)
