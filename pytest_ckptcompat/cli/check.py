"""``ckptcompat check``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pytest_ckptcompat.checks.arguments import ARGUMENTS

from .options import (
    add_checkpoint_and_model,
    add_flags,
    add_json,
    add_reading,
    given_flags,
    make_importable,
    opened,
    place,
)
from .outcome import INCOMPATIBLE, OK, UNCHECKED, Outcome
from .output import in_colour, on_terminal

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.report.report import Report

SUMMARY = "check that a checkpoint still serves a model, as a marked test does"
EXITS = "0 it fits, 1 it does not, 2 it could not be checked"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments: those of the marker that have a flag, and its own."""
    add_checkpoint_and_model(parser, required=False)
    add_flags(parser, ARGUMENTS)
    parser.add_argument(
        "--require-cuda", action="store_true", help="fail unless the forward pass ran on CUDA"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="a longer report; -vv: all of it")
    add_reading(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> Outcome:
    """The report."""
    from pytest_ckptcompat.checks.arguments import CheckArguments
    from pytest_ckptcompat.checks.check import Check

    make_importable()
    arguments = CheckArguments.of(
        model=options.model, state_dict_key=options.key, **given_flags(options, ARGUMENTS)
    )
    check = Check(
        arguments,
        options.ckpt,
        lambda key: opened(options.ckpt, options, key),
        require_cuda=options.require_cuda,
        place=place(options),
    )
    report = check.run()
    text = report.to_json() if options.json else _rendered(report, options.verbose)
    if any(found.rule in ("no-checkpoint", "model-error") for found in report.errors):
        return Outcome(UNCHECKED, text)
    return Outcome(OK if report.ok else INCOMPATIBLE, text)


def _rendered(report: Report, verbosity: int) -> str:
    from pytest_ckptcompat.report.terminal import render

    return render(
        report,
        shutil.get_terminal_size().columns,
        verbosity,
        color=in_colour(),
        where="-vv shows all, --json prints it",
        table="recipe",
        whole=not on_terminal(),
    )
