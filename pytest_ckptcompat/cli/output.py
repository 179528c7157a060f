"""Standard output, which may be a pipe that nobody reads any more, a full disk, or closed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


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
        _discard()
    except OSError as error:
        _discard()
        say(f"the output can't be written: {error.strerror or error}")
        return False
    return True


def say(text: str) -> None:
    """Print a line on standard error, if that can be."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"ckptcompat: {text}\n")
        sys.stderr.flush()


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


def _discard() -> None:
    """Let what is still buffered go nowhere, or Python would try once more as it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
