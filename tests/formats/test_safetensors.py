from __future__ import annotations

import json
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import torch
from equality import assert_same, assert_same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensor_zoo import of_dtype

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.core.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def write(path: Path, header: Any, values: bytes = b"\0" * 16, padding: bytes = b"") -> Path:
    """A file with any header; `header` is JSON text, or something to make it of."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text + padding)) + text + padding + values)
    return path


ROW = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
TEXT = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


def supported() -> list[torch.dtype]:
    """The dtypes that this safetensors writes."""
    from safetensors.torch import _SIZE

    return [dtype for dtype in _SIZE if dtype != getattr(torch, "float4_e2m1fn_x2", None)]


def test_every_dtype(path: Path) -> None:
    state = {str(dtype): of_dtype(dtype, 2, 4) for dtype in supported()}
    save_file(state, path, metadata={"format": "pt"})
    ckpt = open_checkpoint(path)
    assert ckpt.format == "safetensors"
    assert (ckpt.unsafe, ckpt.metadata, ckpt.ties) == ("", None, [])
    loaded = load_file(path)
    assert_same_state(ckpt, {key: loaded[key] for key in ckpt})
    assert {*ckpt} == {*state}


def test_shapes(path: Path) -> None:
    state = {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "deep": torch.ones(1, 2, 1, 2, 1)}
    save_file(state, path)
    loaded = load_file(path)
    ckpt = open_checkpoint(path)
    assert_same_state(ckpt, {key: loaded[key] for key in ckpt})


def test_tensors_called_as_the_fields_of_a_row(path: Path) -> None:
    rows = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]}
        for at, name in enumerate(["dtype", "shape", "data_offsets", "weight"])
    }
    for count in (3, 4):
        held = dict(islice(rows.items(), count))
        write(path, held, b"\0" * 4 * count)
        assert list(open_checkpoint(path)) == list(held)


def test_a_renamed_file_is_recognised(path: Path) -> None:
    save_file({"a": torch.ones(2)}, path)
    renamed = path.rename(path.with_suffix(".pth"))
    assert_same(open_checkpoint(renamed).tensor("a"), torch.ones(2))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="younger than this torch")
def test_two_to_a_byte(path: Path) -> None:
    write(path, {"a": {"dtype": "F4", "shape": [4, 8], "data_offsets": [0, 16]}}, bytes(range(16)))
    ckpt = open_checkpoint(path)
    assert (ckpt["a"].dtype, ckpt["a"].shape) == ("float4_e2m1fn_x2", (4, 4))
    with safetensors.safe_open(path, "pt") as theirs:
        assert_same(ckpt.tensor("a"), theirs.get_tensor("a"))


def test_elements_that_are_no_whole_bytes_keep_their_place(path: Path) -> None:
    write(path, {"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, b"abc")
    ckpt = open_checkpoint(path)
    assert ckpt["a"].note == "elements that are not whole bytes"
    with pytest.raises(CheckpointError, match="no plain layout"):
        ckpt.tensor("a")


def test_no_places_of_parts(path: Path) -> None:
    save_file({"a": torch.ones(4)}, path, metadata={"DCP_SHARDING_INFO": ""})
    assert list(open_checkpoint(path)) == ["a"]


# -- the two ways in which an entry is read ----------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(names, st.sampled_from(["F32", "I8", "BOOL", "BF16"]), shapes), unique_by=lambda r: r[0]
    ),
    style=st.sampled_from(
        [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}, {"sort_keys": True}]
    ),
    order=st.permutations(["dtype", "shape", "data_offsets", "more"]),
    metadata=st.none() | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("v")),
)
def test_any_header_is_read_as_the_library_does(
    tmp_path_factory: Any, rows: Any, style: Any, order: Any, metadata: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    (metadata or {}).pop("DCP_SHARDING_INFO", None)  # it says of which whole tensors these are parts
    position = 0
    for key, dtype, shape in rows:
        nbytes = int(torch.tensor([{"F32": 4, "BF16": 2}.get(dtype, 1), *shape]).prod())
        row = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [position, position + nbytes],
            "more": {"a": [1, "]"]},
        }
        header[key] = {field: row[field] for field in order if field != "more" or len(shape) == 3}
        position += nbytes
    write(
        path,
        json.dumps(header, **style).encode(),
        bytes(n % 2 for n in range(position)),
        b" " * (position % 8),
    )
    if not rows:
        with pytest.raises(CheckpointError, match="no state dict"):
            open_checkpoint(path)
        return
    loaded = load_file(path)
    ckpt = open_checkpoint(path)
    written = sorted(header) if style.get("sort_keys") else list(header)
    assert list(ckpt) == [key for key in written if key != "__metadata__"]
    assert_same_state(ckpt, {key: loaded[key] for key in ckpt})


# -- what is refused ---------------------------------------------------------------------------------------

REFUSED = {
    "a key twice": (b'{"a":' + TEXT + b',"a":' + TEXT + b"}", "has the key a twice"),
    "a key twice, escaped": (b'{"a":' + TEXT + b',"\\u0061":' + TEXT + b"}", "has the key a twice"),
    "a field twice": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "has the key dtype twice",
    ),
    "a leading space": (b' {"a":' + TEXT + b"}", "does not begin with"),
    "metadata twice": (
        b'{"__metadata__":{},"a":' + TEXT + b',"__metadata__":{}}',
        "has the key __metadata__ twice",
    ),
    "numbers in the metadata": ({"__metadata__": {"a": 1}, "a": ROW}, "something else than strings"),
    "a list as metadata": ({"__metadata__": [], "a": ROW}, "something else than strings"),
    "an entry that is a list": ({"a": ["F32", [4], [0, 16]]}, "of a are missing or wrong"),
    "an unknown dtype": ({"a": {**ROW, "dtype": "F128"}}, "unknown dtype: F128"),
    "a dtype of torch": ({"a": {**ROW, "dtype": "float32"}}, "unknown dtype: float32"),
    "a size that is a float": (
        b'{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}',
        "of a are missing or wrong",
    ),
    "a size in exponents": (
        b'{"a":{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}}',
        "of a are missing or wrong",
    ),
    "a negative size": ({"a": {**ROW, "shape": [-4]}}, "impossible size"),
    "a size with a zero before": (
        b'{"a":{"dtype":"F32","shape":[04],"data_offsets":[0,16]}}',
        "damaged: Expecting ',' delimiter",
    ),
    "a huge size": ({"a": {**ROW, "shape": [1 << 62, 1 << 62]}}, "takes"),
    "a size beyond any float": ({"a": {**ROW, "shape": [1 << 62] * 20}}, "has 16 bytes, and .* takes 757276"),
    "offsets of many digits": (
        {"a": {**ROW, "data_offsets": [-(10**4000), 10**4000]}},
        "of a are missing or wrong",
    ),
    "a size of too many digits": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}',
        "a number has 5000 characters",
    ),
    "a fraction of too many digits": (
        b'{"a":{"q":0.' + b"7" * 200 + b',"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "a number has 202 characters",
    ),
    "no number": (
        b'{"a":{"q":NaN,"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "NaN is not a number of JSON",
    ),
    "a row without a key": (TEXT, "describes one tensor, without a key"),
    "a size that overflows": (
        {"a": {"dtype": "I8", "shape": [1 << 63, 0], "data_offsets": [0, 0]}},
        "impossible size",
    ),
    "sizes without commas": (
        b'{"a":{"dtype":"F32","shape":[2 2],"data_offsets":[0,16]}}',
        "damaged: Expecting ',' delimiter",
    ),
    "a comma too many": (
        b'{"a":{"dtype":"F32","shape":[4,],"data_offsets":[0,16]}}',
        "damaged: (Expecting value|Illegal trailing comma)",
    ),
    "a last comma": (b'{"a":' + TEXT + b",}", "damaged: (Expecting property name|Illegal trailing comma)"),
    "too many bytes": ({"a": {**ROW, "shape": [3]}}, "has 16 bytes"),
    "too few bytes": ({"a": {**ROW, "shape": [5]}}, "has 16 bytes"),
    "backward offsets": ({"a": {**ROW, "data_offsets": [16, 0]}}, "damaged"),
    "three offsets": ({"a": {**ROW, "data_offsets": [0, 16, 32]}}, "of a are missing or wrong"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, "of a are missing or wrong"),
    "an overlap": (
        {
            "a": {"dtype": "I8", "shape": [9], "data_offsets": [0, 9]},
            "b": {"dtype": "I8", "shape": [8], "data_offsets": [8, 16]},
        },
        "values of b do not follow",
    ),
    "a gap": ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}}, "values of a do not follow"),
    "bytes behind": (
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
        "4 bytes follow its last",
    ),
    "values cut": (
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},
        "truncated: 32 bytes of values should follow, and 16 do; copy or download it again",
    ),
    "text behind": (b'{"a":' + TEXT + b"} x", "damaged: Extra data"),
    "no end": (b'{"a":' + TEXT, "damaged: Expecting ',' delimiter"),
    "no UTF-8": (b'{"\xff":' + TEXT + b"}", "damaged: 'utf-8' codec"),
    "half a character": (b'{"\\ud800":' + TEXT + b"}", "not valid Unicode"),
    "a control character": (b'{"a\nb":' + TEXT + b"}", "damaged: Invalid control character"),
    "a bad escape": (b'{"\\x":' + TEXT + b"}", "damaged: Invalid .*escape"),
    "two objects": (b'{"a":' + TEXT + b"}{}", "damaged: Extra data"),
    "a bad value in another field": (
        b'{"a":{"q":[1,],"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "damaged: (Expecting value|Illegal trailing comma)",
    ),
    "a tensor called as the metadata": ({"__metadata__": ROW}, "something else than strings"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_damaged_headers_are_refused(path: Path, what: str) -> None:
    header, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(write(path, header))
    assert str(error.value).startswith(f"{path}: ")


def test_what_the_library_refuses_is_refused(path: Path) -> None:
    """The library refuses all of these but three, which its description forbids."""
    lenient = []
    for what, (header, _) in REFUSED.items():
        write(path, header)
        try:
            load_file(path)
        except Exception:  # whatever it says, it refuses
            continue
        lenient.append(what)
    assert lenient == [
        *("a key twice", "a key twice, escaped", "a leading space", "an entry that is a list"),
        "a fraction of too many digits",
    ]


def test_every_truncation_is_an_error(path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.zeros(2)}, path)
    data = path.read_bytes()
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("cap", "value"), [("tensors", 2), ("key_bytes", 4), ("dims", 2), ("safetensors_header", 100)]
)
def test_caps(path: Path, cap: str, value: int) -> None:
    save_file({"a" * 8: torch.ones(1, 1, 1), "b": torch.ones(1), "c": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=rf"limit exceeded: .*limit {cap}={value}\)"):
        open_checkpoint(path, limits=Limits.parse("--limit", [f"{cap}={value}"]))


def test_only_the_header_is_read(path: Path) -> None:
    save_file({"a": torch.ones(1_000_000), "b": torch.ones(1_000_000)}, path)
    ckpt = open_checkpoint(path)
    assert ckpt.bytes_read < 1000
    before = ckpt.bytes_read
    ckpt.tensor("b")
    assert ckpt.bytes_read - before == 4_000_000
