"""``ckptcompat release``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lock import CALL, call, recorded
from .options import add_flags, add_reading, make_importable
from .outcome import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "lock today's model as a new release, and draft the recipe of the one before"
EXITS = "0 written, 1 today's model is the last release already or the name is taken, 2 not written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="of the release: v3")
    model = "package.module:name of what gives the model; the current folder is importable"
    parser.add_argument("model", metavar="MODEL", help=model)
    releases = "the releases file, releases.toml if not given; it is made if there is none"
    parser.add_argument("--releases", default="releases.toml", metavar="FILE.toml", help=releases)
    add_flags(parser, CALL)
    add_reading(parser)


def run(options: argparse.Namespace) -> Outcome:
    """The release, written."""
    from pytest_ckptcompat.checks.new_release import NotDueError, release
    from pytest_ckptcompat.core.limits import Limits

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
            limits=Limits.parse(options.limit),
        )
    except NotDueError as error:
        return Outcome(INCOMPATIBLE, refusal=str(error))
    return Outcome(OK, "\n".join([str(made), *recorded(dict(made.content or {}))]))
