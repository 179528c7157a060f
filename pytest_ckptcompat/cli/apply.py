"""``ckptcompat apply``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import add_checkpoint_and_model, add_reading, make_importable, opened
from .outcome import INCOMPATIBLE, OK, Outcome

if TYPE_CHECKING:
    import argparse

SUMMARY = "write the checkpoint that a recipe makes"
EXITS = "0 written, 1 the recipe does not make it fit, 2 it could not be written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_checkpoint_and_model(parser)
    parser.add_argument("--recipe", required=True, metavar="FILE.toml", help="the recipe file")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a .safetensors or .pth file")
    add_reading(parser)


def run(options: argparse.Namespace) -> Outcome:
    """The grown checkpoint, written whole or not at all."""
    from pytest_ckptcompat.checks.apply import MisfitError, apply
    from pytest_ckptcompat.core.errors import ModelError, RecipeError
    from pytest_ckptcompat.files.paths import display
    from pytest_ckptcompat.models.blueprint import blueprint
    from pytest_ckptcompat.recipes.recipe import Recipe

    make_importable()
    try:
        model = blueprint(options.model).schema()
    except ModelError as error:
        raise ValueError(str(error)) from None
    ckpt, recipe = opened(options.ckpt, options), Recipe.load(options.recipe)
    try:
        written = apply(ckpt, model, recipe, options.output)
    except (MisfitError, RecipeError) as error:
        return Outcome(INCOMPATIBLE, refusal=f"nothing was written: {error}")
    except OSError as error:
        raise ValueError(f"{display(options.output)} can't be written: {error.strerror or error}") from None
    return Outcome(OK, str(written))
