"""Small files that make careless readers run forever, or out of memory: generators of their content."""

from __future__ import annotations

import pickle
import struct
from itertools import islice, product
from typing import TYPE_CHECKING

from raw_zip import Raw, checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = b"\x80\x02"
LIST = HEAD + b"]q\x00"


def doubled(times: int = 60) -> bytes:
    """A tuple that holds the one before twice, and so on: 2^60 ways through it."""
    return HEAD + b")" + b"2\x86" * times


def doubled_dicts(times: int = 60) -> bytes:
    return HEAD + b"}" + b"".join(b"q%c}X\1\0\0\0ah%csX\1\0\0\0bh%cs" % (n, n, n) for n in range(times))


def many(opcodes: bytes, count: int, head: bytes = HEAD, tail: bytes = b"") -> bytes:
    return head + opcodes * count + tail


def copies(name: bytes) -> bytes:
    """One long list, given to a constructor a million times."""
    return LIST + b"(" + b"N" * 500_000 + b"ec" + name + b"\nq\1" + b"h\1h\0\x85R0" * 1_000_000 + b"N"


def dict_of_cyclic_keys() -> bytes:
    """A tuple as key whose hash takes 2^50 steps."""
    return HEAD + b"}(K\1" + b"2\x86" * 50 + b"K\1u"


def modules(depth: int) -> bytes:
    """Whole modules, each holding the one before twice."""

    def module(children: bytes) -> bytes:
        attributes = b"X\x0b\0\0\0_parameters}sX\x08\0\0\0_buffers}sX\x08\0\0\0_modules" + children + b"s"
        return b"ctorch.nn\nModule\n)\x81}" + attributes + b"b"

    leaf = module(b"}")
    body = leaf + b"q\0"
    for n in range(1, depth):
        body += b"0" + module(b"}X\1\0\0\0ah%csX\1\0\0\0bh%cs" % (n - 1, n - 1)) + b"q%c" % n
    return HEAD + body


