"""The main function: run a subcommand, and set the exit code."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.core import hooks
from pytest_ckptcompat.core.errors import CheckpointError, RecipeError, raised
from pytest_ckptcompat.core.redaction import redact

from . import apply, bisect, check, diff, init, lock, operators, release, rules, show
from .options import make_importable
from .output import INTERRUPTED, UNCHECKED, Outcome, say, write
from .parser import Parser

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


COMMANDS = (init, show, diff, check, lock, release, apply, bisect, rules, operators)
"""The subcommands, in the order of the help.

Each is a module with a ``SUMMARY``, the meaning of its exit codes (``EXITS``), its ``OPTIONS``, and
``run(options)``, which returns the outcome. With ``RUNS_CODE``, the hooks of a ``conftest.py`` are used.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 for fits or same, 1 for not, 2 if it can't be determined, 130 if interrupted. It does
        not depend on whether the output is read to its end.
    """
    options = _parser().parse(arguments)
    try:
        with _hooks_of_conftest(used=getattr(options, "runs_code", False)):
            outcome: Outcome = options.run(options)
    except (CheckpointError, RecipeError, ValueError) as error:
        say(redact(str(error)))
        return UNCHECKED
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        say("the current folder was deleted: change to another one")  # os.getcwd() raised
        return UNCHECKED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    if outcome.refusal:
        say(outcome.refusal)
    return outcome.code if write(outcome.text) else max(outcome.code, UNCHECKED)


@contextmanager
def _hooks_of_conftest(*, used: bool) -> Iterator[None]:
    """Use the hooks of the current folder's ``conftest.py`` if it implements any of ours.

    Raises:
        ValueError: ``conftest.py`` can't be read or imported.
    """
    if not used or b"pytest_ckptcompat_" not in _conftest():
        yield
        return
    make_importable()
    spec = spec_from_file_location("conftest", Path("conftest.py").resolve())
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"conftest.py, which has hooks of ckptcompat, failed: {raised(error)}") from None
    relay = hooks.of_module(module)
    hooks.use(relay)
    try:
        yield
    finally:
        hooks.forget(relay)


def _conftest() -> bytes:
    """Return the source of the current folder's ``conftest.py``, or nothing if it has none."""
    path = Path.cwd() / "conftest.py"
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ValueError(f"conftest.py can't be read: {error.strerror or error}") from None


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
        for names, settings in module.OPTIONS:
            command.add_argument(*names, **settings)
        runs_code = getattr(module, "RUNS_CODE", False)
        command.set_defaults(run=module.run, parser=command, runs_code=runs_code)
    parser.set_defaults(
        parser=parser, run=lambda _: parser.error(f"name one of {', '.join(commands.choices)}")
    )
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        import_module("argcomplete").autocomplete(parser)
    return parser
