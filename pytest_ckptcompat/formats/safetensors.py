"""The safetensors format: eight bytes of length, a JSON header, and the values in one block.

Based on the description (https://github.com/huggingface/safetensors#format). What the description forbids
(a key twice, spaces before the header) is refused, even if the reference library accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Extent, TensorSpec, contiguous_stride

from .json_header import Scanner, naturals
from .pickle_stubs import Dict
from .safetensors_entries import ENTRIES, NATURAL
from .safetensors_parts import NAME_OF_PARTS, PLACES_OF_PARTS, places_of_parts

if TYPE_CHECKING:
    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

_DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6), "F4": ("float4_e2m1fn_x2", 4),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
    "C64": ("complex64", 64), "BOOL": ("bool", 8),
}  # fmt: skip
"""Name in the file -> torch's name, and the number of bits of one element."""

_BIGGEST = (1 << 63) - 1
_DESCRIPTION = "__metadata__"
_SIZE = re.compile(rb"[ \t\n\r]*+" + NATURAL + rb"[ \t\n\r]*+")


class _Layout(NamedTuple):
    """A dtype and a shape with derived values, shared by all tensors with this dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    bits: int
    note: str


class _Values(Mapping[str, tuple[Extent, ...]]):
    """Where the values of every key are. Extents are made on demand."""

    def __init__(self, path: str, start: int, places: dict[str, tuple[int, int]]) -> None:
        self._path = path
        self._start = start
        self._places = places

    def __getitem__(self, key: str) -> tuple[Extent, ...]:
        begin, end = self._places[key]
        return (Extent(self._path, self._start + begin, end - begin),)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@hookimpl(tryfirst=True)
def pytest_ckptcompat_open(file: File | None, limits: Limits) -> Header | None:
    """Read a safetensors file, but refuse one rank's part of a distributed checkpoint."""
    found = None if file is None else read_part(file, limits)
    if file is None or found is None:
        return None
    header, offsets = found
    name = file.path.rpartition("/")[2]
    if any(map(any, offsets.values())) or (offsets and name.startswith(NAME_OF_PARTS)):
        raise CheckpointError(
            "it is one rank's part of a distributed checkpoint in safetensors (HuggingFaceStorageWriter with "
            "save_distributed): open its folder, or consolidate it with "
            "torch.distributed.checkpoint._consolidate_hf_safetensors"
        )
    return header


def read_part(file: File, limits: Limits) -> tuple[Header, dict[str, tuple[int, ...]]] | None:
    """Read the header of a safetensors file, which may be one rank's part of a distributed checkpoint.

    Returns:
        The header, and key -> offset of the file's tensor in the whole tensor, which is empty unless
        torch.distributed.checkpoint wrote the file. None if it is not a safetensors file.
    """
    if file.size < 9:
        return None
    head = file.read_at(0, min(file.size, 16))
    length = int.from_bytes(head[:8], "little")
    if not head[8:].lstrip(b" \t\n\r").startswith(b"{") or length >= 1 << 40:
        return None
    limits.check("safetensors_header", length, f"its safetensors header has {length} bytes")
    if 8 + length > file.size:
        raise CheckpointError(
            f"it is truncated: its header should have {length} bytes, and the whole file has {file.size}; "
            "copy or download it again"
        )
    reader = _Reader(file.read_at(8, length), limits)
    reader.read()
    reader.check_places(file.size - 8 - length)
    header = Header("safetensors", reader.tree, _Values(file.path, 8 + length, reader.places))
    return header, places_of_parts(reader.sharding, limits)


