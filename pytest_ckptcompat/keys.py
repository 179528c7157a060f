"""Keys of state dicts as people meet them: patterns over them, groups of them, text that is safe to print."""

from __future__ import annotations

import difflib
import fnmatch
import heapq
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

# -- patterns ----------------------------------------------------------------------------------------------


def matches(pattern: str, key: str) -> bool:
    """Whether `pattern` is `key` itself, or a glob that covers it.

    Globs are those of `fnmatch`, case-sensitive: ``*`` (dots and newlines too), ``?``, ``[seq]``, ``[!seq]``.
    """
    return pattern == key or fnmatch.fnmatchcase(key, pattern)


def select(pattern: str, keys: Collection[str]) -> list[str]:
    """The keys that `pattern` names, in their order.

    A pattern that is itself a key names that key alone, so a key such as ``blocks[0].weight`` can be named.
    """
    if pattern in keys:
        return [pattern]
    return [key for key in keys if fnmatch.fnmatchcase(key, pattern)]


def nearest(name: str, keys: Iterable[str], n: int = 3) -> list[str]:
    """The at most `n` keys that look most like a name or glob that matches nothing, the likeliest first."""
    wanted = _parts(_GLOB.sub("", name))
    # Comparing text is slow: of many keys, only those that share most parts are compared letter by letter.
    candidates = heapq.nlargest(64, keys, key=lambda key: _shared_parts(wanted, _parts(key)))
    ranked = sorted(candidates, key=lambda key: (-_likeness(name, key), natural(key)))
    return [key for key in ranked if _likeness(name, key) >= 0.6][:n]


_GLOB = re.compile(r"[*?\[\]!]+")
_LETTERS = re.compile(r"[a-zA-Z]+|[0-9]+|[^a-zA-Z0-9.]+")


def _parts(key: str) -> list[str]:
    return _LETTERS.findall(key[:_MOST_COMPARED])


def _shared_parts(wanted: list[str], parts: list[str]) -> float:
    shared = len(set(wanted) & set(parts)) - 0.1 * abs(len(wanted) - len(parts))
    beginnings = {part[:2] for part in wanted} & {part[:2] for part in parts}
    return shared + 0.5 * len(beginnings)


def _likeness(name: str, key: str) -> float:
    """From 0 to 1. Where a glob is open at an end, anything goes: only as much of the key counts."""
    name, key = name[:_MOST_COMPARED], key[:_MOST_COMPARED]
    if name.endswith("*"):
        name = name[:-1]
        key = key[: len(name)]
    elif name.startswith("*"):
        name = name[1:]
        key = key[-len(name) :]
    return difflib.SequenceMatcher(None, name, key, autojunk=False).ratio()


_MOST_COMPARED = 200

# -- order and groups --------------------------------------------------------------------------------------


def natural(key: str) -> tuple[tuple[object, ...], str]:
    """A sort key under which ``layers.2`` comes before ``layers.10``."""
    parts: list[object] = list(_DIGITS.split(key))
    for place in range(1, len(parts), 2):
        number = str(parts[place]).lstrip("0")
        parts[place] = (len(number), number)  # as an int, but for any number of digits
    return tuple(parts), key


