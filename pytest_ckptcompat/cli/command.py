"""The main function: run a subcommand, and set the exit code."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from pytest_ckptcompat.core.errors import CheckpointError, RecipeError
from pytest_ckptcompat.core.redaction import redact

from . import apply, bisect, check, diff, init, lock, operators, release, rules, show
from .conftest_hooks import known
from .outcome import INTERRUPTED, UNCHECKED, Outcome
from .output import say, write
from .parser import Parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


class Command(Protocol):
    """A module of this package that is a subcommand with the same name."""

    __name__: str
    SUMMARY: str
    EXITS: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the command."""

    def run(self, options: argparse.Namespace) -> Outcome:
        """Run the command."""
        ...


COMMANDS: tuple[Command, ...] = (
    init,
    show,
    diff,
    check,
    lock,
    release,
    apply,
    bisect,
    rules,
    operators,
)
"""The subcommands, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 for fits or same, 1 for not, 2 if it can't be determined, 130 if interrupted. It does
        not depend on whether the output is read to its end.
    """
    options = _parser().parse(arguments)
    try:
        with known(wanted=getattr(options, "runs_code", False)):
            outcome: Outcome = options.run(options)
    except (CheckpointError, RecipeError, ValueError) as error:
        say(redact(str(error)))
        return UNCHECKED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    if outcome.refusal:
        say(outcome.refusal)
    return outcome.code if write(outcome.text) else max(outcome.code, UNCHECKED)


def _parser() -> Parser:
    parser = Parser(prog="ckptcompat", description="Does the checkpoint still load into the model?")
    parser.add_version()
    commands = parser.add_subparsers(metavar="command", parser_class=Parser)
    for module in COMMANDS:
        text = f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name, help=module.SUMMARY, description=text, epilog=f"exit codes: {module.EXITS}"
        )
        module.add_options(command)
        runs_code = getattr(module, "RUNS_CODE", False)
        command.set_defaults(run=module.run, parser=command, runs_code=runs_code)
    parser.set_defaults(
        parser=parser, run=lambda _: parser.error(f"name one of {', '.join(commands.choices)}")
    )
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        import_module("argcomplete").autocomplete(parser)
    return parser
