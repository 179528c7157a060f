"""Python source that fits a width and can be pasted: how a suggestion is printed."""

from __future__ import annotations

import ast
import textwrap
import unicodedata
from dataclasses import dataclass, field


def pasted(source: str, width: int) -> list[str]:
    """One Python call, such as a recipe's ``repr``, as lines of at most `width` columns where possible.

    The lines mean the same as `source`. Calls and lists are broken after their commas, long strings into
    adjacent pieces. Characters that don't print, or not in one column, are written as escapes. A source that
    is no Python comes back as it is.
    """
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return source.splitlines()
    lines = [line.encode() for line in source.splitlines()]
    return _lines(_part(tree, lines), 0, width)


@dataclass(frozen=True, slots=True)
class _Part:
    """An expression as it would stand on one line, and what it is made of where it can be broken."""

    flat: str
    opening: str = ""
    items: list[_Part] = field(default_factory=list)
    closing: str = ""
    prefix: str = ""
    text: str | None = None

    @property
    def whole(self) -> str:
        return self.prefix + self.flat


def _part(node: ast.expr, lines: list[bytes], prefix: str = "") -> _Part:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _Part(_quoted(node.value), text=node.value, prefix=prefix)
    if isinstance(node, ast.Call):
        items = [_part(argument, lines) for argument in node.args]
        items += [_part(argument.value, lines, f"{argument.arg}=") for argument in node.keywords]
        return _broken(f"{_literal(node.func, lines)}(", items, ")", prefix)
    if isinstance(node, ast.List):
        return _broken("[", [_part(item, lines) for item in node.elts], "]", prefix)
    if isinstance(node, ast.Tuple):
        items = [_part(item, lines) for item in node.elts]
        return _broken("(", items, ",)" if len(items) == 1 else ")", prefix)
    return _Part(_literal(node, lines), prefix=prefix)


def _broken(opening: str, items: list[_Part], closing: str, prefix: str) -> _Part:
    flat = f"{opening}{', '.join(item.whole for item in items)}{closing}"
    return _Part(flat, opening, items, closing, prefix)


def _literal(node: ast.expr, lines: list[bytes]) -> str:
    """The source of a name or a number."""
    if node.lineno != node.end_lineno:
        return ast.unparse(node)
    return lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()


def _lines(part: _Part, indent: int, width: int, comma: str = "") -> list[str]:
    margin = " " * indent
    if indent + len(part.whole) + len(comma) <= width:
        return [f"{margin}{part.whole}{comma}"]
    if part.text is not None:
        return _pieces(part, indent, width, comma)
    if not part.items:
        return [f"{margin}{part.whole}{comma}"]
    if part.opening in "[(" and all(item.text is None and not item.items for item in part.items):
        numbers = ", ".join(item.flat for item in part.items) + ","
        inner = textwrap.wrap(
            numbers,
            width,
            initial_indent=margin + "    ",
            subsequent_indent=margin + "    ",
            break_long_words=False,
            break_on_hyphens=False,  # a number such as 1e-05 is one word
        )
    else:
        inner = [line for item in part.items for line in _lines(item, indent + 4, width, ",")]
    return [f"{margin}{part.prefix}{part.opening}", *inner, f"{margin}{part.closing.lstrip(',')}{comma}"]


def _pieces(part: _Part, indent: int, width: int, comma: str) -> list[str]:
    """A long string as adjacent literals, which Python joins."""
    assert part.text is not None
    margin = " " * indent
    lines, piece = [], f"{margin}{part.prefix}"
    room = max(width - indent - len('"",'), 8)
    taken, used = "", len(part.prefix)
    for character in part.text:
        size = len(_escaped(character))
        if taken and used + size > room:
            lines.append(f"{piece}{_quoted(taken)}")
            piece, taken, used = margin, "", 0
        taken += character
        used += size
    return [*lines, f"{piece}{_quoted(taken)}{comma}"]


def _quoted(text: str) -> str:
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "#":  # CI services take "##[" and "##vso[" anywhere on a line for a command
        return r"\x23"
    if one_column(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_column(character: str) -> bool:
    """Whether every terminal shows the character, and in exactly one column."""
    if character.isascii():
        return character.isprintable()
    return (
        character.isprintable()
        and unicodedata.east_asian_width(character) not in "WF"
        and unicodedata.category(character) not in ("Mn", "Me", "Mc")
    )
