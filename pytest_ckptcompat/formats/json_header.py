"""Reads the JSON of headers from its bytes, one token at a time: nothing is built but what is asked for.

``json.loads`` makes gigabytes of objects of some megabytes of text such as ``[[],[],[],...``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.limits import exceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits

_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"((?:[^"\\\x00-\x1f]++|\\.)*+)"', re.DOTALL)
_SCALAR = re.compile(rb"(?:true|false|null|-?[0-9][-+.eE0-9]{0,400}+)")
_NATURAL = re.compile(rb"(?:0|[1-9][0-9]{0,19}+)(?![.eE0-9])")


def loads(data: bytes, limits: Limits) -> Any:
    """The whole content of JSON text of a format of our own, of which it is known how many parts it may have.

    Raises:
        ValueError: it is no JSON.
        CheckpointError: it has more parts than `limits` allows.
    """
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")
    limits.check("json_tokens", parts, f"the text has {parts} parts")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("too deeply nested") from None


class Scanner:
    """A position within JSON text.

    Args:
        data: the text, UTF-8.
        what: is named in errors: ``"its header"``.
        limits: caps.
    """

    def __init__(self, data: bytes, what: str, limits: Limits) -> None:
        self.data = data
        self.position = 0
        self._what = what
        self._limits = limits
        self._tokens = limits.json_tokens

    def peek(self) -> bytes:
        """The next byte that is not a space, or ``b""``; it is not taken."""
        self._tokens -= 1
        if self._tokens < 0:
            raise exceeded("json_tokens", self._limits.json_tokens, f"{self._what} has too many parts")
        byte = self.data[self.position : self.position + 1]
        if byte > b" ":
            return byte
        match = _SPACE.match(self.data, self.position)
        assert match
        self.position = match.end()
        return self.data[self.position : self.position + 1]

    def take(self, wanted: bytes) -> None:
        """Pass over one byte, which must be this one."""
        if self.peek() != wanted:
            raise self.error(f"{wanted.decode()!r} is missing")
        self.position += 1

    def string(self) -> str:
        """A string.

        Raises:
            CheckpointError: there is none, or it is no Unicode.
        """
        self.peek()
        match = _STRING.match(self.data, self.position)
        if match is None:
            raise self.error("a string is missing")
        text = self.text(match[1])
        self.position = match.end()
        return text

    def text(self, raw: bytes) -> str:
        """The text of a string that stands between quotes."""
        try:
            if b"\\" not in raw:
                return raw.decode()
            text: str = json.loads(b'"' + raw + b'"')
            text.encode()  # a lone surrogate is no Unicode
        except ValueError:
            raise self.error("a string is damaged") from None
        return text

    def natural(self) -> int:
        """A natural number."""
        self.peek()
        match = _NATURAL.match(self.data, self.position)
        if match is None:
            raise self.error("a natural number is missing")
        self.position = match.end()
        return int(match[0])

    def members(self) -> Iterator[str]:
        """The keys of an object; the value of each is to be taken before the next is asked for."""
        self.take(b"{")
        while self.peek() != b"}":
            key = self.string()
            self.take(b":")
            yield key
            if self.peek() != b"}":
                self.take(b",")
                if self.peek() == b"}":
                    raise self.error("a comma too many")
        self.position += 1

    def elements(self) -> Iterator[None]:
        """Once for each element of an array, which is to be taken before the next is asked for."""
        self.take(b"[")
        while self.peek() != b"]":
            yield None
            if self.peek() != b"]":
                self.take(b",")
                if self.peek() == b"]":
                    raise self.error("a comma too many")
        self.position += 1

    def skip(self) -> None:
        """Pass over any value, however deep, keeping nothing."""
        closing = bytearray()
        while True:
            byte = self.peek()
            if byte in (b"{", b"["):
                self.position += 1
                closing += b"}" if byte == b"{" else b"]"
                if self.peek() != closing[-1:]:
                    self._to_value(closing)
                    continue
            else:
                self._pass(_STRING if byte == b'"' else _SCALAR)
            while closing and self.peek() == closing[-1:]:
                closing.pop()
                self.position += 1
            if not closing:
                return
            self.take(b",")
            self._to_value(closing)

    def _to_value(self, closing: bytearray) -> None:
        """Pass over the key, where values have one."""
        if closing[-1:] == b"}":
            self._pass(_STRING)
            self.take(b":")

    def _pass(self, pattern: re.Pattern[bytes]) -> None:
        self.peek()
        match = pattern.match(self.data, self.position)
        if match is None:
            raise self.error("a value is missing or damaged")
        self.position = match.end()

    def end(self) -> None:
        """Nothing but space may follow."""
        if self.peek():
            raise self.error("something follows it")

    def error(self, reason: str) -> CheckpointError:
        """The error that the text is not such JSON."""
        return CheckpointError(f"{self._what} is damaged at its byte {self.position}: {reason}")


def naturals(scanner: Scanner) -> Iterator[int]:
    """The natural numbers of an array."""
    for _ in scanner.elements():
        yield scanner.natural()
