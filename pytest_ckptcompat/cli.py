"""The ``ckptcompat`` command: the same checks without pytest, and checkpoints looked at without torch."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

from .checks.arguments import ARGUMENTS
from .core.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checkpoint.checkpoint import Checkpoint

OK, INCOMPATIBLE, UNCHECKED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code says how it went (0 fits or same, 1 not, 2 could not tell)."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a report has × and …, which not every terminal has
    try:
        return int(options.run(options))
    except (CheckpointError, RecipeError, ValueError) as error:
        print(f"ckptcompat: {error}", file=sys.stderr)
        return UNCHECKED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ckptcompat", description="Does the checkpoint still load into the model?"
    )
    parser.set_defaults(limit=[], key=None)
    commands = parser.add_subparsers(required=True, metavar="command")

    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="raise a cap of the readers"
    )
    reading.add_argument(
        "--key", metavar="PATH", help="dotted path to the state dict inside a wrapped checkpoint"
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    growing = argparse.ArgumentParser(add_help=False)
    growing.add_argument("ckpt", metavar="CKPT", help="the checkpoint")
    growing.add_argument(
        "model", metavar="MODEL", help="package.module:name; the current folder is importable"
    )

    show = commands.add_parser("show", parents=[reading, as_json], help="the keys, shapes, dtypes and sizes")
    show.add_argument("ckpt", metavar="CKPT")
    show.set_defaults(run=_show)

    diff = commands.add_parser(
        "diff", parents=[reading, as_json], help="two checkpoints or locks side by side"
    )
    diff.add_argument("new", metavar="NEW")
    diff.add_argument("--against", required=True, metavar="OLD")
    diff.set_defaults(run=_diff)

    check = commands.add_parser("check", parents=[growing, reading, as_json], help="the marker's check")
    for name, argument in ARGUMENTS.items():
        if argument.flag is not None:
            flag, action = argument.flag, "append" if argument.flag.repeat else "store"
            option = f"--{name.replace('_', '-')}"
            check.add_argument(option, action=action, metavar=flag.metavar, help=flag.help)
    check.add_argument("--require-cuda", action="store_true", help="fail unless the forward pass ran on CUDA")
    check.add_argument("-v", "--verbose", action="count", default=0, help="a longer report; -vv: all of it")
    check.set_defaults(run=_check)

    lock = commands.add_parser("lock", parents=[reading], help="the table as a small reviewable file")
    lock.add_argument("source", metavar="CKPT_OR_MODEL")
    lock.add_argument("-o", "--output", required=True, metavar="net.ckpt.json")
    lock.add_argument(
        "--sha256", action="store_true", help="with the hash of the file's bytes: reads all of it"
    )
    lock.set_defaults(run=_lock)

    apply = commands.add_parser("apply", parents=[growing, reading], help="write the grown checkpoint")
    apply.add_argument("--recipe", required=True, metavar="FILE.toml")
    apply.add_argument("-o", "--output", required=True, metavar="OUT", help="a .safetensors or .pth file")
    apply.set_defaults(run=_apply)

    rules = commands.add_parser("rules", parents=[as_json], help="every rule, its severity and meaning")
    rules.set_defaults(run=_rules)
    return parser


def _opened(path: str, options: argparse.Namespace) -> Checkpoint:
    from .checkpoint.checkpoint import open_checkpoint
    from .core.limits import Limits

    return open_checkpoint(path, options.key, limits=Limits.parse(options.limit))


def _show(options: argparse.Namespace) -> int:
    from .report.listing import listed, listed_json

    ckpt = _opened(options.ckpt, options)
    print(listed_json(ckpt) if options.json else listed(ckpt))
    return OK


def _diff(options: argparse.Namespace) -> int:
    from .report.listing import changes, contrasted, contrasted_json

    new, old = _opened(options.new, options), _opened(options.against, options)
    print(contrasted_json(old, new) if options.json else contrasted(old, new))
    return INCOMPATIBLE if changes(old, new) else OK


def _check(options: argparse.Namespace) -> int:
    from .checks.arguments import CheckArguments
    from .checks.check import Check
    from .report.terminal import render

    _importable()
    given = {
        name: row.flag.read(value)
        for name, row in ARGUMENTS.items()
        if row.flag is not None and (value := getattr(options, name)) is not None
    }
    case = CheckArguments.of(model=options.model, state_dict_key=options.key, **given)
    check = Check(
        case, options.ckpt, lambda key: _opened(options.ckpt, options), require_cuda=options.require_cuda
    )
    report = check.run()
    print(
        report.to_json()
        if options.json
        else render(
            report,
            shutil.get_terminal_size().columns,
            options.verbose,
            color=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
            where="-vv shows all, --json prints it",
            table="recipe",
        )
    )
    if any(found.rule in ("no-checkpoint", "model-error") for found in report.errors):
        return UNCHECKED
    return OK if report.ok else INCOMPATIBLE


def _lock(options: argparse.Namespace) -> int:
    from .checkpoint.lock_writer import lock_of_checkpoint, write_lock
    from .checks.locks import lock_of_model

    is_model = ":" in options.source and "://" not in options.source and not os.path.lexists(options.source)
    if is_model:
        _importable()
        content = lock_of_model(options.source)
    else:
        content = lock_of_checkpoint(_opened(options.source, options), options.output, sha256=options.sha256)
    write_lock(options.output, content)
    return OK


def _apply(options: argparse.Namespace) -> int:
    from .checks.apply import MisfitError, apply
    from .core.errors import ModelError
    from .models.blueprint import blueprint
    from .recipes.recipe import Recipe

    _importable()
    try:
        model = blueprint(options.model).schema()
    except ModelError as error:
        raise ValueError(str(error)) from None
    ckpt, recipe = _opened(options.ckpt, options), Recipe.load(options.recipe)
    try:
        written = apply(ckpt, model, recipe, options.output)
    except (MisfitError, RecipeError) as error:
        print(f"ckptcompat: nothing was written: {error}", file=sys.stderr)
        return INCOMPATIBLE
    except OSError as error:
        raise ValueError(f"{options.output} can't be written: {error.strerror or error}") from None
    print(written)
    return OK


def _rules(options: argparse.Namespace) -> int:
    from .core.rules import RULES

    if options.json:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "rules": [
                        {"id": rule.id, "severity": rule.severity, "meaning": rule.meaning}
                        for rule in RULES.values()
                    ],
                },
                indent=2,
            )
        )
    else:
        from tabulate import tabulate

        print(
            tabulate(
                [(rule.id, rule.severity, rule.meaning) for rule in RULES.values()],
                headers=("rule", "severity", "meaning"),
                tablefmt="simple",
            )
        )
    return OK


def _importable() -> None:
    """The current folder is importable, as it is for ``python -m``."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds texts
        sys.path.insert(0, "")