class _Reader:
    """A reader for the JSON of a header.

    Attributes:
        tree: key -> `TensorSpec`, in the header's order.
        places: key -> first byte of the values and the byte after the last, from the end of the header.
        sharding: the offsets of this file's tensors in the whole tensors, as JSON, if the file is one rank's.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.tree = Dict()
        self.places: dict[str, tuple[int, int]] = {}
        self._limits = limits
        self._scanner = Scanner(data, "its safetensors header", limits)
        self._layouts: dict[tuple[bytes, bytes], _Layout] = {}
        self._described = False
        self.sharding = ""

    def read(self) -> None:
        """Read every entry.

        Raises:
            CheckpointError: the header is damaged or exceeds a limit.
        """
        scanner = self._scanner
        if not scanner.data.startswith(b"{"):
            raise CheckpointError("its safetensors header does not begin with '{'")
        scanner.take(b"{")
        more = scanner.peek() != b"}"
        if not more:
            scanner.take(b"}")
        while more:
            pattern = next((each for each in ENTRIES if each.match(scanner.data, scanner.position)), None)
            more = self._entry() if pattern is None else self._entries(pattern)
        scanner.end()

    def _entries(self, pattern: re.Pattern[bytes]) -> bool:
        """Read entries until one doesn't match the pattern. Return whether there are more."""
        scanner, layouts, add = self._scanner, self._layouts, self._add
        position = scanner.position
        for match in pattern.finditer(scanner.data, position):
            if match.start() != position:
                break
            name, dtype, sizes, begin, end, closing = match.group(
                "key", "dtype", "shape", "begin", "end", "closing"
            )
            layout = layouts.get((dtype, sizes))
            if layout is None:
                layout = layouts[dtype, sizes] = self._layout(dtype.decode(), self._sizes(sizes))
            key = name.decode() if name.isascii() else scanner.text(name)
            add(key, layout, int(begin), int(end))
            scanner.position = position = match.end()
            if closing == b"}":
                return False
        return True

    def _entry(self) -> bool:
        """Read one entry in any form. Return whether there are more."""
        scanner = self._scanner
        key = scanner.string()
        scanner.take(b":")
        if key == _DESCRIPTION:
            self._description()
        else:
            self._add(key, *self._unusual())
        closing = scanner.peek()
        scanner.take(b"}" if closing == b"}" else b",")
        return closing != b"}"

    def _unusual(self) -> tuple[_Layout, int, int]:
        """Read the value of an entry whose fields have another form, or that has more of them."""
        scanner = self._scanner
        found: dict[str, object] = {}
        for name in scanner.members():
            if name in found:
                raise scanner.error(f"{escape(name, 60)} stands twice in one entry")
            if name == "dtype":
                found[name] = scanner.string()
            elif name in ("shape", "data_offsets"):
                found[name] = self._first(naturals(scanner))
            else:
                scanner.skip()
        match found:
            case {"dtype": str(dtype), "shape": tuple(shape), "data_offsets": (int(begin), int(end))}:
                return self._layout(dtype, shape), begin, end
        raise scanner.error("an entry lacks its dtype, its shape or its data_offsets")

    def _description(self) -> None:
        """Read ``__metadata__``: null, or strings by name, of which only the sharding is needed."""
        scanner = self._scanner
        if self._described:
            raise scanner.error("it has '__metadata__' twice")
        self._described = True
        if scanner.peek() == b"n":
            scanner.skip()
            return
        names: set[str] = set()
        for name in scanner.members():
            if scanner.peek() != b'"':
                raise scanner.error("'__metadata__' holds something else than strings")
            if name in names:
                raise scanner.error(f"'__metadata__' has {escape(name, 60)} twice")
            names.add(name)
            if name == PLACES_OF_PARTS:
                self.sharding = scanner.string()
            else:
                scanner.skip()

    def _layout(self, name: str, shape: tuple[int, ...]) -> _Layout:
        if name not in _DTYPES:
            raise CheckpointError(f"its safetensors header has an unknown dtype: {escape(name, 60)}")
        self._limits.check("dims", len(shape), f"a tensor has {len(shape)} dimensions")
        if max(shape, default=0) > _BIGGEST:
            raise CheckpointError("its safetensors header has a tensor of impossible size: it is damaged")
        dtype, width = _DTYPES[name]
        bits = prod(shape) * width
        note = ""
        if width == 4 and shape and shape[-1] % 2 == 0:
            shape = (*shape[:-1], shape[-1] // 2)  # torch packs two elements in a byte and counts pairs
        elif width < 8:
            note = "elements that are not whole bytes"
        return _Layout(dtype, shape, contiguous_stride(shape), bits, note)

    def _sizes(self, text: bytes) -> tuple[int, ...]:
        """Parse the numbers between the brackets of a shape."""
        dims = text.count(b",") + 1
        self._limits.check("dims", dims, f"a tensor has {dims} dimensions")
        numbers = text.split(b",") if text.strip() else []
        if not all(map(_SIZE.fullmatch, numbers)):
            raise self._scanner.error("a shape is damaged")
        return tuple(map(int, numbers))

    def _first(self, sizes: Iterator[int]) -> tuple[int, ...]:
        """Read at most one number more than a tensor may have dimensions, so that it is refused later."""
        return tuple(islice(sizes, self._limits.dims + 1))

    def _add(self, key: str, layout: _Layout, begin: int, end: int) -> None:
        if key == _DESCRIPTION:
            raise CheckpointError("its safetensors header has a tensor called '__metadata__'")
        places = self.places
        if key in places:
            raise CheckpointError(f"its safetensors header has the key {escape(key)} twice")
        dtype, shape, stride, bits, note = layout
        if bits != 8 * (end - begin):
            raise CheckpointError(
                f"{escape(key)} has {end - begin} bytes; {shape} of {dtype} takes {bits / 8:g}: it is damaged"
            )
        limits = self._limits
        if len(key) * 4 > limits.key_bytes:
            limits.check("key_bytes", len(key.encode()), f"a key is too long: {escape(key, 60)}")
        if len(places) >= limits.tensors:
            limits.check("tensors", len(places) + 1, "the file holds too many tensors")
        self.tree[key] = TensorSpec(dtype, shape, stride, 0, key, note)
        places[key] = (begin, end)

    def check_places(self, room: int) -> None:
        """Check that the values fill the rest of the file, without gaps or overlaps.

        Raises:
            CheckpointError: they don't.
        """
        position = 0
        for begin, end in sorted(self.places.values()):
            if begin != position:
                key = next(key for key, place in self.places.items() if place == (begin, end))
                raise CheckpointError(
                    f"the values of {escape(key)} do not follow those before: it is damaged"
                )
            position = end
        if position > room:
            raise CheckpointError(
                f"it is truncated: {position} bytes of values should follow, and {room} do; "
                "copy or download it again"
            )
        if position < room:
            raise CheckpointError(f"{room - position} bytes follow its last tensor: it is damaged")
