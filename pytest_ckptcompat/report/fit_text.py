"""Fit texts to a width: keys are cut, and Python source can still be pasted."""

from __future__ import annotations

import ast
import textwrap
import unicodedata
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST = 10
"""The least room in which anything sensible can be shown."""


def elide(texts: Sequence[str], room: int) -> list[str]:
    """Cut texts to at most `room` characters each (at least `LEAST`), with ``…`` for what was cut.

    Different texts stay different: if cutting the middle would hide the difference, the part after the common
    beginning is kept, and if that is not enough, the texts are numbered, ``…[2]…``.
    No text may contain ``…`` itself.
    """
    room = max(room, LEAST)
    short = {text: _without_middle(text, room) for text in texts}
    for alike in _clashes(short):
        start = _common(alike)
        short.update((text, _with_window(text, start, room)) for text in alike)
    taken = set(short.values())
    numbers = count(1)
    for text in [text for alike in _clashes(short) for text in alike]:
        short[text] = next(form for n in numbers if (form := _numbered(text, n, room)) not in taken)
    return [short[text] for text in texts]


def shortened(text: str, most: int) -> str:
    """Cut a text to about `most` characters, with the number of characters cut from its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…(+{len(text) - most} characters)…{text[len(text) - (most - most // 2) :]}"


def _common(texts: Sequence[str]) -> int:
    """Return the length of the common beginning of the texts."""
    first, last = min(texts), max(texts)  # all other texts sort between these two
    unequal = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(unequal, len(first))


def _clashes(short: dict[str, str]) -> Iterator[list[str]]:
    """Return groups of texts that would look the same."""
    seen: dict[str, list[str]] = {}
    for text, shown in short.items():
        seen.setdefault(shown, []).append(text)
    return (texts for texts in seen.values() if len(texts) > 1)


def _without_middle(text: str, room: int) -> str:
    # The end of a key says more than its beginning: which projection, weight or bias.
    return text if len(text) <= room else _joined(text, room // 4, "…", room)


def _with_window(text: str, start: int, room: int) -> str:
    head = room // 5
    window = text[start : start + room // 3]
    tail = room - head - len(window) - 2
    if start + len(window) + tail >= len(text):
        return _joined(text, head, "…", room)
    return _joined(text, head, f"…{window}…", room)


def _numbered(text: str, number: int, room: int) -> str:
    middle = f"…[{number}]…"
    return _joined(text, max(min(room // 4, room - len(middle)), 0), middle, room)


def _joined(text: str, head: int, middle: str, room: int) -> str:
    """Return the beginning, the middle, and as much of the end as fits."""
    tail = max(room - head - len(middle), 0)
    return f"{text[:head]}{middle}{text[len(text) - tail :]}"


def pasted(source: str, width: int) -> list[str]:
    """Break a Python call, such as a recipe's ``repr``, into lines of at most `width` columns if possible.

    The lines mean the same as `source`. Calls and lists are broken after commas, long strings into adjacent
    pieces. Characters that don't print in exactly one column are escaped. A source that is not valid Python
    is returned as it is.
    """
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return source.splitlines()
    lines = [line.encode() for line in source.splitlines()]
    return _lines(_part(tree, lines), 0, width)


@dataclass(frozen=True, slots=True)
class _Part:
    """An expression on one line, and its parts if it can be broken."""

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
    """Return the source of a name or a number."""
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
    """Split a long string into adjacent literals, which Python joins."""
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
    if character == "#":  # CI services run "##[" and "##vso[" anywhere on a line as commands
        return r"\x23"
    if one_column(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_column(character: str) -> bool:
    """Return whether every terminal shows the character in exactly one column."""
    if character.isascii():
        return character.isprintable()
    return (
        character.isprintable()
        and unicodedata.east_asian_width(character) not in "WF"
        and unicodedata.category(character) not in ("Mn", "Me", "Mc")
    )