_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that differ in indices alone.

    Attributes:
        pattern: ``layers.{0-16,18-31}.attn.q_proj.weight``. Written out, it is exactly `keys`. A brace of a
            key's own is doubled. Unescaped: see `escape`.
        keys: in natural order, at least one.
    """

    pattern: str
    keys: tuple[str, ...]


def group(keys: Iterable[str]) -> list[Group]:
    """Put keys that differ in indices alone together, in the order in which each group's first key came.

    Every key is in one group, and a group's pattern covers its keys and no others: where the indices of
    several places are no full product (blocks of unequal depth), there are several groups. An index is a
    number between dots (``layers.3``); numbers inside a name (``denselayer12``) are taken for indices from
    three of them on, so that ``fc1`` and ``fc2`` keep their names.
    """
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    families: dict[tuple[str, ...], list[str]] = {}
    for key in order:
        families.setdefault(tuple(_INDEX.split(key)[::2]), []).append(key)
    groups: list[Group] = []
    for texts, family in families.items():
        if len(family) == 1:
            groups.append(Group(_doubled(family[0]), (family[0],)))
        else:
            points = [tuple(map(int, _INDEX.findall(key))) for key in family]
            groups += [_group(texts, box) for box in _boxes(points, _least_values(texts))]
    return sorted(groups, key=lambda group: min(map(order.__getitem__, group.keys)))


# A number without leading zeros, so that it can be written back, and of at most nine digits.
_INDEX = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
_Box = tuple[tuple[int, ...], ...]


def _least_values(texts: Sequence[str]) -> list[int]:
    """For each index: how many values it must take before it is shown as a range."""
    between_dots = [before[-1:] in ("", ".") and after[:1] in ("", ".") for before, after in pairwise(texts)]
    return [2 if dotted else 3 for dotted in between_dots]


def _boxes(points: list[tuple[int, ...]], least: Sequence[int]) -> list[_Box]:
    """Points as few disjoint products of index sets; a greedy answer, not always the smallest."""
    whole: list[_Box] = [tuple((value,) for value in point) for point in points]
    varying = [place for place in range(len(points[0])) if len({point[place] for point in points}) > 1][:4]
    answers = []
    for order in (varying, varying[::-1]):
        boxes = whole
        for place in order:
            boxes = _merged(boxes, place, least[place])
        answers.append(boxes)
    return min(answers, key=len)


def _merged(boxes: list[_Box], place: int, least: int) -> list[_Box]:
    """Boxes that differ at one place alone become one, if that place then has `least` values."""
    alike: dict[tuple[_Box, _Box], list[tuple[int, ...]]] = {}
    for box in boxes:
        alike.setdefault((box[:place], box[place + 1 :]), []).append(box[place])
    if len(alike) == len(boxes):
        return boxes
    merged: list[_Box] = []
    for (before, after), values in alike.items():
        if len(values) > 1:
            union = tuple(sorted(value for several in values for value in several))
            values = [union] if len(union) >= least else values
        merged += [(*before, value, *after) for value in values]
    return merged


def _group(texts: Sequence[str], box: _Box) -> Group:
    pattern = "".join(_woven([_doubled(text) for text in texts], [_range(values) for values in box]))
    keys = tuple("".join(_woven(texts, map(str, point))) for point in product(*box))
    return Group(pattern, keys)


def _woven(texts: Sequence[str], between: Iterable[str]) -> Iterator[str]:
    for text, middle in zip(texts, between, strict=False):
        yield text
        yield middle
    yield texts[-1]


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _range(values: Sequence[int]) -> str:
    """``{0-16,18-31}``, and the number alone where there is one."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return (
        "{"
        + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
        + "}"
    )


# -- text from files ---------------------------------------------------------------------------------------


def escape(text: str, limit: int | None = 240) -> str:
    r"""Text from a file, on one line, in characters that only show.

    Control and format characters (newlines, escape sequences, marks that reverse the writing direction or
    join the character before, lone surrogates) become ``\n``, ``\x1b``, ``\u202e``, and a backslash is
    doubled, so that two texts never look the same. What continuous integration takes for a command
    (``::error::`` at the start of a line, ``##[group]``, ``##vso[...]``) is broken up.

    Args:
        text: anything.
        limit: the most characters of the result, at least 40; the middle is cut out, with the count of what
            is missing. None: no limit.
    """
    short = limit is None or len(text) <= limit
    if short and text.isascii() and text.isprintable() and not _UNSAFE.search(text):
        return text
    room = len(text) * _WIDEST if limit is None else max(limit, 40)
    whole = _fill(text, range(len(text)), room)
    return "".join(whole if len(whole) == len(text) else _cut(text, room))


def printable(text: str) -> str:
    """Text of our own on one line.

    It was made safe where it was made; should that have been forgotten, what does not print is escaped.
    """
    line = " ".join(text.split())
    if line.isprintable() and not _COMMAND.search(line):
        return line
    line = "".join(character if character.isprintable() else _code(character) for character in line)
    return _COMMAND.sub(lambda mark: _hex(mark[0]), line)


def _hex(character: str) -> str:
    return f"\\x{ord(character):02x}"


_COMMAND = re.compile(r"^:(?=:)|#(?=#)")
_UNSAFE = re.compile(r"^ *::|##|\\")
_WIDEST = len(r"\U0010ffff")


def _visible(text: str, place: int) -> str:
    character = text[place]
    if character == "\\":
        return r"\\"
    if character == "#" and text[place + 1 : place + 2] == "#":
        return _hex(character)
    if character == ":" and text[place + 1 : place + 2] == ":" and not text[:place].strip():
        return _hex(character)
    if character.isprintable() and unicodedata.category(character) not in ("Mn", "Me"):
        return character
    return _code(character)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, room: int) -> list[str]:
    """The two ends of a long text, with the count of characters left out between them."""
    room -= len(f"…(+{len(text)} characters)…")
    head = _fill(text, range(len(text)), room - room // 3)
    tail = _fill(text, reversed(range(len(text))), room // 3)[::-1]
    return [*head, f"…(+{len(text) - len(head) - len(tail)} characters)…", *tail]


def _fill(text: str, places: Iterable[int], room: int) -> list[str]:
    """As many characters, escaped, as there is room for."""
    taken: list[str] = []
    for place in places:
        shown = _visible(text, place)
        room -= len(shown)
        if room < 0:
            break
        taken.append(shown)
    return taken
