"""The command ``ckptcompat bisect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import CHECKPOINT, LIMIT, MODEL, make_importable, option, place
from .output import INCOMPATIBLE, OK, Outcome, columns

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.checks.first_misfit import Misfit

SUMMARY = "find the first commit at which a checkpoint no longer fits a model"
EXITS = "0 found, 1 it fits everywhere or nowhere, 2 it could not be searched"
OPTIONS = (
    CHECKPOINT,
    MODEL,
    option(
        "--good",
        metavar="REF",
        help="a commit at which it fits; if not given, it is looked for 1, 2, 4 ... commits back",
    ),
    option("--bad", metavar="REF", default="HEAD", help="a commit at which it does not fit (HEAD)"),
    LIMIT,
)


def run(options: argparse.Namespace) -> Outcome:
    """Find the first commit that no longer fits, and print its report."""
    from pytest_ckptcompat.checks.first_misfit import first_misfit
    from pytest_ckptcompat.files.paths import display

    make_importable()
    misfit = first_misfit(
        options.ckpt, options.model, place(options), good=options.good, bad=options.bad, width=columns()
    )
    what = f"{display(options.ckpt)} no longer fits {options.model}"
    if misfit.found.first is None:
        return Outcome(INCOMPATIBLE, _nothing(options, misfit))
    if len(misfit.commits) == 1:
        head = f"the first commit at which {what}:\n    {misfit.commits[0]}"
    else:
        listed = "\n    ".join(misfit.commits)
        head = f"one of these is the first commit at which {what}; the others can't tell:\n    {listed}"
    return Outcome(OK, f"{head}\n\n{misfit.report}\n\n{_counted(misfit)}")


def _nothing(options: argparse.Namespace, misfit: Misfit) -> str:
    from pytest_ckptcompat.core.escape import escape

    bad, good = escape(options.bad), escape(options.good or "")
    if misfit.found.fits:
        told = f"it fits at {bad}"
    elif not misfit.report:
        told = f"{bad} can't tell: {misfit.why_skipped}"
    elif good:
        told = f"it does not fit at {good} either\n\n{misfit.report}"
    else:
        told = f"it fits at none of the commits before {bad} that were tried\n\n{misfit.report}"
    return f"{told}\n\n{_counted(misfit)}"


def _counted(misfit: Misfit) -> str:
    found = misfit.found
    skipped = f"; {found.skipped} could not be imported and were skipped" if found.skipped else ""
    why = f" (the last, {misfit.why_skipped})" if skipped else ""
    return f"{found.tried} commits tried{skipped}{why}"
