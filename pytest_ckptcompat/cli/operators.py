"""The command ``ckptcompat operators``."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from textwrap import indent
from typing import TYPE_CHECKING

from .options import option
from .output import OK, Outcome, columns, table

if TYPE_CHECKING:
    import argparse

    from pytest_ckptcompat.recipes.base import Operator

SUMMARY = "list the operators of recipes, or explain one"
EXITS = "0 listed, 2 unknown operator"
RUNS_CODE = True
OPTIONS = (option("name", metavar="NAME", nargs="?", help="the operator to explain"),)


def run(options: argparse.Namespace) -> Outcome:
    """Return the list of operators, or one operator in full with an example.

    Raises:
        ValueError: there is no operator of that name.
    """
    from pytest_ckptcompat.core.escape import escape
    from pytest_ckptcompat.core.keys import nearest
    from pytest_ckptcompat.recipes.registry import operators

    known = operators()
    if options.name is None:
        rows = [(name, _plain(_documented(kind).split("\n\n")[0])) for name, kind in sorted(known.items())]
        return Outcome(OK, table(("operator", "does"), rows))
    if options.name not in known:
        near = " or ".join(nearest(options.name, known))
        meant = f"did you mean {near}?" if near else "ckptcompat operators lists them"
        raise ValueError(f"{escape(options.name)!r} is not an operator; {meant}")
    return Outcome(OK, _explained(known[options.name]))


def _explained(kind: type[Operator]) -> str:
    width = columns()
    call = textwrap.wrap(kind.signature(), width, subsequent_indent=" " * 8)
    doc = "\n\n".join(_filled(each, width - 4) for each in _documented(kind).replace("``", "`").split("\n\n"))
    parts = ["\n".join(call), indent(doc, "    ")]
    if example := example_of(kind):
        from pytest_ckptcompat.recipes.recipe import Recipe

        parts.append("In a recipe file:\n\n" + indent(Recipe(example).to_toml().rstrip(), "    "))
    return "\n\n".join(parts)


def _filled(paragraph: str, width: int) -> str:
    """Wrap a paragraph of a docstring, or its list of attributes; return anything else as it is."""
    head, *lines = paragraph.splitlines()
    if not any(line.startswith(" ") for line in lines):
        return textwrap.fill(" ".join([head, *lines]), width)
    if head != "Attributes:":
        return paragraph
    items = re.split(r"\n    (?=\S)", "\n".join(["", *lines]))[1:]
    filled = (
        textwrap.fill(" ".join(item.split()), width, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for item in items
    )
    return "\n".join([head, *filled])


def example_of(kind: type[Operator]) -> Operator | None:
    """Make the operator from the first example call in its docstring; None if there is none."""
    found = re.search(rf"``({re.escape(kind.__name__)}\(.*?\))``", _documented(kind), re.DOTALL)
    if found is None:
        return None
    call = ast.parse(" ".join(found[1].split()), mode="eval").body
    assert isinstance(call, ast.Call)
    given = [ast.literal_eval(value) for value in call.args]
    named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return kind(*given, **named)


def _documented(kind: type[Operator]) -> str:
    return inspect.getdoc(kind) or ""


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
