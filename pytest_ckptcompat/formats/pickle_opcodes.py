"""The rarer opcodes of the pickle machine, one function each."""

from __future__ import annotations

import codecs
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from struct import unpack
from typing import TYPE_CHECKING, Any

from .pickle_stubs import Dict, Global, Stub

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pickle_machine import Machine

_LONGEST_INT = 512
_LONGEST_NUMBER = 4096


def unknown(machine: Machine) -> None:
    """An opcode that no protocol has, or one that leads out of the file."""
    opcode = machine.data[machine.position - 1]
    raise ValueError(f"opcode 0x{opcode:02x} is unknown or refers to something outside the file")


# -- numbers and text --------------------------------------------------------------------------------------


def _push(machine: Machine, value: object, memory: int = 32) -> None:
    machine.memory -= memory
    machine.stack.append(value)


def _number(machine: Machine) -> bytes:
    text = machine.line()
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return text.strip()


def _int(machine: Machine) -> None:
    text = _number(machine)
    _push(machine, {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))


def _long(machine: Machine) -> None:
    _push(machine, int(_number(machine).removesuffix(b"L")))


def _counted_long(machine: Machine, size: int) -> None:
    if size > _LONGEST_INT:
        machine.take(size)
        return _push(machine, Stub(f"integer of {size} bytes"))
    return _push(machine, int.from_bytes(machine.take(size), "little", signed=True), 64 + size)


def _text(machine: Machine, size: int) -> None:
    _push(machine, machine.take(size).decode("utf-8", "surrogatepass"), 96 + 4 * size)


def _bytes(machine: Machine, size: int) -> None:
    _push(machine, machine.take(size), 64 + size)


def _string(machine: Machine, data: bytes) -> None:
    """A string of Python 2: torch reads it as UTF-8; what is no UTF-8 (an array's bytes) stays bytes."""
    try:
        _push(machine, data.decode("utf-8"), 96 + 4 * len(data))
    except UnicodeDecodeError:
        _push(machine, data, 64 + len(data))


def _quoted_string(machine: Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b"'", b'"'):
        raise ValueError("a string without its quotes")
    _string(machine, codecs.escape_decode(text[1:-1])[0])


def _line_text(machine: Machine) -> None:
    line = machine.line()
    _push(machine, line.decode("raw-unicode-escape"), 96 + 4 * len(line))


def _size(machine: Machine, form: str) -> int:
    (size,) = unpack(form, machine.take({"B": 1, "i": 4, "I": 4, "Q": 8}[form[-1]]))
    if size < 0:
        raise ValueError("a negative length")
    return int(size)


# -- containers --------------------------------------------------------------------------------------------


def _elements(target: object) -> list[object]:
    if isinstance(target, list):
        return target
    if isinstance(target, Stub):
        if target.elements is None:
            target.elements = []
        return target.elements
    raise TypeError("something is appended to what is no list")


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    machine.memory -= 16
    _elements(machine.stack[-1]).append(item)


def _appends(machine: Machine) -> None:
    items = machine.marked()
    machine.memory -= 16 * len(items)
    _elements(machine.stack[-1]).extend(items)


def _entries(target: object) -> Dict:
    if isinstance(target, Dict):
        return target
    if isinstance(target, Stub):
        if target.items is None:
            target.items = Dict()
        return target.items
    raise TypeError("an entry is set in what is no dict")


