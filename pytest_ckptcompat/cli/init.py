"""The command ``ckptcompat init``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import ABOUT_CHECKPOINT, MODEL, READING, make_importable, opened, option, place
from .output import INCOMPATIBLE, OK, Outcome, columns, in_colour

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.checks.init import Written

SUMMARY = "write ckptcompat.toml for a model, and run its check once"
EXITS = "0 written and it fits, 1 written and it does not fit, 2 not written"
OPTIONS = (
    MODEL,
    option(
        "ckpt",
        metavar="CKPT",
        nargs="?",
        help=f"a lock of it gates the model: {ABOUT_CHECKPOINT}; if not given, the default branch does",
    ),
    *READING,
)


def run(options: argparse.Namespace) -> Outcome:
    """Write the files, and run the check that they declare."""
    make_importable()  # before torch, which ends the process where there is no current folder
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.checks.arguments import CheckArguments
    from pytest_ckptcompat.checks.check import Check
    from pytest_ckptcompat.checks.init import write
    from pytest_ckptcompat.report.terminal import render

    here = place(options)
    ckpt = None if options.ckpt is None else opened(options.ckpt, options)
    written = write(options.model, ckpt)
    declared = CheckArguments.of(model=options.model, inputs=written.inputs)
    check = Check(declared, written.ckpt, lambda key: open_checkpoint(written.ckpt, key), place=here)
    report = check.run()
    shown = render(report, columns(), color=in_colour())
    text = "\n".join([f"wrote {' and '.join(written.files)}", "", shown, "", *_advice(written)])
    return Outcome(OK if report.ok else INCOMPATIBLE, text)


def _advice(written: Written) -> list[str]:
    """Return what to do next: commit, and set up CI."""
    history = written.ckpt.startswith("git:")
    lines = [f"commit {' and '.join(written.files)}; pytest runs the check from now on"]
    if history:
        lines.append("in CI, fetch the history: fetch-depth: 0 for actions/checkout, GIT_DEPTH: 0 in GitLab")
    if written.inputs is None:
        lines.append("the model does not declare its inputs: declare them to compare what it computes too")
    return lines
