"""Long texts cut to the room there is, so that the cut shows and no two of them look the same."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST = 10
"""Room below which nothing sensible can be shown."""


def elide(texts: Sequence[str], room: int) -> list[str]:
    """The texts in at most `room` characters each (`LEAST` or more), with ``…`` for what was left out.

    Texts that differ still differ: where cutting out the middle would hide the difference, what follows the
    common beginning is kept, and where that is not enough the texts are numbered, ``…[2]…``.
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
    """The text in about `most` characters, with the count of what was left out of its middle."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…(+{len(text) - most} characters)…{text[len(text) - (most - most // 2) :]}"


def _common(texts: Sequence[str]) -> int:
    """How many characters all of the texts begin with."""
    first, last = min(texts), max(texts)  # every other text lies between these two
    unequal = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(unequal, len(first))


def _clashes(short: dict[str, str]) -> Iterator[list[str]]:
    """The texts that would look the same."""
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
    """The beginning, the middle, and as much of the end as there is room for."""
    tail = max(room - head - len(middle), 0)
    return f"{text[:head]}{middle}{text[len(text) - tail :]}"
