"""Track whether a test looked at a failing report that it was given."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Self

from pytest_ckptcompat.report.report import Report


class Unread(Report):
    """A report that records whether anything in it was `read`."""

    read = False

    @classmethod
    def given(cls, report: Report) -> Self:
        """Copy a report, as not read yet."""
        return cls(**{each.name: getattr(report, each.name) for each in fields(report)})

    def __getattribute__(self, name: str) -> Any:
        if name != "read" and not name.startswith("_"):
            object.__setattr__(self, "read", True)
        return super().__getattribute__(name)
