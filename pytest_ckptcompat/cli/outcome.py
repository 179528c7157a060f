"""The outcome of a command."""

from __future__ import annotations

from typing import NamedTuple

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
