"""Promise 3, once more: whatever is done to a header, it is read, or refused with the one error there is."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_zip import checkpoint, pickled, tensor
from safetensors.torch import save_file
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = ("zip.pth", "module.pth", "legacy.pth", "net.safetensors", "net.index.json")
STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.ones(3, dtype=torch.bfloat16)}


def examples(folder: Path) -> dict[str, Path]:
    """A small checkpoint in every format, as the file whose header is to be damaged."""
    torch.save(STATE, folder / "zip.pth")
    torch.save(
        {"model": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "epoch": 1}, folder / "module.pth"
    )
    torch.save(STATE, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, folder / "net.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": 3}, "weight_map": dict.fromkeys(STATE, "net.safetensors")}
    (folder / "net.index.json").write_text(json.dumps(index))
    dcp.save({"model": STATE, "step": 3}, checkpoint_id=folder / "dcp")
    return {**{name: folder / name for name in NAMES}, "dcp": folder / "dcp" / ".metadata"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return examples(tmp_path_factory.mktemp("fuzz"))


def look(path: Path) -> Any:
    """Open and read everything; the checkpoint, or None if it was refused."""
    told = ""
    try:
        ckpt = open_checkpoint(path.parent if path.name == ".metadata" else path)
        for look_at in (dict, repr):
            look_at(ckpt)
        for name in ("ties", "nbytes", "objects", "wrapper", "unsafe", "metadata"):
            getattr(ckpt, name)
        ckpt.meta()
        ckpt.state_dict()
    except CheckpointError as error:
        told = str(error)
    else:
        return ckpt
    assert told
    assert "\n" not in told
    return None


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Some changes to bytes: each is set, flipped, inserted, cut out, doubled, or moved elsewhere."""
    place = st.floats(0, 1, exclude_max=True)
    change = st.one_of(
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("cut"), place, st.integers(1, 40)),
        st.tuples(st.just("double"), place, st.integers(1, 40)),
        st.tuples(st.just("end"), place, st.just(0)),
    )
    return draw(st.lists(change, min_size=1, max_size=4))


def damaged(data: bytes, changes: list[tuple[Any, ...]]) -> bytes:
    for kind, place, what in changes:
        at = int(place * len(data))
        match kind:
            case "set":
                data = data[:at] + what + data[at + len(what) :]
            case "flip":
                data = data[:at] + bytes(byte ^ (1 << what) for byte in data[at : at + 1]) + data[at + 1 :]
            case "insert":
                data = data[:at] + what + data[at:]
            case "cut":
                data = data[:at] + data[at + what :]
            case "double":
                data = data[:at] + data[at : at + what] + data[at:]
            case "end":
                data = data[:at]
    return data


@pytest.mark.parametrize("name", [*NAMES, "dcp"])
@SETTINGS
@given(changes=damages())
def test_damaged_files(files: dict[str, Path], name: str, changes: list[tuple[Any, ...]]) -> None:
    whole = files[name].read_bytes()
    try:
        files[name].write_bytes(damaged(whole, changes))
        look(files[name])
    finally:
        files[name].write_bytes(whole)


@SETTINGS
@given(changes=damages())
def test_damaged_pickles_in_a_sound_archive(tmp_path: Path, changes: list[tuple[Any, ...]]) -> None:
    """The checksums are right, so that the damage reaches the pickle machine. What torch loads, we read alike."""
    path = tmp_path / "net.pth"
    tree = {
        "state_dict": {"w": tensor(), "t": tensor(offset=1, size=(2,), stride=(2,))},
        "epoch": 3,
        "lr": (0.1, None),
    }
    path.write_bytes(checkpoint(damaged(pickled(tree), changes)).to_bytes())
    ckpt = look(path)
    if ckpt is None or ckpt.unsafe:
        return
    try:
        loaded = torch.load(path, weights_only=True)
    except Exception:  # torch says no in many ways
        return
    if ckpt.state_dict_key in loaded:  # the damage may have put a dot into the name itself
        loaded = loaded[ckpt.state_dict_key]
    else:
        for part in ckpt.state_dict_key.split(".") if ckpt.state_dict_key else ():
            loaded = loaded[part]
    for key, value in ckpt.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, loaded[key])


@SETTINGS
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert look(tmp_path / "x") is None


@SETTINGS
@given(st.lists(st.sampled_from(range(256)), max_size=60).map(bytes))
def test_any_opcodes(tmp_path: Path, opcodes: bytes) -> None:
    (tmp_path / "x").write_bytes(checkpoint(b"\x80\x02" + opcodes + b".").to_bytes())
    look(tmp_path / "x")


_OPCODES = [
    *(bytes([opcode]) for opcode in b"()]}teasudlRbo012NQ\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"),
    *(b"K\1", b"h\0", b"h\1", b"q\0", b"q\1", b"X\1\0\0\0a", b"U\7storage", b"c__main__\nX\n"),
    *(b"cbuiltins\n%b\n" % name for name in (b"set", b"bytearray")),
    *(b"ctorch\n%b\n" % name for name in (b"FloatStorage", b"Size", b"float32")),
    *(
        b"ctorch._utils\n_rebuild_%b\n" % name
        for name in (b"tensor_v2", b"parameter", b"sparse_tensor", b"qtensor", b"wrapper_subclass",
                     b"meta_tensor_no_storage", b"nested_tensor")
    ),
    *(b"ccollections\nOrderedDict\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"c_codecs\nencode\n"),
    *(b"ccopyreg\n__newobj__\n", b"ccopyreg\n_reconstructor\n"),
]  # fmt: skip


@SETTINGS
@given(st.lists(st.sampled_from(_OPCODES), max_size=60).map(b"".join))
def test_any_program_of_valid_opcodes(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "x").write_bytes(checkpoint(b"\x80\x02" + program + b".").to_bytes())
    look(tmp_path / "x")


@SETTINGS
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "I8"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "weight_map", "a", ""]), inner),
    max_leaves=12,
))  # fmt: skip
def test_any_json(tmp_path: Path, content: Any) -> None:
    text = json.dumps(content).encode()
    (tmp_path / "x").write_bytes(text)
    look(tmp_path / "x")
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    look(tmp_path / "x")


@SETTINGS
@given(st.data())
def test_any_index_of_a_distributed_checkpoint(files: dict[str, Path], data: st.DataObject) -> None:
    """Any attribute of any part is replaced by anything."""
    whole = files["dcp"].read_bytes()
    index = pickle.loads(whole)
    parts = [index, *index.state_dict_metadata.values(), *index.storage_data, *index.storage_data.values()]
    parts += [chunk for entry in index.state_dict_metadata.values() for chunk in getattr(entry, "chunks", ())]
    part = data.draw(st.sampled_from(parts))
    name = data.draw(st.sampled_from(sorted(vars(part)) or ["x"]))
    values = (
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.integers(), max_size=3)
        | st.lists(st.integers()).map(tuple)
    )
    object.__setattr__(
        part, name, data.draw(values | values.map(lambda value: {"model.layer.weight": value}))
    )
    try:
        files["dcp"].write_bytes(pickle.dumps(index))
        look(files["dcp"])
    finally:
        files["dcp"].write_bytes(whole)
