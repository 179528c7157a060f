"""What a command gives back, and how it is printed: stdout may be a broken pipe, a full disk, or closed."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, INCOMPATIBLE, UNCHECKED, INTERRUPTED = 0, 1, 2, 130


class Outcome(NamedTuple):
    """The outcome of a command.

    Attributes:
        code: the exit code.
        text: the text to print.
        refusal: why it did not do what was asked; printed to standard error.
    """

    code: int
    text: str = ""
    refusal: str = ""


def write(text: str) -> bool:
    """Print a whole text; return whether it was written, or the reader had closed the pipe."""
    if not text or sys.stdout is None:  # None: stdout was closed before the start
        return True
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show × and …
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe, such as head, has stopped
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        say(f"the output can't be written: {error.strerror or error}")
        return False
    return True


def say(text: str) -> None:
    """Print a line on standard error, if possible."""
    complain(f"ckptcompat: {text}\n")


def complain(text: str) -> None:
    """Print a text on standard error as it is, if possible."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose last column is wrapped to the width of the terminal."""
    from pytest_ckptcompat.report.fit_text import columns_of, tabulated

    room = max(columns() - columns_of(headers[:-1], [row[:-1] for row in rows]), 30)
    wrapped = [(*row[:-1], "\n".join(textwrap.wrap(row[-1], room))) for row in rows]
    return "\n".join(tabulated(headers, wrapped))


def columns() -> int:
    """Return the width of the terminal."""
    return shutil.get_terminal_size().columns


def in_colour() -> bool:
    """Return whether to use colours: on a capable terminal or with ``FORCE_COLOR``, not with ``NO_COLOR``."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return on_terminal() and os.environ.get("TERM") != "dumb"


def on_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _discard(stream: TextIO) -> None:
    """Send the rest of the buffer to null, or Python would try to write it at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
