"""The command ``ckptcompat apply``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .options import CHECKPOINT, MODEL, READING, checked, flags, make_importable, opened, option
from .output import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

_TAKEN = ("source_model", "optimizer", "optimizer_state", "allow", "protect")
"""The arguments of a check that this command also takes, with the same effect."""

SUMMARY = "write the checkpoint that a recipe makes"
EXITS = "0 written, 1 the recipe does not make it fit, 2 it could not be written"
RUNS_CODE = True
OPTIONS = (
    CHECKPOINT,
    MODEL,
    option("--recipe", required=True, metavar="FILE.toml", help="the recipe file"),
    option(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a .safetensors or .pth file, or a folder (ending with a slash) for a distributed checkpoint",
    ),
    *flags(_TAKEN),
    option("--force", action="store_true", help="replace the checkpoint itself, or a folder"),
    *READING,
)


def run(options: argparse.Namespace) -> Outcome:
    """Write the grown checkpoint, completely or not at all."""
    from pytest_ckptcompat.checks.apply import MisfitError, apply_declared
    from pytest_ckptcompat.core.errors import RecipeError
    from pytest_ckptcompat.files.paths import display
    from pytest_ckptcompat.recipes.recipe import Recipe

    make_importable()
    arguments = checked(options, _TAKEN, recipe=Recipe.load(options.recipe))
    try:
        at_key = partial(opened, options.ckpt, options)
        written = apply_declared(arguments, at_key, options.output, force=options.force)
    except (MisfitError, RecipeError) as error:
        return Outcome(INCOMPATIBLE, refusal=f"nothing was written: {error}")
    except OSError as error:
        raise ValueError(f"{display(options.output)} can't be written: {error.strerror or error}") from None
    return Outcome(OK, str(written))
