"""The command ``ckptcompat show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import ABOUT_CHECKPOINT, add_json, add_reading, opened
from .outcome import OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "show the keys, shapes, dtypes and sizes of a checkpoint"
EXITS = "0 shown, 2 not readable"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("ckpt", metavar="CKPT", help=ABOUT_CHECKPOINT)
    add_reading(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Return the checkpoint as a table or as JSON."""
    from pytest_ckptcompat.report.listing import listed, listed_json

    ckpt = opened(options.ckpt, options)
    return Outcome(OK, listed_json(ckpt) if options.json else listed(ckpt))
