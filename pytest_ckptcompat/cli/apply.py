"""The command ``ckptcompat apply``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import (
    add_checkpoint_and_model,
    add_flags,
    add_reading,
    checked,
    make_importable,
    opened,
)
from .outcome import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

_TAKEN = ("source_model", "optimizer", "optimizer_state", "allow", "protect")
"""The arguments of a check that this command also takes, with the same effect."""

SUMMARY = "write the checkpoint that a recipe makes"
EXITS = "0 written, 1 the recipe does not make it fit, 2 it could not be written"
RUNS_CODE = True
"""The hooks of a ``conftest.py`` are used."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_checkpoint_and_model(parser)
    parser.add_argument("--recipe", required=True, metavar="FILE.toml", help="the recipe file")
    out = "a .safetensors or .pth file, or a folder (ending with a slash) for a distributed checkpoint"
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=out)
    add_flags(parser, _TAKEN)
    parser.add_argument("--force", action="store_true", help="replace the checkpoint itself, or a folder")
    add_reading(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Write the grown checkpoint, completely or not at all."""
    from pytest_ckptcompat.checks.apply import MisfitError, apply_declared
    from pytest_ckptcompat.core.errors import RecipeError
    from pytest_ckptcompat.files.paths import display
    from pytest_ckptcompat.recipes.recipe import Recipe

    make_importable()
    arguments = checked(options, _TAKEN, recipe=Recipe.load(options.recipe))
    try:
        written = apply_declared(
            arguments,
            lambda key: opened(options.ckpt, options, key),
            options.output,
            force=options.force,
        )
    except (MisfitError, RecipeError) as error:
        return Outcome(INCOMPATIBLE, refusal=f"nothing was written: {error}")
    except OSError as error:
        raise ValueError(f"{display(options.output)} can't be written: {error.strerror or error}") from None
    return Outcome(OK, str(written))
