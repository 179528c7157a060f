"""A line on a terminal that tells how much of something large was read."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, Self

from pytest_ckptcompat.core.memory import shown as size_shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_AFTER = 2.0
_EVERY = 0.2


class Screen(Protocol):
    """Where the line is shown."""

    def watched(self) -> bool:
        """Whether it is a terminal."""
        ...

    def show(self, text: str) -> None:
        """Write the line, over what it was; the empty text takes it away."""
        ...


class StandardError:
    """The screen of a command."""

    def watched(self) -> bool:
        """Whether it is a terminal."""
        return sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Write the line, over what it was."""
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()


_screen: Screen = StandardError()


@contextmanager
def shown_on(screen: Screen) -> Iterator[None]:
    """Show progress there for a while: pytest captures standard error."""
    global _screen
    before, _screen = _screen, screen
    try:
        yield
    finally:
        _screen = before


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Show a line of one's own meanwhile, where somebody watches."""
    watched = _is_watched()
    if watched:
        _screen.show(text[: _width()])
    try:
        yield
    finally:
        if watched:
            _screen.show("")


def _is_watched() -> bool:
    return "CI" not in os.environ and _screen.watched()


def _width() -> int:
    return shutil.get_terminal_size().columns - 1


class Progress:
    """Shows how much of something was read, where someone looks at it and it takes a while.

    Someone looks where the screen is a terminal, and nobody does in continuous integration. A context
    manager, which may be entered within itself: the line is there until the outermost is left.

    Args:
        what: is read; safe to print.
        total: its size in bytes.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._start = 0.0
        self._next = 0.0
        self._shown = False
        self._depth = 0

    def advance(self, nbytes: int) -> None:
        """So many more bytes are there."""
        self._done += nbytes
        now = time.monotonic()
        if self._depth and now >= self._next and _is_watched():
            self._next = now + _EVERY
            self._shown = True
            _screen.show(self._text(now - self._start))

    def _text(self, seconds: float) -> str:
        known = self._done <= self._total  # or some of it was read twice
        width = _width()
        try:
            tqdm = import_module("tqdm").tqdm
        except ImportError:
            whole = f" of {size_shown(self._total)}" if known else ""
            return f"{self._what}: {size_shown(self._done)}{whole}"[:width]
        total = self._total if known else None
        text: str = tqdm.format_meter(
            self._done, total, seconds, ncols=width, prefix=self._what, unit="B", unit_scale=True
        )
        return text[:width]

    def __enter__(self) -> Self:
        self._start = self._start or time.monotonic()
        self._next = self._next or self._start + _AFTER
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._shown and not self._depth:
            self._shown = False
            _screen.show("")
