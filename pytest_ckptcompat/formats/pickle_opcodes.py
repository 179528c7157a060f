"""The rarer opcodes of the pickle machine, one function each."""

from __future__ import annotations

import codecs
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import TYPE_CHECKING, Any

from .pickle_stack import Stack
from .pickle_stubs import Dict, Global, Set, Stub

if TYPE_CHECKING:
    from collections.abc import Callable


def unknown(pickle: Stack) -> None:
    """Refuse an opcode that no protocol has, or that refers to something outside the file."""
    opcode = pickle.data[pickle.position - 1]
    raise ValueError(f"opcode 0x{opcode:02x} is unknown or refers to something outside the file")


# -- numbers and text --------------------------------------------------------------------------------------


def _int(pickle: Stack) -> None:
    text = pickle.number()
    pickle.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))


def _long(pickle: Stack) -> None:
    pickle.push(int(pickle.number().removesuffix(b"L")))


def _quoted_string(pickle: Stack) -> None:
    text = pickle.line().strip()
    if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b"'", b'"'):
        raise ValueError("a string without its quotes")
    pickle.push_string(codecs.escape_decode(text[1:-1])[0])


def _bytearray(pickle: Stack) -> None:
    pickle.push_bytes(pickle.size("<Q"))
    pickle.stack[-1] = bytearray(pickle.stack[-1])


def _line_text(pickle: Stack) -> None:
    line = pickle.line()
    pickle.push(line.decode("raw-unicode-escape"), 96 + 4 * len(line))


# -- containers --------------------------------------------------------------------------------------------


def _elements(target: object) -> list[object]:
    if isinstance(target, list):
        return target
    if isinstance(target, Stub):
        if target.elements is None:
            target.elements = []
        return target.elements
    raise TypeError("something is appended to what is not a list")


def _append(pickle: Stack) -> None:
    item = pickle.stack.pop()
    pickle.memory -= 16
    _elements(pickle.stack[-1]).append(item)


def _appends(pickle: Stack) -> None:
    items = pickle.marked()
    pickle.memory -= 16 * len(items)
    _elements(pickle.stack[-1]).extend(items)


def _entries(target: object) -> Dict:
    if isinstance(target, Dict):
        return target
    if isinstance(target, Stub):
        if target.items is None:
            target.items = Dict()
        return target.items
    raise TypeError("an entry is set in what is not a dict")


def _fill(pickle: Stack, entries: Dict, items: list[Any]) -> None:
    if len(items) % 2:
        raise ValueError("a key without a value")
    pickle.memory -= 64 * len(items)
    put = entries.put
    for index in range(0, len(items), 2):
        put(items[index], items[index + 1])


def _set_item(pickle: Stack) -> None:
    value = pickle.stack.pop()
    key = pickle.stack.pop()
    _fill(pickle, _entries(pickle.stack[-1]), [key, value])


def _set_items(pickle: Stack) -> None:
    items = pickle.marked()
    _fill(pickle, _entries(pickle.stack[-1]), items)


def _dict(pickle: Stack) -> None:
    items = pickle.marked()
    pickle.push(Dict(), 112)
    _fill(pickle, pickle.stack[-1], items)


def _list(pickle: Stack) -> None:
    items = pickle.marked()
    pickle.push(items, 64 + 8 * len(items))


def _frozenset(pickle: Stack) -> None:
    items = pickle.marked()
    pickle.push(Set(items, frozen=True), 64 + 8 * len(items))


def _tuple3(pickle: Stack) -> None:
    stack = pickle.stack
    last, middle = stack.pop(), stack.pop()
    stack[-1] = (stack[-1], middle, last)
    pickle.memory -= 64


# -- the memo and the stack --------------------------------------------------------------------------------


def _put_line(pickle: Stack) -> None:
    index = int(pickle.number())
    if index < 0:
        raise ValueError("a negative memo index")
    pickle.remember(index, pickle.stack[-1])


def _get_line(pickle: Stack) -> None:
    index = int(pickle.number())
    if not 0 <= index < len(pickle.memo):
        raise ValueError("no such memo")
    pickle.stack.append(pickle.memo[index])


def _pop(pickle: Stack) -> None:
    if pickle.stack:
        pickle.stack.pop()
    else:
        pickle.marked()


def _proto(pickle: Stack) -> None:
    pickle.protocol = pickle.take(1)[0]
    if pickle.protocol > 5:
        raise ValueError(f"pickle protocol {pickle.protocol} is unknown")


# -- names and objects -------------------------------------------------------------------------------------


def _global(pickle: Stack, module: str, name: str) -> Global:
    """Return a class or function name. Names of Python 2 are translated as ``pickle`` does."""
    if pickle.protocol < 3:
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
    return pickle.find(module, name)


