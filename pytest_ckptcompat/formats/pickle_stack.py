"""The state of a pickle that is being read: its bytes, its stack, its memo, and what is left of the caps."""

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
    """The pickle goes on behind the bytes that were given."""


class Stack:
    """What the opcodes of a pickle work on.

    Args:
        data: bytes that hold the pickle.
        names: name of a class or function -> what we do in place of calling it with these arguments. It
            raises `TypeError` or `ValueError` where they make no sense; the pickle is refused then.
        persistent: what a persistent id stands for; likewise.
        limits: caps; ``pickle_bytes`` is for the caller to check.
        start: where the pickle begins.
        records: name of a class -> recognises its objects whole.

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
        """Put an object on the stack, and charge the bytes that it takes."""
        self.memory -= memory
        self.stack.append(value)

    def take(self, size: int) -> bytes:
        """The next `size` bytes of the pickle."""
        end = self.position + size
        if end > len(self.data):
            raise Truncated(TRUNCATED)
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def line(self) -> bytes:
        """The bytes up to the end of the line, which is passed over."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise Truncated(TRUNCATED)
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    def marked(self) -> list[Any]:
        """What was pushed since the last mark, which is taken away with it."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def find(self, module: str, name: str) -> Global:
        """The class or function of a name, as plain text: nothing is looked up anywhere."""
        full = f"{module}.{name}"
        size = len(full.encode("utf-8", "surrogatepass"))
        self.limits.check("global_bytes", size, f"a pickle names a class or function of {size} bytes")
        if full not in self.globals:
            self.memory -= 400
            self.globals[full] = Global(full, self.names.get(full), self.records.get(full))
        return self.globals[full]

    def remember(self, index: int, value: object) -> None:
        """Put a value into the memo out of turn: cPickle counted from 1, and pickles may reuse an index."""
        if index >= len(self.memo):
            if index > len(self.memo) + 1:
                raise ValueError("memo indices have gaps")
            self.memo.append(Stub("unset memo"))
            self.memo.append(value)
        else:
            self.memo[index] = value
            self.memo_rewritten = True

    # -- arguments of opcodes ------------------------------------------------------------------------------

    def number(self) -> bytes:
        """The text of a number, up to the end of the line."""
        text = self.line()
        if len(text) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(text)} digits")
        return text.strip()

    def size(self, form: str) -> int:
        """A length, packed as `struct` writes `form`."""
        (size,) = unpack(form, self.take({"B": 1, "i": 4, "I": 4, "Q": 8}[form[-1]]))
        if size < 0:
            raise ValueError("a negative length")
        return int(size)

    def push_integer(self, size: int) -> None:
        """An integer of `size` bytes; a huge one stays a stub."""
        if size > _LONGEST_INT:
            self.take(size)
            return self.push(Stub(f"integer of {size} bytes"))
        return self.push(int.from_bytes(self.take(size), "little", signed=True), 64 + size)

    def push_text(self, size: int) -> None:
        """A text of `size` bytes in UTF-8."""
        self.push(self.take(size).decode("utf-8", "surrogatepass"), 96 + 4 * size)

    def push_bytes(self, size: int) -> None:
        """Bytes as they are."""
        self.push(self.take(size), 64 + size)

    def push_string(self, data: bytes) -> None:
        """A string of Python 2: torch reads it as UTF-8; what is not UTF-8 (an array's bytes) stays bytes."""
        try:
            self.push(data.decode("utf-8"), 96 + 4 * len(data))
        except UnicodeDecodeError:
            self.push(data, 64 + len(data))
