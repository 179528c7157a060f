"""Recognise whole small objects with a regular expression, because pickles may hold very many of them.

A distributed checkpoint's index has three objects for each block of each tensor. The pattern is
what Python's pickler (protocol 4 and later) writes for an object whose state is a flat dict of known names.
Anything else is read opcode by opcode, with the same result.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.limits import exceeded

from .pickle_stubs import Global, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pickle_stack import Stack

_REFERENCE = rb"h.|j.{4}"
_NUMBERS = rb"(?:K.|M.{2}|J.{4}|\x8a\x05.{5})"
_TUPLE = rb"(?:" + _NUMBERS + rb"{1,3}[\x85-\x87]\x94|\(" + _NUMBERS + rb"{4,64}t\x94|\))"
_BEGIN = rb"\x94\}\x94\("
_VALUE = (rb"(" + _NUMBERS + rb"|\x8c.[\x20-\x7e]+\x94|N|(?:") + (
    _REFERENCE + rb")(?:" + _TUPLE + rb"\x85\x94R\x94)?)"
)
_FIELD = rb"(" + _REFERENCE + rb")" + _VALUE
_OBJECTS = {count: re.compile(_BEGIN + _FIELD * count + rb"ub", re.DOTALL) for count in (2, 3, 4)}
_WIDTHS = {0x4B: 1, 0x4D: 2, 0x4A: 4, 0x8A: 6}
_LENGTHS = {0x68: 2, 0x6A: 5}
_BYTE, _TEXT, _NONE = 0x4B, 0x8C, 0x4E
_OPERATIONS = 3
"""The operations before an object, which are not counted: records have a limit of their own."""

_MOST_CACHED = 100_000
_MOST_WAYS = 100
"""How many patterns are compiled: one for each way in which a pickle refers to the names."""


class _Gone:
    """A placeholder in the memo for the state of a record, to which Python's pickler never refers again."""

    __slots__ = ()


_GONE = _Gone()


class Records:
    """A recognizer for objects of one class.

    Args:
        names: the attribute names that an object may have, in order; several alternatives.
    """

    def __init__(self, *names: tuple[str, ...]) -> None:
        self._names = names
        self._patterns = [_OBJECTS[count] for count in sorted({len(each) for each in names}, reverse=True)]
        self._usual: re.Pattern[bytes] | None = None
        self._usual_names: tuple[str, ...] = ()
        self._ways = 0
        self._sizes: dict[bytes, tuple[Any, ...]] = {}

    def take(self, stack: Stack, kind: Global) -> Record | None:
        """Return the object at the stack's position and move behind it; None: read it opcode by opcode."""
        memo = stack.memo
        if stack.memo_rewritten:  # the patterns assume that a reference keeps its meaning
            return None
        match = None if self._usual is None else self._usual.match(stack.data, stack.position)
        if match is None and (match := self._first(stack)) is None:
            return None
        values: list[Any] = []
        kept: list[Any] = []
        for part in match.groups():
            first = part[0]
            if first == _BYTE:
                values.append(part[1])
            elif first in _WIDTHS:
                values.append(_number(part))
            elif len(part) == _LENGTHS.get(first):
                values.append(memo[_index(part)])
            elif first == _TEXT:
                if part[1] != len(part) - 3:
                    return None
                text = part[2:-1].decode("ascii")
                values.append(text)
                kept.append(text)
            elif first == _NONE:
                values.append(None)
            else:
                made = self._sizes.get(part) or self._size(part, memo)
                if made is None:
                    return None
                values.append(made[-1])
                kept += made
        record = Record(kind, self._usual_names, tuple(values))
        memo += (record, _GONE, *kept)
        stack.position = match.end()
        stack.left += _OPERATIONS
        stack.records_left -= 1
        if stack.records_left < 0:
            raise exceeded("records", stack.limits.records, "its index holds too many blocks")
        return record

    def _first(self, stack: Stack) -> re.Match[bytes] | None:
        """Match an object with other references to its attribute names, and expect the same of the next."""
        for pattern in self._patterns if self._ways < _MOST_WAYS else ():
            match = pattern.match(stack.data, stack.position)
            if match is not None:
                references = match.groups()[::2]
                indices = [_index(reference) for reference in references]
                names = tuple(stack.memo[index] if index < len(stack.memo) else None for index in indices)
                if names not in self._names:
                    return None
                self._ways += 1
                fields = b"".join(re.escape(reference) + _VALUE for reference in references)
                self._usual = re.compile(_BEGIN + fields + b"ub", re.DOTALL)
                self._usual_names = names
                return self._usual.match(stack.data, stack.position)
        return None

    def _size(self, part: bytes, memo: list[Any]) -> tuple[Any, ...] | None:
        """Return what a call of ``torch.Size`` adds to the memo: numbers, arguments and the result."""
        length = _LENGTHS[part[0]]
        index = _index(part[:length])
        callee = memo[index] if index < len(memo) else None
        rebuild: Callable[..., object] | None = callee.rebuild if type(callee) is Global else None
        if type(callee) is not Global or rebuild is None or callee.name != "torch.Size":
            return None
        numbers, at = [], length + (part[length] == 0x28)
        while part[at] in _WIDTHS:
            width = 1 + _WIDTHS[part[at]]
            numbers.append(_number(part[at : at + width]))
            at += width
        expected = {0x85: 1, 0x86: 2, 0x87: 3, 0x29: 0}.get(part[at], len(numbers))
        if len(numbers) != expected:
            return None
        items = tuple(numbers)
        made: tuple[Any, ...] = ((items,), rebuild((items,)))
        made = (items, *made) if items else made
        if len(self._sizes) < _MOST_CACHED:
            self._sizes[part] = made
        return made


def _index(reference: bytes) -> int:
    return int.from_bytes(reference[1:], "little")


def _number(part: bytes) -> int:
    first = part[0]
    if first == 0x8A:
        return int.from_bytes(part[2:], "little", signed=True)
    return int.from_bytes(part[1:], "little", signed=first == 0x4A)
