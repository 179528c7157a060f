"""The command ``ckptcompat check``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

from pytest_ckptcompat.checks.arguments import ARGUMENTS

from .options import (
    ABOUT_MODEL,
    CHECKPOINT,
    JSON,
    READING,
    checked,
    flags,
    make_importable,
    opened,
    option,
    place,
)
from .output import INCOMPATIBLE, OK, UNCHECKED, Outcome, columns, in_colour, on_terminal

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.report.report import Report

SUMMARY = "check that a checkpoint still serves a model, as a marked test does"
EXITS = "0 it fits, 1 it does not, 2 it could not be checked"
RUNS_CODE = True
OPTIONS = (
    CHECKPOINT,
    option("model", metavar="MODEL", nargs="?", help=ABOUT_MODEL),
    *flags(ARGUMENTS),
    option("--require-cuda", action="store_true", help="fail unless the forward pass ran on CUDA"),
    option(
        "--report",
        action="append",
        default=[],
        metavar="FORMAT:PATH",
        help="write the report: json:PATH, markdown:PATH or html:PATH; repeatable",
    ),
    option("-v", "--verbose", action="count", default=0, help="a longer report; -vv: all of it"),
    *READING,
    JSON,
)


def run(options: argparse.Namespace) -> Outcome:
    """Run the check and return its report."""
    from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.core.redaction import redact
    from pytest_ckptcompat.report.run_report import Run, targets, write

    make_importable()
    if options.model is None and options.loader is None:
        options.parser.error(
            "MODEL is missing: package.module:name of what gives the model (or --loader NAME)"
        )
    arguments = checked(options, ARGUMENTS)
    check = Check(
        arguments,
        options.ckpt,
        partial(opened, options.ckpt, options),
        require_cuda=options.require_cuda,
        place=place(options),
    )
    files = targets("--report", options.report)
    with redirect_stdout(sys.stderr):  # what a model or a loader prints is not part of the report
        report = check.run()
    title = redact(f"ckptcompat check {options.ckpt} {report.model}")
    for kind, path in files:
        write("--report", kind, path, Run([(title, report)]))
    text = report.to_json() if options.json else _rendered(report, options.verbose)
    if any(found.rule in ("no-checkpoint", "model-error") for found in report.errors):
        return Outcome(UNCHECKED, text)
    return Outcome(OK if report.ok else INCOMPATIBLE, text)


def _rendered(report: Report, verbosity: int) -> str:
    from pytest_ckptcompat.report.terminal import render

    return render(
        report,
        columns(),
        verbosity,
        color=in_colour(),
        where="-vv shows all, --json prints it",
        table="recipe",
        whole=not on_terminal(),
    )
