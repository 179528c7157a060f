"""Arguments of several commands, and their parsing."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checks.arguments import ARGUMENTS, CheckArguments

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checks.past_checkpoint import Place
    from pytest_ckptcompat.core.limits import Limits

Option = tuple[tuple[str, ...], dict[str, Any]]
"""The names and the settings of an argument, as `argparse.ArgumentParser.add_argument` takes them."""


def option(*names: str, **settings: Any) -> Option:
    """Declare an argument of a command."""
    return names, settings


ABOUT_CHECKPOINT = "a file, folder, *.index.json, URL, lock file or git:REF"
ABOUT_MODEL = "package.module:name of what gives the model; the current folder is importable"

CHECKPOINT = option("ckpt", metavar="CKPT", help=f"the checkpoint: {ABOUT_CHECKPOINT}")
MODEL = option("model", metavar="MODEL", help=ABOUT_MODEL)
JSON = option("--json", action="store_true", help="print JSON")
LIMIT = option(
    "--limit",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="raise a cap of the readers; repeatable",
)
READING = (
    LIMIT,
    option("--key", metavar="PATH", help="dotted path to the state dict in a wrapped checkpoint"),
)
_MODEL_ARGUMENT = option(
    "--model-arg",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="a keyword argument for MODEL, its value as in TOML or else a text; repeatable",
)


def flags(names: Collection[str]) -> list[Option]:
    """Declare the flags of those arguments of a check that have one."""
    declared = []
    for name in names:
        if (flag := ARGUMENTS[name].flag) is not None:
            action = "append" if flag.repeat else "store"
            declared.append(option(_dashed(name), action=action, metavar=flag.metavar, help=flag.help))
        if name == "model_args":
            declared.append(_MODEL_ARGUMENT)
    return declared


def given_flags(options: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return the arguments of a check that were given as flags.

    Raises:
        ValueError: a flag's value is invalid.
    """
    given: dict[str, Any] = {}
    for name in names:
        flag = ARGUMENTS[name].flag
        if flag is not None and (value := getattr(options, name)) is not None:
            given[name] = flag.read(value)
    return given | (_model_arguments(options) if "model_args" in names else {})


def checked(options: argparse.Namespace, names: Collection[str], **more: Any) -> CheckArguments:
    """Return the arguments of a check from the command line.

    Raises:
        ValueError: an argument has a wrong type. The message contains its flag.
    """
    given = given_flags(options, names)
    try:
        return CheckArguments.of(model=options.model, state_dict_key=options.key, **given, **more)
    except ValueError as error:
        keywords = re.compile(rf"\b({'|'.join(ARGUMENTS)})=(?=[ '\"\[])")
        text = keywords.sub(lambda name: f"{_dashed(name[1])} ", str(error))
        raise ValueError(" ".join(text.split())) from None


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return ``{"model_args": ...}`` from ``--model-arg``, or an empty dict if it is not given.

    Raises:
        ValueError: a pair is ill-formed, or ``--model-args`` is given too.
    """
    import tomllib

    found: dict[str, Any] = {}
    for pair in options.model_arg:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"--model-arg {pair!r}: write NAME=VALUE, for example width=64")
        try:
            found[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text
    if found and options.model_args:
        raise ValueError("give --model-arg or --model-args, not both")
    return {"model_args": found} if found else {}


def place(options: argparse.Namespace) -> Place:
    """Return where to look for past commits: the current folder, with the limits of the command line."""
    from pytest_ckptcompat.checks.past_checkpoint import Place

    return Place(limits=parsed_limits(options))


def opened(path: str, options: argparse.Namespace, key: str | None = None) -> Checkpoint:
    """Open the checkpoint at a path, with the limits of the command line.

    Raises:
        CheckpointError: the checkpoint can't be read.
    """
    from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
    from pytest_ckptcompat.files.paths import is_reference

    if is_reference(path):
        from pytest_ckptcompat.checks.past_checkpoint import Question, open_past

        make_importable()
        return open_past(path, Question(None), place(options))
    return open_checkpoint(path, options.key if key is None else key, limits=parsed_limits(options))


def parsed_limits(options: argparse.Namespace) -> Limits:
    """Return the limits of the command line.

    Raises:
        ValueError: a limit is ill-formed.
    """
    from pytest_ckptcompat.core.limits import Limits

    return Limits.parse("--limit", options.limit)


def make_importable() -> None:
    """Make the current folder importable, as with ``python -m``."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds strings
        sys.path.insert(0, "")
