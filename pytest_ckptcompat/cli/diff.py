"""The command ``ckptcompat diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import ABOUT_CHECKPOINT, JSON, READING, opened, option
from .output import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "compare two checkpoints or locks"
EXITS = "0 the same, 1 they differ, 2 not readable"
OPTIONS = (
    option("new", metavar="NEW", help=ABOUT_CHECKPOINT),
    option("--against", required=True, metavar="OLD", help="what NEW is compared with, likewise"),
    *READING,
    JSON,
)


def run(options: argparse.Namespace) -> Outcome:
    """Return the differences as a table or as JSON."""
    from pytest_ckptcompat.report.listing import changes, contrasted, contrasted_json

    new, old = opened(options.new, options), opened(options.against, options)
    found = changes(old, new)
    text = contrasted_json(found) if options.json else contrasted(old, new, found)
    return Outcome(INCOMPATIBLE if found else OK, text)
