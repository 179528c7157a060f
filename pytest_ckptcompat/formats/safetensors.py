"""The safetensors format: eight bytes of length, a JSON header, and the values in one block.

Based on the description (https://github.com/huggingface/safetensors#format). What the description forbids
(a key twice, spaces before the header) is refused, even if the reference library accepts it.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.header import Header
from pytest_ckptcompat.core.hooks import hookimpl
from pytest_ckptcompat.core.tensor_spec import Extent, TensorSpec, contiguous_stride

from .extents import Extents
from .json_header import Pairs, loads, unique
from .pickle_stubs import Dict

if TYPE_CHECKING:
    from collections.abc import Callable

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
_NO_ROW = [("", None)] * 3
_DESCRIPTION = "__metadata__"
_DAMAGED = "its safetensors header is damaged: {}"

_PLACES_OF_PARTS = "DCP_SHARDING_INFO"
"""The entry of ``__metadata__`` with the offsets of a file's tensors in the whole tensors."""

NAME_OF_PARTS = "shard-"
"""The beginning of the name of a file that a rank of ``torch.distributed.checkpoint`` writes."""


class _Layout(NamedTuple):
    """A dtype and a shape with derived values, shared by all tensors with this dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    bits: int
    note: str


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
    start = 8 + length
    if start > file.size:
        raise CheckpointError(
            f"it is truncated: its header should have {length} bytes, and the whole file has {file.size}; "
            "copy or download it again"
        )
    if head[8:9] != b"{":
        raise CheckpointError("its safetensors header does not begin with '{'")
    rows = loads(file.read_at(8, length), limits, _DAMAGED.format, _rows(limits))
    if type(rows) is not dict:
        raise CheckpointError(_DAMAGED.format("it describes one tensor, without a key"))
    offsets = _places_of_parts(rows.pop(_DESCRIPTION, None), limits)
    tree = _tensors(rows, limits)
    _check_places(rows, file.size - start)

    def extent(key: str) -> Extent:
        begin, end, _ = rows[key]
        return Extent(file.path, start + begin, end - begin)

    return Header("safetensors", tree, Extents(rows, extent)), offsets


def _rows(limits: Limits) -> Callable[[Pairs], Any]:
    """Return what makes the rows of a header while its text is parsed, so that few lists exist at a time.

    A tensor becomes the offsets of its values and its layout, ``(begin, end, layout)``. Other objects are
    dicts, those with a wrong dtype, shape or data_offsets too.
    """
    layouts: dict[str, _Layout] = {}

    def make(pairs: Pairs) -> Any:
        (first, dtype), (second, sizes), (third, place) = pairs if len(pairs) == 3 else _NO_ROW
        if first != "dtype" or second != "shape" or third != "data_offsets":  # not in the usual order
            dtype, sizes, place = map(unique(pairs).get, ("dtype", "shape", "data_offsets"))
        if type(dtype) is not str or type(sizes) is not list or type(place) is not list or len(place) != 2:
            return unique(pairs)
        begin, end = place
        if type(begin) is not int or type(end) is not int:
            return unique(pairs)
        for size in sizes:
            if type(size) is not int:
                return unique(pairs)
        text = f"{dtype} {sizes}"  # a file can hold a great many tuples of the same hash, but not texts
        layout = layouts.get(text)
        if layout is None:
            layout = layouts[text] = _layout(dtype, tuple(sizes), limits)
        return begin, end, layout

    return make


def _tensors(rows: dict[str, Any], limits: Limits) -> Dict:
    """Return the tensors by key."""
    tree = Dict()
    limits.check("tensors", len(rows), "the file holds too many tensors")
    short = limits.key_bytes // 4
    for key, row in rows.items():
        if len(key) > short or not key.isascii():
            _check_key(key, limits)
        if type(row) is not tuple:
            raise _wrong(key)
        begin, end, (dtype, shape, stride, bits, note) = row
        if bits != 8 * (end - begin):
            if not 0 <= begin <= end <= _BIGGEST:
                raise _wrong(key)
            raise CheckpointError(
                f"{escape(key)} has {end - begin} bytes, and {shape} of {dtype} takes {-(-bits // 8)}: "
                "it is damaged"
            )
        tree[key] = TensorSpec(dtype, shape, stride, 0, key, note)
    return tree


def _wrong(key: str) -> CheckpointError:
    return CheckpointError(
        _DAMAGED.format(f"the dtype, shape or data_offsets of {escape(key, 60)} are missing or wrong")
    )


def _check_key(key: str, limits: Limits) -> None:
    try:
        limits.check("key_bytes", len(key.encode()), f"a key is too long: {escape(key, 60)}")
    except UnicodeEncodeError:  # half a surrogate pair
        raise CheckpointError(_DAMAGED.format(f"the key {escape(key, 60)} is not valid Unicode")) from None


def _layout(name: str, shape: tuple[int, ...], limits: Limits) -> _Layout:
    if name not in _DTYPES:
        raise CheckpointError(f"its safetensors header has an unknown dtype: {escape(name, 60)}")
    limits.check("dims", len(shape), f"a tensor has {len(shape)} dimensions")
    if not all(0 <= size <= _BIGGEST for size in shape):
        raise CheckpointError("its safetensors header has a tensor of impossible size: it is damaged")
    dtype, width = _DTYPES[name]
    bits = prod(shape) * width
    note = ""
    if width == 4 and shape and shape[-1] % 2 == 0:
        shape = (*shape[:-1], shape[-1] // 2)  # torch packs two elements in a byte and counts pairs
    elif width < 8:
        note = "elements that are not whole bytes"
    return _Layout(dtype, shape, contiguous_stride(shape), bits, note)


def _check_places(rows: dict[str, tuple[int, int, _Layout]], room: int) -> None:
    """Check that the values fill the rest of the file, without gaps or overlaps."""
    position = 0
    for begin, end, layout in sorted(rows.values()):
        if begin != position:
            key = next(key for key, row in rows.items() if row == (begin, end, layout))
            raise CheckpointError(f"the values of {escape(key)} do not follow those before: it is damaged")
        position = end
    if position > room:
        raise CheckpointError(
            f"it is truncated: {position} bytes of values should follow, and {room} do; "
            "copy or download it again"
        )
    if position < room:
        raise CheckpointError(f"{room - position} bytes follow its last tensor: it is damaged")


def _places_of_parts(description: Any, limits: Limits) -> dict[str, tuple[int, ...]]:
    """Return key -> offset of the part in the whole tensor, from ``{"weight": {"saved_offsets": [3, 0]}}``.

    Args:
        description: the header's ``__metadata__``: null, or strings by name, one of which is that text.
        limits: limits on the text.
    """
    if description is None:
        return {}
    if type(description) is not dict or not all(type(text) is str for text in description.values()):
        raise CheckpointError(_DAMAGED.format("'__metadata__' holds something else than strings"))
    text = description.get(_PLACES_OF_PARTS)
    if not text:
        return {}
    damaged = f"its {_PLACES_OF_PARTS} is damaged: {{}}".format
    parts = loads(text.encode(errors="surrogatepass"), limits, damaged)
    found: dict[str, tuple[int, ...]] = {}
    for key, about in parts.items() if type(parts) is dict else ():
        begin = about.get("saved_offsets") if type(about) is dict else None
        if type(begin) is not list or not all(type(low) is int and low >= 0 for low in begin):
            raise CheckpointError(damaged(f"the 'saved_offsets' of {escape(key, 60)} are wrong"))
        found[key] = tuple(begin)
    return found