def weights(times: int = 60) -> bytes:
    """A dict that holds the one before twice, and so on, around one tensor."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0))\x89NtR"
    inner = b"}X\6\0\0\0weight" + tensor + b"s"
    outer = b"q%c0}X\1\0\0\0ah%csX\1\0\0\0bh%cs"
    return HEAD + inner + b"".join(outer % (n, n, n) for n in range(times))


def entries(count: int) -> bytes:
    """Keys that collide in a dict of integers, were they hashed as they are."""
    step = (1 << 61) - 1
    return (
        HEAD
        + b"}("
        + b"".join(b"\x8a\x0a" + (n * step).to_bytes(10, "little") + b"N" for n in range(count))
        + b"u"
    )


PICKLES: dict[str, Callable[[], bytes]] = {
    "doubled tuples": doubled,
    "doubled dicts": doubled_dicts,
    "doubled dicts around a tensor": weights,
    "many dicts": lambda: many(b"}", 1_200_000, HEAD + b"](", b"e"),
    "a tuple with endless hash as key": dict_of_cyclic_keys,
    "colliding keys": lambda: entries(300_000),
    "colliding tuples as keys": lambda: many(b"K\1K\2\x86N", 2_000_000, HEAD + b"}(", b"u"),
    "modules that multiply": lambda: modules(60),
    "nested lists": lambda: many(b"]", 9_000_000, tail=b"a" * 900_000),
    "nested tuples": lambda: many(b"\x85", 9_000_000, HEAD + b")"),
    "nested marks": lambda: many(b"(", 9_000_000),
    "nested dicts": lambda: many(b"}K\1", 5_000_000, tail=b"s" * 4_900_000),
    "empty lists": lambda: many(b"]", 5_900_000),
    "empty dicts": lambda: many(b"}", 5_900_000),
    "empty sets": lambda: many(b"\x8f", 5_900_000),
    "short strings": lambda: many(b"X\2\0\0\0ab", 9_000_000),
    "short strings of Python 2": lambda: many(b"U\2ab", 5_900_000),
    "wide strings": lambda: many(b"X\4\0\0\0\xf0\x9f\x98\x80", 7_000_000),
    "a wide long string": lambda: (
        HEAD + b"X" + struct.pack("<I", 60_000_000) + b"\xf0\x9f\x98\x80" + b"a" * 59_999_996
    ),
    "floats": lambda: many(b"G" + struct.pack(">d", 1.5), 7_000_000),
    "integers": lambda: many(b"J\xff\xff\xff\x7f", 5_900_000),
    "long integers": lambda: many(b"\x8a\xff" + b"\x7f" * 255, 250_000),
    "a huge integer": lambda: HEAD + b"\x8b" + struct.pack("<i", 60_000_000) + b"\x7f" * 60_000_000,
    "a huge integer in text": lambda: HEAD + b"I" + b"7" * 60_000_000 + b"\n",
    "integers in text": lambda: many(b"I" + b"7" * 4000 + b"\n", 15_000),
    "objects": lambda: many(b")\x81h\0", 3_000_000, HEAD + b"ca\nb\nq\0h\0"),
    "calls": lambda: many(b"h\0)R0", 2_400_000, HEAD + b"ca\nb\nq\0"),
    "ordered dicts": lambda: many(b"h\0)R", 3_000_000, HEAD + b"ccollections\nOrderedDict\nq\0"),
    "class names": lambda: HEAD + b"".join(b"c%d\na\n" % n for n in range(3_000_000)),
    "memos": lambda: many(b"\x94", 5_900_000, HEAD + b"N"),
    "a far memo": lambda: HEAD + b"Nr\xff\xff\xff\xff",
    "duplicates": lambda: many(b"2", 5_900_000, HEAD + b"N"),
    "sets of one list": lambda: copies(b"builtins\nset"),
    "ordered dicts of one list": lambda: copies(b"collections\nOrderedDict"),
    "sizes of one list": lambda: copies(b"torch\nSize"),
    "bytes encoded from one text": lambda: (
        HEAD
        + (
            b"X"
            + struct.pack("<I", 5_000_000)
            + b"a" * 5_000_000
            + b"q\0X\6\0\0\0latin1q\1c_codecs\nencode\nq\2"
        )
        + b"h\2h\0h\1\x86R0" * 500_000
        + b"N"
    ),
    "a name that makes itself": lambda: HEAD + b"ccopyreg\n__newobj__\nq\0h\0(" + b"h\0" * 4_000_000 + b"tR",
    "a tensor of 5 million sizes": lambda: (
        HEAD
        + b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6tQK\0("
        + b"K\1" * 4_000_000
        + b"tq\1h\1NNtR"
    ),
    "a persistent id of 5 million parts": lambda: (
        HEAD + b"(" + b"N" * 4_000_000 + b"tq\0" + b"h\0Q0" * 1_000_000
    ),
}
"""Name -> a pickle, but for its end."""


JSONS: dict[str, Callable[[], bytes]] = {
    "open brackets": lambda: b'{"a":{"q":' + b"[" * 60_000_000,
    "empty lists": lambda: b'{"a":{"q":[' + b"[]," * 20_000_000,
    "strings": lambda: b'{"__metadata__":{' + b'"a":"b",' * 7_000_000,
    "one string": lambda: b'{"' + b"a" * 60_000_000 + b'":1}',
    "an escaped string": lambda: b'{"' + b"\\u0041" * 10_000_000 + b'":1}',
    "a wide string": lambda: b'{"\xf0\x9f\x98\x80' + b"a" * 60_000_000 + b'":1}',
    "a wide string, escaped": lambda: rb'{"\ud83d\ude00' + b"a" * 60_000_000 + b'":1}',
    "members below the limit": lambda: _entries(b'"%d":"%d"', 1_270_000),
    "objects below the limit": lambda: b'{"a":[' + _entries(b'{"%d":"%d"}', 960_000)[1:-1] + b"]}",
    "lists below the limit": lambda: b'{"a":[' + _entries(b'["%d"]', 1_900_000)[1:-1] + b"]}",
    "long integers": lambda: b'{"a":[' + (b"9" * 4299 + b",") * 14_000 + b"1]}",
    "a long fraction": lambda: b'{"a":0.' + b"7" * 60_000_000 + b"}",
    "a key twice, at the end": lambda: _entries(b'"%d":""', 400_000) + b',"7":""}',
    "backslashes": lambda: b'{"' + b"\\" * 60_000_000,
    "spaces": lambda: b"{" + b" " * 60_000_000,
    "digits": lambda: b'{"a":{"shape":[' + b"1" * 60_000_000,
    "many dimensions": lambda: b'{"a":{"dtype":"F32","shape":[' + b"1," * 20_000_000 + b'1],"data_offsets":[0,4]}}',
    "many entries": lambda: _entries(b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}', 1_200_000),
    "many shapes": lambda: _entries(b'"%d":{"dtype":"I8","shape":[0,%d],"data_offsets":[0,0]}', 249_000),
    "shapes of one hash": lambda: _of_one_hash(40_000),
}  # fmt: skip
"""Name -> a safetensors header, some to be read to their end, which none has."""


def _entries(row: bytes, count: int) -> bytes:
    places = row.count(b"%d")
    return b"{" + b",".join(row % ((n,) * places) for n in range(count)) + b"}"


def _of_one_hash(count: int) -> bytes:
    """A header of empty tensors. Python's hash of an integer is its remainder by 2^61 - 1."""
    shapes = islice(product([n * ((1 << 61) - 1) for n in range(4)], repeat=8), count)
    rows = (
        b'"%d":{"dtype":"I8","shape":[0,%b],"data_offsets":[0,0]}'
        % (n, b",".join(b"%d" % size for size in shape))
        for n, shape in enumerate(shapes)
    )
    return b"{" + b",".join(rows) + b"}"


def in_zip(name: str) -> bytes:
    """A checkpoint of torch.save with one of `PICKLES`."""
    return checkpoint(PICKLES[name]() + b".").to_bytes()


def in_legacy(name: str) -> bytes:
    """One of `PICKLES` in torch's legacy layout."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    return head + PICKLES[name]() + b"." + pickle.dumps([], 2)


def in_safetensors(name: str) -> bytes:
    """A safetensors file with one of `JSONS`."""
    text = JSONS[name]()
    return struct.pack("<Q", len(text)) + text


def members(count: int) -> bytes:
    """A checkpoint of torch.save with many members that nothing uses."""
    return checkpoint().plus(*(Raw(b"net/data/%d" % n) for n in range(1, count))).to_bytes()
