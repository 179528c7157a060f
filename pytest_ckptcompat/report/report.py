"""The report of a check, as callers get it."""

from __future__ import annotations

import json

from . import markdown, terminal
from .facts import Facts


class Report(Facts):
    """The outcome of a check, with its output formats."""

    def to_json(self) -> str:
        """Return the report as JSON text (``schema_version`` 1)."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the report as GitHub-flavoured markdown."""
        return markdown.render(self)

    def __repr__(self) -> str:
        return f"<Report: {self.verdict}>"

    def __str__(self) -> str:
        return terminal.render(self, whole=True)
