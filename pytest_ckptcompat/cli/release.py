"""The command ``ckptcompat release``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lock import CALL, call, recorded
from .options import ABOUT_MODEL, add_flags, add_reading, make_importable, parsed_limits
from .outcome import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "lock today's model as a new release, and draft the recipe of the one before"
EXITS = "0 written, 1 today's model is the last release already or the name is taken, 2 not written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="of the release: v3")
    parser.add_argument("model", metavar="MODEL", help=ABOUT_MODEL)
    releases = "the releases file, releases.toml if not given; it is made if there is none"
    parser.add_argument("--releases", default="releases.toml", metavar="FILE.toml", help=releases)
    add_flags(parser, CALL)
    add_reading(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Write the release."""
    from pytest_ckptcompat.checks.new_release import NotDueError, release

    make_importable()
    inputs, method, arguments = call(options, options.model)
    try:
        made = release(
            options.name,
            options.model,
            options.releases,
            arguments=arguments,
            inputs=inputs,
            method=method,
            limits=parsed_limits(options),
        )
    except NotDueError as error:
        return Outcome(INCOMPATIBLE, refusal=str(error))
    return Outcome(OK, "\n".join([str(made), *recorded(dict(made.content or {}))]))
