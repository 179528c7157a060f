"""Advice as lines of text, with whole recipes that can be pasted where the user declares recipes."""

from __future__ import annotations

import ast
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from .fit_text import pasted
from .tables import _said

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .advice import RecipeText
    from .facts import Facts

_PLACES = {
    "check.recipe": "put it below its [[check]], in place of any recipe there",
    "recipe": "save it as a recipe file, and give that: --recipe FILE.toml",
}
"""Name of the tables -> where to put a recipe in TOML."""


def advice_lines(report: Facts, width: int, table: str = "") -> list[str]:
    """Return the advice: sentences, recipes to paste, and where to put them.

    Args:
        report: the report with the advice.
        width: the width of sentences and Python; TOML texts can't be wrapped.
        table: ``"check.recipe"`` or ``"recipe"`` for users of TOML, ``""`` for users of Python.
    """
    lines: list[str] = []
    recipes = []
    for each in report.advice:
        lines += ["", *_sentence(each.sentence, width, "")]
        if each.recipe is not None:
            recipes.append(each.recipe)
            lines += _recipe(each.recipe, width - 4, table)
        for note in each.notes:
            lines += _sentence(note, width, "    ")
    if recipes and table and all(recipe.toml for recipe in recipes):
        return [*lines, _PLACES[table]]
    if recipes:
        lines.append("pass it as recipe= (mark or check), with this import:")
        lines += (f"    {line}" for line in _imports([each.python for each in recipes], width - 4))
    return lines


def python_lines(recipe: RecipeText, width: int) -> list[str]:
    """Return a recipe as Python that can be pasted into a file: the import and the recipe."""
    return [*_imports([recipe.python], width), "", *pasted(recipe.python, width)]


def _sentence(text: str, width: int, hanging: str) -> list[str]:
    """Return a sentence as lines, in lower case and without its full stop, like the rest of a report."""
    return _said(text[0].lower() + text[1:].removesuffix("."), width, 1, hanging)


def _recipe(recipe: RecipeText, width: int, table: str) -> Iterator[str]:
    if table and recipe.toml:
        lines = [_plain(line) for line in recipe.toml.replace("[[recipe]]", f"[[{table}]]").splitlines()]
    else:
        lines = pasted(recipe.python, width)
    return (f"    {line}".rstrip() for line in lines)


def _imports(sources: Sequence[str], width: int) -> list[str]:
    """Return the import of the package's names that the recipes use."""
    public = sys.modules[__name__.partition(".")[0]].__all__  # imported before this module
    used = {"Recipe"}
    for source in sources:
        with suppress(SyntaxError, ValueError, RecursionError):
            used |= {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    names = sorted(used & set(public), key=lambda name: (name.islower(), name))
    line = f"from pytest_ckptcompat import {', '.join(names)}"
    if len(line) <= width:
        return [line]
    return ["from pytest_ckptcompat import (", *(f"    {name}," for name in names), ")"]


def _plain(line: str) -> str:
    """Escape a line of TOML so that it prints, and CI does not take it as a command."""
    return "".join(each if " " <= each <= "~" and each != "#" else _code(each) for each in line)


def _code(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
