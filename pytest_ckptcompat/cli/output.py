"""Standard output, which may be a pipe that nobody reads any more, a full disk, or closed."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def write(text: str) -> bool:
    """Print a text, whole; whether it could be written, or nobody wanted to read on."""
    if not text or sys.stdout is None:  # None: it was closed before we started
        return True
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has × and …
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        say(f"the output can't be written: {error.strerror or error}")
        return False
    return True


def say(text: str) -> None:
    """Print a line on standard error, if that can be."""
    complain(f"ckptcompat: {text}\n")


def complain(text: str) -> None:
    """Print a text on standard error as it is, if that can be."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose last column is wrapped to the width of the terminal."""
    from tabulate import tabulate

    *columns, last = zip(headers, *rows, strict=True)
    beside = sum(max(len(header) + 2, *map(len, cells)) + 2 for header, *cells in columns)
    room = max(shutil.get_terminal_size().columns - beside, 30)
    columns.append(tuple("\n".join(textwrap.wrap(cell, room)) for cell in last))
    text = tabulate(list(zip(*columns, strict=True))[1:], headers=headers, tablefmt="simple")
    return "\n".join(line.rstrip() for line in text.splitlines())


def in_colour() -> bool:
    """Whether to paint: on a terminal that can, or where ``FORCE_COLOR`` is set; not with ``NO_COLOR``."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return on_terminal() and os.environ.get("TERM") != "dumb"


def on_terminal() -> bool:
    """Whether somebody looks at a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _discard(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, or Python would try once more as it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
