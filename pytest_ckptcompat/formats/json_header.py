"""Read the JSON of headers one token at a time, and build only what the caller asks for.

``json.loads`` would turn a few megabytes of text such as ``[[],[],[],...`` into gigabytes of objects.
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
    """Parse JSON text completely, if it does not have too many parts.

    Raises:
        ValueError: the text is not JSON.
        CheckpointError: the text has more parts than `limits` allows.
    """
    parts = data.count(b",") + data.count(b"[") + data.count(b"{")
    limits.check("json_tokens", parts, f"the text has {parts} parts")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("too deeply nested") from None


class Scanner:
    """A position in JSON text.

    Args:
        data: the text, UTF-8.
        what: the name of the text in errors: ``"its header"``.
        limits: limits on the number of tokens.
    """

    def __init__(self, data: bytes, what: str, limits: Limits) -> None:
        self.data = data
        self.position = 0
        self._what = what
        self._limits = limits
        self._tokens = limits.json_tokens

    def peek(self) -> bytes:
        """Return the next byte that is not a space, without taking it, or ``b""`` at the end."""
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
        """Take one byte, which must be `wanted`."""
        if self.peek() != wanted:
            raise self.error(f"{wanted.decode()!r} is missing")
        self.position += 1

    def string(self) -> str:
        """Take a string.

        Raises:
            CheckpointError: there is no string, or it is not valid Unicode.
        """
        self.peek()
        match = _STRING.match(self.data, self.position)
        if match is None:
            raise self.error("a string is missing")
        text = self.text(match[1])
        self.position = match.end()
        return text

    def text(self, raw: bytes) -> str:
        """Decode the part of a string between the quotes."""
        try:
            if b"\\" not in raw:
                return raw.decode()
            text: str = json.loads(b'"' + raw + b'"')
            text.encode()  # fails for a lone surrogate
        except ValueError:
            raise self.error("a string is damaged") from None
        return text

    def natural(self) -> int:
        """Take a natural number."""
        self.peek()
        match = _NATURAL.match(self.data, self.position)
        if match is None:
            raise self.error("a natural number is missing")
        self.position = match.end()
        return int(match[0])

    def members(self) -> Iterator[str]:
        """Yield the keys of an object. The caller takes each value before asking for the next key."""
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
        """Yield once for each element of an array. The caller takes it before asking for the next."""
        self.take(b"[")
        while self.peek() != b"]":
            yield None
            if self.peek() != b"]":
                self.take(b",")
                if self.peek() == b"]":
                    raise self.error("a comma too many")
        self.position += 1

    def skip(self) -> None:
        """Skip a value of any depth without building anything."""
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
        """Skip the key if the value is in an object."""
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
        """Raise CheckpointError if anything but space follows."""
        if self.peek():
            raise self.error("something follows it")

    def error(self, reason: str) -> CheckpointError:
        """Return the error for damaged JSON at this position."""
        return CheckpointError(f"{self._what} is damaged at its byte {self.position}: {reason}")


def naturals(scanner: Scanner) -> Iterator[int]:
    """Yield the natural numbers of an array."""
    for _ in scanner.elements():
        yield scanner.natural()
