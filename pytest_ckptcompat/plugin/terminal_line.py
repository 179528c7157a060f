"""Show a temporary line in pytest's terminal while a test runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class Terminal:
    """Writes through pytest's own reporter, bypassing the capture of output.

    Args:
        config: pytest's config. Workers of pytest-xdist have no reporter, and so no terminal.
    """

    def __init__(self, config: Any) -> None:
        self._reporter = config.pluginmanager.get_plugin("terminalreporter")
        self._capture = config.pluginmanager.get_plugin("capturemanager")

    def watched(self) -> bool:
        """Return whether the output is a terminal."""
        return self._reporter is not None and bool(self._reporter.isatty)  # a bool before pytest 9

    def show(self, text: str) -> None:
        """Write the line below the one with the tests' letters, replacing its last text."""
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            self._reporter.ensure_newline()
            self._reporter.rewrite(text, erase=True)
            self._reporter.write("\r", flush=True)
