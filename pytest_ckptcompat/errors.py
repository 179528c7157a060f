"""The errors that callers may want to catch, and what ends a test whose checkpoint does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reports.report import Report


class CheckpointError(ValueError):
    """A checkpoint that can't be read: what is wrong, where, and what to do, in one or two lines.

    Text that comes from the file is escaped already, so the message is safe to print.
    """


class RecipeError(ValueError):
    """A recipe that can't be built or doesn't apply.

    Attributes:
        rule: the id of the rule that was broken (``recipe-unused-op``, ``recipe-error``, ...).
        key: the key or pattern concerned, or ``""``.
    """

    def __init__(self, message: str, *, rule: str = "recipe-error", key: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.key = key


class Incompatible(Exception):  # noqa: N818  # a verdict on the checkpoint, not an error of the test
    """What ends a test whose checkpoint does not fit; it carries the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.verdict)
        self.report = report
