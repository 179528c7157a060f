"""A line on a terminal that tells how much of something large was fetched."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from pytest_ckptcompat.memory import shown as size_shown

if TYPE_CHECKING:
    from types import TracebackType

_AFTER = 0.5
_EVERY = 0.2


class Progress:
    """Shows progress where someone looks at it (standard error is a terminal) and it takes a while.

    Args:
        what: is fetched; safe to print.
        total: in bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._next = time.monotonic() + _AFTER
        self._shown = False

    def advance(self, nbytes: int) -> None:
        """So many more bytes are there."""
        self._done += nbytes
        if time.monotonic() >= self._next and sys.stderr.isatty():
            self._next = time.monotonic() + _EVERY
            self._shown = True
            sys.stderr.write(f"\r{self._what}: {size_shown(self._done)} of {size_shown(self._total)}\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