def _fill(machine: Machine, entries: Dict, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    machine.memory -= 64 * len(items)
    put = entries.put
    for index in range(0, len(items), 2):
        put(items[index], items[index + 1])


def _set_item(machine: Machine) -> None:
    value = machine.stack.pop()
    key = machine.stack.pop()
    _fill(machine, _entries(machine.stack[-1]), [key, value])


def _set_items(machine: Machine) -> None:
    items = machine.marked()
    _fill(machine, _entries(machine.stack[-1]), items)


def _dict(machine: Machine) -> None:
    items = machine.marked()
    _push(machine, Dict(), 112)
    _fill(machine, machine.stack[-1], items)


def _list(machine: Machine) -> None:
    items = machine.marked()
    _push(machine, items, 64 + 8 * len(items))


def _tuple3(machine: Machine) -> None:
    stack = machine.stack
    last, middle = stack.pop(), stack.pop()
    stack[-1] = (stack[-1], middle, last)
    machine.memory -= 64


# -- the memo and the stack --------------------------------------------------------------------------------


def put(machine: Machine, index: int, value: object) -> None:
    """Remember a value out of turn: cPickle of Python 2 counts from 1, and pickles may reuse an index."""
    memo = machine.memo
    if index >= len(memo):
        if index > len(memo) + 1:
            raise ValueError("memo indices have gaps")
        memo.append(Stub("unset memo"))
        memo.append(value)
    else:
        memo[index] = value


def _put_line(machine: Machine) -> None:
    index = int(_number(machine))
    if index == len(machine.memo):
        machine.memo.append(machine.stack[-1])
    elif index < 0:
        raise ValueError("a negative memo index")
    else:
        put(machine, index, machine.stack[-1])


def _get_line(machine: Machine) -> None:
    index = int(_number(machine))
    if not 0 <= index < len(machine.memo):
        raise ValueError("no such memo")
    machine.stack.append(machine.memo[index])


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _pop_mark(machine: Machine) -> None:
    machine.marked()


def _frame(machine: Machine) -> None:
    """How long the next part is: a hint for buffering."""
    machine.take(8)


def _proto(machine: Machine) -> None:
    machine.protocol = machine.take(1)[0]
    if machine.protocol > 5:
        raise ValueError(f"pickle protocol {machine.protocol} is unknown")


# -- names and objects -------------------------------------------------------------------------------------


def _global(machine: Machine, module: str, name: str) -> Global:
    """A name; those of Python 2 are translated as ``pickle`` does."""
    if machine.protocol < 3:
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
    return machine.find(module, name)


def _global_line(machine: Machine) -> None:
    module = machine.line().decode("utf-8")
    machine.stack.append(_global(machine, module, machine.line().decode("utf-8")))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a class name that is no string")
    machine.stack.append(_global(machine, module, name))


def _new(machine: Machine, kind: object, arguments: object) -> None:
    """An object made by its class; one whose meaning is known is rebuilt, others stay stubs."""
    rebuild = kind.rebuild if isinstance(kind, Global) else None
    if rebuild is not None and isinstance(arguments, tuple):
        return _push(machine, rebuild(arguments), 160)
    return _push(machine, Stub(kind, arguments), 128)


def _newobj(machine: Machine) -> None:
    arguments = machine.stack.pop()
    _new(machine, machine.stack.pop(), arguments)


def _newobj_ex(machine: Machine) -> None:
    named, arguments = machine.stack.pop(), machine.stack.pop()
    kind = machine.stack.pop()
    _push(machine, Stub(kind, (arguments, named)), 160)


def _inst(machine: Machine) -> None:
    module = machine.line().decode("utf-8")
    kind = _global(machine, module, machine.line().decode("utf-8"))
    _new(machine, kind, tuple(machine.marked()))


def _obj(machine: Machine) -> None:
    items = machine.marked()
    _new(machine, items[0], tuple(items[1:]))


def _build(machine: Machine) -> None:
    """The state of an object: its attributes, or whatever its class makes of them."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Stub):
        target.state = state
    elif isinstance(target, Dict):
        target.attributes = state if isinstance(state, Dict) else None
    elif isinstance(target, (Global, list, tuple, str, bytes, int, float, type(None))):
        raise TypeError("a state is set on what is no object")


def _persid_line(machine: Machine) -> None:
    if machine.persistent is None:
        raise ValueError("a persistent id has no meaning here")
    _push(machine, machine.persistent(machine.line().decode("ascii")), 160)


TABLE: dict[int, Callable[[Machine], None]] = {
    ord("N"): lambda machine: machine.stack.append(None),
    0x88: lambda machine: machine.stack.append(True),
    ord("]"): lambda machine: _push(machine, [], 64),
    ord("}"): lambda machine: _push(machine, Dict(), 112),
    0x8F: lambda machine: _push(machine, [], 64),  # EMPTY_SET: a list, since nothing of a file is hashed
    ord("I"): _int,
    ord("L"): _long,
    ord("F"): lambda machine: _push(machine, float(_number(machine))),
    0x8A: lambda machine: _counted_long(machine, _size(machine, "<B")),
    0x8B: lambda machine: _counted_long(machine, _size(machine, "<i")),
    0x8C: lambda machine: _text(machine, _size(machine, "<B")),
    0x8D: lambda machine: _text(machine, _size(machine, "<Q")),
    ord("V"): _line_text,
    ord("U"): lambda machine: _string(machine, machine.take(_size(machine, "<B"))),
    ord("T"): lambda machine: _string(machine, machine.take(_size(machine, "<i"))),
    ord("S"): _quoted_string,
    ord("C"): lambda machine: _bytes(machine, _size(machine, "<B")),
    ord("B"): lambda machine: _bytes(machine, _size(machine, "<I")),
    0x8E: lambda machine: _bytes(machine, _size(machine, "<Q")),
    0x96: lambda machine: _bytes(machine, _size(machine, "<Q")),  # BYTEARRAY8
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _appends,  # ADDITEMS
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("d"): _dict,
    ord("l"): _list,
    0x91: _list,  # FROZENSET
    0x87: _tuple3,
    ord("p"): _put_line,
    ord("g"): _get_line,
    ord("0"): _pop,
    ord("1"): _pop_mark,  # POP_MARK
    ord("2"): lambda machine: machine.stack.append(machine.stack[-1]),  # DUP
    0x80: _proto,
    0x95: _frame,  # FRAME: a hint for buffering
    ord("c"): _global_line,
    0x93: _stack_global,
    0x81: _newobj,
    0x92: _newobj_ex,
    ord("i"): _inst,
    ord("o"): _obj,
    ord("b"): _build,
    ord("P"): _persid_line,
}
"""By opcode. EXT1-4 and the out-of-band buffers of protocol 5 are missing: they lead out of the file."""
