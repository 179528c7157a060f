"""Advice as lines of text, with whole recipes that can be pasted where the user declares recipes."""

from __future__ import annotations

import ast
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.escape import code

from .fit_text import one_column, wrapped

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
    return wrapped(text[0].lower() + text[1:].removesuffix("."), width, 1, hanging)


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
    return "".join(each if " " <= each <= "~" and each != "#" else _toml_code(ord(each)) for each in line)


def _toml_code(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# -- Python ------------------------------------------------------------------------------------------------


def pasted(source: str, width: int) -> list[str]:
    """Break a Python call, such as a recipe's ``repr``, into lines of at most `width` columns if possible.

    The lines mean the same as `source`. Calls and lists are broken after commas, long strings into adjacent
    pieces. Characters that don't print in exactly one column are escaped. A source that is not valid Python
    is returned as it is.
    """
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return source.splitlines()
    return _lines("", call, 0, width)


def _lines(prefix: str, node: ast.expr, indent: int, width: int, comma: str = "") -> list[str]:
    """Return an expression behind a prefix such as ``dim=`` as indented lines."""
    margin = " " * indent
    flat = f"{margin}{prefix}{_flat(node)}{comma}"
    if len(flat) <= width:
        return [flat]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _pieces(prefix, node.value, margin, width, comma)
    opening, items, closing = _parts(node)
    if not items:
        return [flat]
    if isinstance(node, ast.List | ast.Tuple) and all(_is_atom(item) for _, item in items):
        inside = textwrap.wrap(
            ", ".join(_flat(item) for _, item in items) + ",",
            width,
            initial_indent=margin + "    ",
            subsequent_indent=margin + "    ",
            break_long_words=False,
            break_on_hyphens=False,  # a number such as 1e-05 is one word
        )
    else:
        inside = [line for name, item in items for line in _lines(name, item, indent + 4, width, ",")]
    return [f"{margin}{prefix}{opening}", *inside, f"{margin}{closing}{comma}"]


def _parts(node: ast.expr) -> tuple[str, list[tuple[str, ast.expr]], str]:
    """Split a call, list or tuple into its opening, its items with their names, and its closing."""
    if isinstance(node, ast.Call):
        named = [(f"{each.arg}=", each.value) for each in node.keywords]
        return f"{ast.unparse(node.func)}(", [*(("", each) for each in node.args), *named], ")"
    if isinstance(node, ast.List | ast.Tuple):
        opening, closing = "[]" if isinstance(node, ast.List) else "()"
        return opening, [("", each) for each in node.elts], closing
    return "", [], ""


def _is_atom(node: ast.expr) -> bool:
    return not _parts(node)[1] and not (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _flat(node: ast.expr) -> str:
    """Return an expression on one line."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _quoted(node.value)
    opening, items, closing = _parts(node)
    if not opening:
        return ast.unparse(node)
    single = "," if isinstance(node, ast.Tuple) and len(items) == 1 else ""
    return f"{opening}{', '.join(name + _flat(item) for name, item in items)}{single}{closing}"


def _pieces(prefix: str, text: str, margin: str, width: int, comma: str) -> list[str]:
    """Split a long string into adjacent literals, which Python joins."""
    room = max(width - len(margin) - len('"",'), 8)
    lines, taken, used = [], "", len(prefix)
    for character in text:
        size = len(_escaped(character))
        if taken and used + size > room:
            lines.append(f"{margin}{prefix}{_quoted(taken)}")
            prefix, taken, used = "", "", 0
        taken += character
        used += size
    return [*lines, f"{margin}{prefix}{_quoted(taken)}{comma}"]


def _quoted(text: str) -> str:
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "#":  # CI services run "##[" and "##vso[" anywhere on a line as commands
        return r"\x23"
    return character if one_column(character) else code(character)
