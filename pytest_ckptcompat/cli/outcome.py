"""How a command ended."""

from __future__ import annotations

from typing import NamedTuple

OK, INCOMPATIBLE, UNCHECKED, INTERRUPTED = 0, 1, 2, 130


class Outcome(NamedTuple):
    """What a command found.

    Attributes:
        code: the exit code.
        text: what it prints.
        refusal: why it did not do what was asked, for standard error.
    """

    code: int
    text: str = ""
    refusal: str = ""
