"""``ckptcompat rules``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .options import add_json
from .outcome import OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "list the rules, their severity and meaning"
EXITS = "0 listed"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_json(parser)


def run(options: argparse.Namespace) -> Outcome:
    """The list."""
    from pytest_ckptcompat.core.rules import RULES

    rows = [(rule.id, rule.severity, rule.meaning) for rule in RULES.values()]
    if options.json:
        listed = [dict(zip(("id", "severity", "meaning"), row, strict=True)) for row in rows]
        return Outcome(OK, json.dumps({"schema_version": 1, "rules": listed}, indent=2))
    from tabulate import tabulate

    return Outcome(OK, tabulate(rows, headers=("rule", "severity", "meaning"), tablefmt="simple"))
