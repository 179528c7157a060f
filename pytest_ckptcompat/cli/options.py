"""Options of several commands, and their parsing."""

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

ABOUT_CHECKPOINT = "a file, folder, *.index.json, URL, lock file or git:REF"
ABOUT_MODEL = "package.module:name of what gives the model; the current folder is importable"


def add_limit(parser: argparse.ArgumentParser) -> None:
    """``--limit``."""
    told = "raise a cap of the readers; repeatable"
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=told)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare ``--limit`` and ``--key``."""
    add_limit(parser)
    parser.add_argument("--key", metavar="PATH", help="dotted path to the state dict in a wrapped checkpoint")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_checkpoint_and_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Declare ``CKPT`` and ``MODEL``; the latter may be left out unless `required`."""
    parser.add_argument("ckpt", metavar="CKPT", help=f"the checkpoint: {ABOUT_CHECKPOINT}")
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help=ABOUT_MODEL)


def add_flags(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Declare the flags of those arguments of a check that have one."""
    for name in names:
        if (flag := ARGUMENTS[name].flag) is not None:
            action, option = "append" if flag.repeat else "store", f"--{name.replace('_', '-')}"
            parser.add_argument(option, action=action, metavar=flag.metavar, help=flag.help)
        if name == "model_args":
            told = "a keyword argument for MODEL, its value as in TOML or else a text; repeatable"
            parser.add_argument("--model-arg", action="append", default=[], metavar="NAME=VALUE", help=told)


def given_flags(options: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return the arguments of a check that were given as flags.

    Raises:
        ValueError: a flag's value is invalid.
    """
    flags = {name: flag for name in names if (flag := ARGUMENTS[name].flag) is not None}
    return {
        name: flag.read(value)
        for name, flag in flags.items()
        if (value := getattr(options, name)) is not None
    } | (_model_arguments(options) if "model_args" in names else {})


def checked(options: argparse.Namespace, names: Collection[str], **more: Any) -> CheckArguments:
    """Return the arguments of a check from the command line.

    Raises:
        ValueError: an argument has a wrong type. The message contains its flag.
    """
    given = given_flags(options, names)
    try:
        return CheckArguments.of(model=options.model, state_dict_key=options.key, **given, **more)
    except ValueError as error:
        flags = re.compile(rf"\b({'|'.join(ARGUMENTS)})=(?=[ '\"\[])")
        text = flags.sub(lambda name: f"--{name[1].replace('_', '-')} ", str(error))
        raise ValueError(" ".join(text.split())) from None


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
    if found and getattr(options, "model_args", None):
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

    try:
        return Limits.parse(options.limit)
    except ValueError as error:
        raise ValueError(f"--limit: {error}") from None


def make_importable() -> None:
    """Make the current folder importable, as with ``python -m``."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds strings
        sys.path.insert(0, "")
