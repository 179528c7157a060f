"""The command ``ckptcompat show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import ABOUT_CHECKPOINT, JSON, READING, opened, option
from .output import OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "show the keys, shapes, dtypes and sizes of a checkpoint"
EXITS = "0 shown, 2 not readable"
OPTIONS = (option("ckpt", metavar="CKPT", help=ABOUT_CHECKPOINT), *READING, JSON)


def run(options: argparse.Namespace) -> Outcome:
    """Return the checkpoint as a table or as JSON."""
    from pytest_ckptcompat.report.listing import listed, listed_json

    ckpt = opened(options.ckpt, options)
    return Outcome(OK, listed_json(ckpt) if options.json else listed(ckpt))
