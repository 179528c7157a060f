"""The command ``ckptcompat release``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lock import CALL, call, recorded
from .options import MODEL, READING, flags, make_importable, option, parsed_limits
from .output import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "lock today's model as a new release, and draft the recipe of the one before"
EXITS = "0 written, 1 today's model is the last release already or the name is taken, 2 not written"
OPTIONS = (
    option("name", metavar="NAME", help="of the release: v3"),
    MODEL,
    option(
        "--releases",
        default="releases.toml",
        metavar="FILE.toml",
        help="the releases file, releases.toml if not given; it is made if there is none",
    ),
    *flags(CALL),
    *READING,
)


def run(options: argparse.Namespace) -> Outcome:
    """Write the release."""
    make_importable()  # before torch, which ends the process where there is no current folder
    from pytest_ckptcompat.checks.new_release import NotDueError, release

    question = call(options, options.model, options.model)
    try:
        made = release(options.name, question, options.releases, parsed_limits(options))
    except NotDueError as error:
        return Outcome(INCOMPATIBLE, refusal=str(error))
    return Outcome(OK, "\n".join([str(made), *recorded(made.content)]))
