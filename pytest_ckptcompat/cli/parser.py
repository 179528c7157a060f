"""The parser of the command line: no abbreviations, and errors with suggestions."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.redaction import redact

from .output import UNCHECKED, complain, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """The parser of the command or of a subcommand."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse the options. An error shows the subcommand's usage and exits with 2."""
        options: argparse.Namespace
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = options.parser
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, and keep the arguments for `error`, which names a mistyped option first."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, with a suggestion, and exit with 2."""
        if message.startswith("the following arguments are required"):
            unknown = [each for each in self._given if self._is_unknown(each)]
            message = f"unrecognized arguments: {unknown[0]}" if unknown else message
        super().error(redact(message) + self._meant(message))

    def add_version(self) -> None:
        """Declare ``--version``."""
        told = "show the versions of ckptcompat, Python, torch and pytest"
        self.add_argument("--version", action=_Version, nargs=0, help=told)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or an error, even if the reader has closed the pipe."""
        if file is not sys.stdout:
            complain(message)
        elif not write(message.rstrip()):
            self.exit(UNCHECKED)

    def _is_unknown(self, argument: str) -> bool:
        return argument.startswith("--") and argument.partition("=")[0] not in self._option_string_actions

    def _meant(self, message: str) -> str:
        found = re.match(r"unrecognized arguments: (-[\w-]+)|.*invalid choice: '(.*?)'", message)
        if not found:
            return ""
        option, choice = found.groups()
        known = list(self._option_string_actions) if option else re.findall(r"'([\w-]+)'", message)[1:]
        near = difflib.get_close_matches(option or choice, known, 1)
        return f"; did you mean {near[0]}?" if near else ""


class _Version(argparse.Action):
    """Prints versions. torch's is read from its metadata, since importing it takes seconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib.metadata import version

        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytest"))
        text = f"ckptcompat {version('pytest-ckptcompat')} (Python {platform.python_version()}, {others})"
        parser._print_message(text, sys.stdout)
        parser.exit()
