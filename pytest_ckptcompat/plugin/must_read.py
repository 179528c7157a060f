"""A failing report that a test was given, and whether the test looked at it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Self

from pytest_ckptcompat.report.report import Report


class Unread(Report):
    """A report that knows whether anything of it was `read`; then its reader decides what follows."""

    read = False

    @classmethod
    def given(cls, report: Report) -> Self:
        """The same report, not read yet."""
        return cls(**{each.name: getattr(report, each.name) for each in fields(report)})

    def __getattribute__(self, name: str) -> Any:
        if name != "read" and not name.startswith("_"):
            object.__setattr__(self, "read", True)
        return super().__getattribute__(name)
