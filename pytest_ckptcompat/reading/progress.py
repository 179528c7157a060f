"""A line on a terminal that tells how much of something large was fetched."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Self

from pytest_ckptcompat.memory import shown as size_shown

if TYPE_CHECKING:
    from types import TracebackType

_AFTER = 0.5
_EVERY = 0.2


class Progress:
    """Shows how much of a file was fetched, where someone looks at it and it takes a while.

    Someone looks where standard error is a terminal, and nobody does in continuous integration. A context
    manager: the line is there while something is fetched.

    Args:
        what: is fetched; safe to print.
        total: size of the file in bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._next = 0.0
        self._shown = False

    def advance(self, nbytes: int) -> None:
        """So many more bytes are there."""
        self._done += nbytes
        now = time.monotonic()
        if now >= self._next and sys.stderr.isatty() and "CI" not in os.environ:
            self._next = now + _EVERY
            self._shown = True
            whole = (
                f" of {size_shown(self._total)}" if self._done <= self._total else ""
            )  # or some of it twice
            sys.stderr.write(f"\r{self._what}: {size_shown(self._done)}{whole}\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        self._next = self._next or time.monotonic() + _AFTER
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