def _global_line(pickle: Stack) -> None:
    module = pickle.line().decode("utf-8")
    pickle.stack.append(_global(pickle, module, pickle.line().decode("utf-8")))


def _stack_global(pickle: Stack) -> None:
    name, module = pickle.stack.pop(), pickle.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("a class name that is not a string")
    pickle.stack.append(_global(pickle, module, name))


def _new(pickle: Stack, kind: object, arguments: object) -> None:
    """Push an object made by its class: rebuilt if there is a replacement, else a `Stub`."""
    rebuild = kind.rebuild if isinstance(kind, Global) else None
    if rebuild is not None and isinstance(arguments, tuple):
        return pickle.push(rebuild(arguments), 160)
    return pickle.push(Stub(kind, arguments), 128)


def _newobj(pickle: Stack) -> None:
    arguments = pickle.stack.pop()
    kind = pickle.stack.pop()
    if type(kind) is Global and kind.recognize is not None and arguments == ():
        record = kind.recognize(pickle, kind)
        if record is not None:
            pickle.stack.append(record)
            return
    _new(pickle, kind, arguments)


def _newobj_ex(pickle: Stack) -> None:
    named, arguments = pickle.stack.pop(), pickle.stack.pop()
    kind = pickle.stack.pop()
    pickle.push(Stub(kind, (arguments, named)), 160)


def _inst(pickle: Stack) -> None:
    module = pickle.line().decode("utf-8")
    kind = _global(pickle, module, pickle.line().decode("utf-8"))
    _new(pickle, kind, tuple(pickle.marked()))


def _obj(pickle: Stack) -> None:
    items = pickle.marked()
    _new(pickle, items[0], tuple(items[1:]))


def _build(pickle: Stack) -> None:
    """Set the state of an object, which is usually its attributes."""
    state = pickle.stack.pop()
    target = pickle.stack[-1]
    if isinstance(target, Stub):
        target.state = state
    elif isinstance(target, Dict) and isinstance(state, Dict):
        target.attributes = state
    else:
        raise TypeError("a state is set on what takes none")


def _persid_line(pickle: Stack) -> None:
    if pickle.persistent is None:
        raise ValueError("a persistent id has no meaning here")
    pickle.push(pickle.persistent(pickle.line().decode("ascii")), 160)


TABLE: dict[int, Callable[[Stack], object]] = {
    ord("N"): lambda pickle: pickle.stack.append(None),
    0x88: lambda pickle: pickle.stack.append(True),
    ord("]"): lambda pickle: pickle.push([], 64),
    ord("}"): lambda pickle: pickle.push(Dict(), 112),
    0x8F: lambda pickle: pickle.push(Set(), 64),  # EMPTY_SET
    ord("I"): _int,
    ord("L"): _long,
    ord("F"): lambda pickle: pickle.push(float(pickle.number())),
    0x8A: lambda pickle: pickle.push_integer(pickle.size("<B")),
    0x8B: lambda pickle: pickle.push_integer(pickle.size("<i")),
    0x8C: lambda pickle: pickle.push_text(pickle.size("<B")),
    0x8D: lambda pickle: pickle.push_text(pickle.size("<Q")),
    ord("V"): _line_text,
    ord("U"): lambda pickle: pickle.push_string(pickle.take(pickle.size("<B"))),
    ord("T"): lambda pickle: pickle.push_string(pickle.take(pickle.size("<i"))),
    ord("S"): _quoted_string,
    ord("C"): lambda pickle: pickle.push_bytes(pickle.size("<B")),
    ord("B"): lambda pickle: pickle.push_bytes(pickle.size("<I")),
    0x8E: lambda pickle: pickle.push_bytes(pickle.size("<Q")),
    0x96: _bytearray,  # BYTEARRAY8
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _appends,  # ADDITEMS
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("d"): _dict,
    ord("l"): _list,
    0x91: _frozenset,  # FROZENSET
    0x87: _tuple3,
    ord("p"): _put_line,
    ord("g"): _get_line,
    ord("0"): _pop,
    ord("1"): Stack.marked,  # POP_MARK
    ord("2"): lambda pickle: pickle.stack.append(pickle.stack[-1]),  # DUP
    0x80: _proto,
    0x95: lambda pickle: pickle.take(8),  # FRAME: a length, which is only a hint for buffering
    ord("c"): _global_line,
    0x93: _stack_global,
    0x81: _newobj,
    0x92: _newobj_ex,
    ord("i"): _inst,
    ord("o"): _obj,
    ord("b"): _build,
    ord("P"): _persid_line,
}
"""By opcode. EXT1-4 and the out-of-band buffers of protocol 5 are missing: they refer to other data."""
