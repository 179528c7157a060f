"""The errors that callers may want to catch."""

from __future__ import annotations


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
