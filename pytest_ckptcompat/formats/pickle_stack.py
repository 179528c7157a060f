"""The state of the pickle machine: bytes, stack, memo, and what is left of the limits."""

from __future__ import annotations

from struct import unpack
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError

from .pickle_stubs import Global, Stub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.limits import Limits

    from .pickle_stubs import Recognizer

    Rebuild = Callable[[tuple[Any, ...]], object]

TRUNCATED = "its pickle is truncated"
_LONGEST_INT = 512
_LONGEST_NUMBER = 4096


class Truncated(CheckpointError):  # noqa: N818  # it says what happened to the pickle
    """Raised if the pickle continues after the bytes that were given."""


class Stack:
    """The state on which the opcodes of a pickle work.

    Args:
        data: bytes that hold the pickle.
        names: name of a class or function -> function to call in its place with the same arguments. It
            raises `TypeError` or `ValueError` if they make no sense, and the pickle is refused.
        persistent: returns the object for a persistent id; the same errors.
        limits: limits on the pickle. The caller checks ``pickle_bytes``.
        start: the offset of the pickle.
        records: name of a class -> recognizer of its objects.

    Attributes:
        position: of the next opcode or of its argument.
        globals: every class or function that the pickle names.
        stack: objects since the last mark.
        outer: the stacks below the marks.
        memory: bytes that further objects may take.
        left: operations that may follow.
        records_left: objects that may still be recognised whole.
        begun: where the operation began that is under way, or was not finished.
        rare: the opcodes that it uses of those which `Machine` does not inline.
        memo_rewritten: whether a place in the memo got another object, which no pickler of Python 3 does.
    """

    def __init__(
        self,
        data: bytes,
        *,
        names: Mapping[str, Rebuild],
        limits: Limits,
        persistent: Callable[[Any], object] | None = None,
        start: int = 0,
        records: Mapping[str, Recognizer] = MappingProxyType({}),
    ) -> None:
        self.data = data
        self.position = start
        self.globals: dict[str, Global] = {}
        self.names = names
        self.records = records
        self.persistent = persistent
        self.limits = limits
        self.protocol = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: list[Any] = []
        self.memory = limits.pickle_memory
        self.left = limits.pickle_opcodes
        self.records_left = limits.records
        self.begun = start
        self.rare: set[int] = set()
        self.memo_rewritten = False

    def push(self, value: object, memory: int = 32) -> None:
        """Put an object on the stack, and count its memory in bytes."""
        self.memory -= memory
        self.stack.append(value)

    def take(self, size: int) -> bytes:
        """Take the next `size` bytes of the pickle."""
        end = self.position + size
        if end > len(self.data):
            raise Truncated(TRUNCATED)
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def line(self) -> bytes:
        """Take the bytes up to the end of the line, and skip the newline."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Truncated(TRUNCATED)
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    def marked(self) -> list[Any]:
        """Remove the last mark, and return the objects above it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def find(self, module: str, name: str) -> Global:
        """Return the `Global` for a class or function. Nothing is imported or looked up."""
        full = f"{module}.{name}"
        size = len(full.encode("utf-8", "surrogatepass"))
        self.limits.check("global_bytes", size, f"a pickle names a class or function of {size} bytes")
        if full not in self.globals:
            self.memory -= 400
            self.globals[full] = Global(full, self.names.get(full), self.records.get(full))
        return self.globals[full]

    def remember(self, index: int, value: object) -> None:
        """Put a value at any memo index: cPickle counted from 1, and pickles may reuse an index."""
        if index < len(self.memo):
            self.memo[index] = value
            self.memo_rewritten = True
            return
        if index > len(self.memo) + 1:
            raise ValueError("memo indices have gaps")
        if index > len(self.memo):
            self.memo.append(Stub("unset memo"))
        self.memo.append(value)

    # -- arguments of opcodes ------------------------------------------------------------------------------

    def number(self) -> bytes:
        """Take a line with a number, and return its text."""
        text = self.line()
        if len(text) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(text)} digits")
        return text.strip()

    def size(self, form: str) -> int:
        """Take a length in the `struct` format `form`."""
        (size,) = unpack(form, self.take({"B": 1, "i": 4, "I": 4, "Q": 8}[form[-1]]))
        if size < 0:
            raise ValueError("a negative length")
        return int(size)

    def push_integer(self, size: int) -> None:
        """Push an integer of `size` bytes. A huge one becomes a `Stub`."""
        if size > _LONGEST_INT:
            self.take(size)
            return self.push(Stub(f"integer of {size} bytes"))
        return self.push(int.from_bytes(self.take(size), "little", signed=True), 64 + size)

    def push_text(self, size: int) -> None:
        """Push a text of `size` bytes in UTF-8."""
        self.push(self.take(size).decode("utf-8", "surrogatepass"), 96 + 4 * size)

    def push_bytes(self, size: int) -> None:
        """Push `size` bytes."""
        self.push(self.take(size), 64 + size)

    def push_string(self, data: bytes) -> None:
        """Push a string of Python 2 as text, like torch, or as bytes if it is not UTF-8."""
        try:
            self.push(data.decode("utf-8"), 96 + 4 * len(data))
        except UnicodeDecodeError:
            self.push(data, 64 + len(data))
