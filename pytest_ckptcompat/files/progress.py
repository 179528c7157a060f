"""A progress line on the terminal for large reads."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from pytest_ckptcompat.core.memory import shown as size_shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_AFTER = 2.0
_EVERY = 0.2


class StandardError:
    """The place where a command shows its progress line."""

    def watched(self) -> bool:
        """Return whether it is a terminal."""
        return sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line. An empty text removes it."""
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()


_screen: Any = StandardError()


@contextmanager
def shown_on(screen: Any) -> Iterator[None]:
    """Show progress inside the block on another screen than `StandardError`, which pytest captures."""
    global _screen
    before, _screen = _screen, screen
    try:
        yield
    finally:
        _screen = before


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Show a line of text inside the block, if the screen is a terminal."""
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
    """A progress line for reads that take more than two seconds.

    Nothing is shown if the screen is not a terminal, or in continuous integration. A reentrant context
    manager: the line is shown until the outermost block is left.

    Args:
        what: what is read; safe to print.
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
        """Add `nbytes` to the bytes read."""
        self._done += nbytes
        now = time.monotonic()
        if self._depth and now >= self._next and _is_watched():
            self._next = now + _EVERY
            self._shown = True
            _screen.show(self._text(now - self._start))

    def _text(self, seconds: float) -> str:
        known = self._done <= self._total  # otherwise some bytes were read twice
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
