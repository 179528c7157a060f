"""A bounded pickle machine. It interprets opcodes, but never imports or calls anything that a file names.

The result describes with plain data (`pickle_stubs`) what the pickle would build. For the few names whose
meaning is known, such as ``collections.OrderedDict``, the caller gives replacements.

The language is that of Python's ``pickle``, protocols 0 to 5. ``pickletools`` documents every opcode.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812  # `struct.error` says little, and its module is not needed
from typing import Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.limits import exceeded

from . import pickle_opcodes as opcodes
from .pickle_stack import TRUNCATED, Stack, Truncated
from .pickle_stubs import Global, Stub

# The opcodes that make up nearly all of a checkpoint's pickle.
MARK, STOP, REDUCE, BINPERSID, BINFLOAT = 0x28, 0x2E, 0x52, 0x51, 0x47
BINGET, LONG_BINGET, BINPUT, LONG_BINPUT, MEMOIZE = 0x68, 0x6A, 0x71, 0x72, 0x94
BININT, BININT1, BININT2, NEWFALSE, BINUNICODE = 0x4A, 0x4B, 0x4D, 0x89, 0x58
EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE = 0x29, 0x85, 0x86, 0x74

_U16, _I32, _U32, _F64 = (Struct(form).unpack_from for form in ("<H", "<i", "<I", ">d"))
_BATCH = 4096
_RARE = 80
"""Bytes charged for an operation that is not inlined, in addition to its memory, because it takes longer."""


class Machine(Stack):
    """Runs one pickle; after `load`, ``position`` is its end."""

    def extend(self, data: bytes) -> None:
        """Give the machine the bytes so far, followed by more, to continue `load` after `Truncated`."""
        self.data = data
        self.position = self.begun

    def load(self) -> Any:
        """Run the pickle and return the description of its object.

        Raises:
            Truncated: the bytes end before the pickle does; see `extend`.
            CheckpointError: the pickle is not valid, or exceeds a limit.
        """
        try:
            return self._run()
        except CheckpointError:
            raise
        except StructError:
            raise Truncated(TRUNCATED) from None
        except IndexError:
            if self.position >= len(self.data):
                raise Truncated(TRUNCATED) from None
            raise self._invalid("an operation finds too little on the stack") from None
        except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
            raise self._invalid(str(error)) from None

    def _run(self) -> Any:
        """Run the loop. The most common opcodes are inlined: 100,000 keys take 3.5 million operations."""
        data, position, memory = self.data, self.position, self.memory
        stack, outer, memo = self.stack, self.outer, self.memo
        begun = position
        try:
            while self.left:
                self._check(memory)
                batch = min(_BATCH, self.left)
                self.left -= batch
                for _ in range(batch):
                    begun = position
                    opcode = data[position]
                    position += 1
                    if opcode == LONG_BINPUT:
                        (index,) = _U32(data, position)
                        position += 4
                        if index == len(memo):
                            memo.append(stack[-1])
                        else:
                            self.remember(index, stack[-1])
                    elif opcode == BINGET:
                        stack.append(memo[data[position]])
                        position += 1
                    elif opcode == BININT1:
                        stack.append(data[position])
                        position += 1
                    elif opcode == BINUNICODE:
                        (size,) = _U32(data, position)
                        position += 4 + size
                        if position > len(data):
                            raise Truncated(TRUNCATED)
                        text = data[position - size : position].decode("utf-8", "surrogatepass")
                        memory -= 64 + (size if len(text) == size else 4 * size)
                        stack.append(text)
                    elif opcode == REDUCE:
                        memory -= 96
                        arguments = stack.pop()
                        if type(arguments) is not tuple:
                            raise TypeError("the arguments of a call are not a tuple")
                        callee = stack[-1]
                        rebuild = callee.rebuild if type(callee) is Global else None
                        stack[-1] = Stub(callee, arguments) if rebuild is None else rebuild(arguments)
                    elif opcode == MARK:
                        outer.append(stack)
                        stack = []
                    elif opcode == TUPLE:
                        memory -= 56 + 8 * len(stack)
                        items = tuple(stack)
                        stack = outer.pop()
                        stack.append(items)
                    elif opcode == MEMOIZE:
                        memo.append(stack[-1])
                    elif opcode == EMPTY_TUPLE:
                        stack.append(())
                    elif opcode == BINPUT:
                        if data[position] == len(memo):
                            memo.append(stack[-1])
                        else:
                            self.remember(data[position], stack[-1])
                        position += 1
                    elif opcode == TUPLE1:
                        memory -= 64
                        stack[-1] = (stack[-1],)
                    elif opcode == LONG_BINGET:
                        stack.append(memo[_U32(data, position)[0]])
                        position += 4
                    elif opcode == BINPERSID:
                        memory -= 96
                        if self.persistent is None:
                            raise ValueError("a persistent id has no meaning here")
                        stack[-1] = self.persistent(stack[-1])
                    elif opcode == NEWFALSE:
                        stack.append(False)
                    elif opcode == BININT:
                        memory -= 32
                        stack.append(_I32(data, position)[0])
                        position += 4
                    elif opcode == BININT2:
                        memory -= 32
                        stack.append(_U16(data, position)[0])
                        position += 2
                    elif opcode == TUPLE2:
                        memory -= 64
                        last = stack.pop()
                        stack[-1] = (stack[-1], last)
                    elif opcode == BINFLOAT:
                        memory -= 32
                        stack.append(_F64(data, position)[0])
                        position += 8
                    elif opcode == STOP:
                        self._check(memory)
                        return stack.pop()
                    else:
                        self.rare.add(opcode)
                        self.stack, self.position, self.memory = stack, position, memory - _RARE
                        opcodes.TABLE.get(opcode, opcodes.unknown)(self)
                        stack, position, memory = self.stack, self.position, self.memory
        finally:
            self.stack, self.position, self.memory, self.begun = stack, position, memory, begun
        limit = self.limits.pickle_opcodes
        raise exceeded("pickle_opcodes", limit, "the pickle has too many operations")

    def _check(self, memory: int) -> None:
        limits = self.limits
        if memory < 0:
            raise exceeded("pickle_memory", limits.pickle_memory, "the pickle holds too many objects")
        if len(self.outer) > limits.nesting:
            raise exceeded("nesting", limits.nesting, "the pickle nests containers too deeply")

    def _invalid(self, reason: str) -> CheckpointError:
        return CheckpointError(f"its pickle is damaged at byte {self.position}: {escape(reason)}")
