from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, load_model
from torch import nn

from pytest_ckptcompat.checkpoint.dcp_writer import write_dcp
from pytest_ckptcompat.checkpoint.safetensors_writer import write_safetensors
from pytest_ckptcompat.checkpoint.torch_zip_writer import write_torch_zip
from pytest_ckptcompat.checkpoint.written import Value
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.files.atomic_write import whole_file
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from pathlib import Path

EVERYWHERE = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # younger than torch 2.6
    EVERYWHERE.append(torch.float8_e8m0fnu)


def tensors(*more: torch.dtype) -> OrderedDict[str, torch.Tensor]:
    state = OrderedDict((f"{dtype}"[6:], (torch.rand(3, 5) * 5).to(dtype)) for dtype in [*EVERYWHERE, *more])
    state["scalar"] = torch.tensor(3.5)
    state["empty"] = torch.empty(0, 3)
    state["transposed"] = torch.rand(4, 6).t()
    state["large"] = torch.rand((1 << 22) + 3)  # more than one piece
    state["ünïcode.key"] = torch.ones(1)
    return state


def zipped(path: Path, content: Any, root: str = "net") -> Path:
    with path.open("wb") as file:
        write_torch_zip(file, content, root)
    return path


def safe(path: Path, content: Any, **metadata: str) -> Path:
    with path.open("wb") as file:
        write_safetensors(file, content, metadata)
    return path


def is_aligned(path: Path) -> bool:
    """Whether the bytes of every record begin at a multiple of 64, and none is compressed."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            archive.fp.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", archive.fp.read(4))
            if (info.header_offset + 30 + name + extra) % 64 or info.compress_type != zipfile.ZIP_STORED:
                return False
    return True


def values(state: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, Value]:
    return OrderedDict((key, Value.of(tensor)) for key, tensor in state.items())


def test_a_torch_zip_is_what_torch_load_gives_back(tmp_path: Path) -> None:
    state = tensors(torch.complex128)
    content = values(state)
    content._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})  # type: ignore[attr-defined]
    extra = [1, (2, None), "ü", True, 2.5, b"bytes", 2**70, {"nested": {3: [content["scalar"]]}}]
    path = zipped(tmp_path / "net.pth", {"epoch": 3, "state_dict": content, "extra": extra})
    for more in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **more)
        assert list(loaded) == ["epoch", "state_dict", "extra"]
        assert list(loaded["state_dict"]) == list(state)
        assert all(same_bits(state[key], value) for key, value in loaded["state_dict"].items())
        assert loaded["state_dict"]._metadata == content._metadata  # type: ignore[attr-defined]
        assert loaded["extra"][:-1] == extra[:-1]
        assert loaded["extra"][-1]["nested"][3][0] == 3.5


def test_a_torch_zip_has_the_layout_of_torch_s_own(tmp_path: Path) -> None:
    state = OrderedDict(a=torch.rand(7), b=torch.rand(3))
    ours, theirs = zipped(tmp_path / "ours.pth", values(state), "theirs"), tmp_path / "theirs.pth"
    torch.save(state, theirs)
    with zipfile.ZipFile(ours) as mine, zipfile.ZipFile(theirs) as torch_s:
        assert mine.testzip() is None
        assert set(mine.namelist()) <= set(torch_s.namelist())
        for name in mine.namelist():
            if not name.endswith("data.pkl"):
                assert mine.read(name) == torch_s.read(name)
    assert is_aligned(ours)


def test_records_above_4_gb_are_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # the same fields, without 4 GB
    state = OrderedDict(a=torch.rand(70), b=torch.rand(3))
    path = zipped(tmp_path / "net.pth", values(state))
    loaded = torch.load(path, weights_only=True)
    assert all(same_bits(state[key], loaded[key]) for key in state)
    assert is_aligned(path)


def test_tied_tensors_stay_tied_in_a_torch_zip(tmp_path: Path) -> None:
    weight = torch.rand(50, 20)
    reads = []
    shared = Value((50, 20), torch.float32, lambda: reads.append(1) or weight, "tie")
    other = Value((50, 20), torch.float32, lambda: pytest.fail("read twice"), "tie")
    path = zipped(tmp_path / "net.pth", {"embed": shared, "head": other})
    loaded = torch.load(path, weights_only=True)
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()
    assert path.stat().st_size < 1.5 * weight.numel() * 4
    assert len(reads) == 1


def test_one_value_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: set[int] = set()
    most = []

    class Watched(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def read() -> torch.Tensor:
        tensor = torch.rand(10).as_subclass(Watched)
        alive.add(id(tensor))
        most.append(len(alive))
        return tensor

    content = {str(number): Value((10,), torch.float32, read, number) for number in range(5)}
    zipped(tmp_path / "net.pth", content)
    safe(tmp_path / "net.safetensors", content)
    assert len(most) == 10
    assert max(most) == 1


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    state = tensors()
    one, two = (zipped(tmp_path / name, values(state)) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_safetensors_file_is_what_its_own_library_reads(tmp_path: Path) -> None:
    state = tensors()
    path = safe(tmp_path / "net.safetensors", values(state), format="pt", who="ü")
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "who": "ü"}
        keys = set(opened.keys())
    assert keys == set(state)
    unknown = {"float8_e8m0fnu"}  # known to the format, not to every release of its torch side
    for key in keys - unknown:
        with safetensors.safe_open(path, "pt") as opened:
            assert same_bits(opened.get_tensor(key), state[key].contiguous())


def test_a_safetensors_file_is_byte_for_byte_its_own_library_s(tmp_path: Path) -> None:
    state = OrderedDict(
        (key, value.contiguous())
        for key, value in tensors().items()
        if "fnuz" not in key and "e8m0" not in key
    )
    path = safe(tmp_path / "net.safetensors", values(state), format="pt")
    theirs = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(state, theirs, metadata={"format": "pt"})
    assert path.read_bytes() == theirs.read_bytes()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5, bias=False)
        self.embed = nn.Embedding(5, 3)
        self.embed.weight = self.head.weight


def test_tied_tensors_are_written_as_save_model_writes_them(tmp_path: Path) -> None:
    model, theirs = Tied(), tmp_path / "theirs.safetensors"
    path = safe(tmp_path / "net.safetensors", values(model.state_dict()))
    safetensors.torch.save_model(model, str(theirs))
    assert path.read_bytes() == theirs.read_bytes()
    other = Tied()
    assert load_model(other, path) == (set(), [])
    assert torch.equal(other.head.weight, model.head.weight)
    assert list(load_file(path)) == ["embed.weight"]


def test_what_safetensors_does_not_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a is complex128, .*: write \.pth"):
        safe(tmp_path / "x", values(OrderedDict(a=torch.zeros(2, dtype=torch.complex128))))
    with pytest.raises(ValueError, match="__metadata__"):
        safe(tmp_path / "x", values(OrderedDict(__metadata__=torch.zeros(2))))


def test_values_that_are_not_what_was_announced_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced as"):
        safe(tmp_path / "x", {"a": Value((2,), torch.float32, lambda: torch.zeros(3), 0)})


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.pth"
    path.write_bytes(b"old")

    def fail_midway() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [CheckpointError, KeyboardInterrupt])
def test_a_value_that_is_not_read_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> torch.Tensor:
        raise error("why")

    folder = tmp_path / "out"
    write_dcp(str(folder), values(OrderedDict(a=torch.ones(2))))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(error, match="why"):
        write_dcp(str(folder), {"a": Value((2,), torch.float32, fail, 0)})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_list_that_holds_itself_is_refused_in_a_folder(tmp_path: Path) -> None:
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(ValueError, match="holds itself"):
        write_dcp(str(tmp_path / "out"), {"a": itself})
    assert not list(tmp_path.iterdir())


def test_modes_are_the_old_file_s_or_the_umask_s(tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    umask = os.umask(0o027)
    try:
        with whole_file(path):
            pass
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    with whole_file(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("模" * 83 + ".pth")  # 253 bytes
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "blob", tmp_path / "link.pth"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with whole_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_missing_folders_are_made_and_taken_back_if_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "out.pth"

    def fail_midway() -> None:
        with whole_file(path):
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail_midway()
    assert list(tmp_path.iterdir()) == []
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(ValueError, match=r"^$"):
        fail_midway()
    assert path.read_bytes() == b"new"
    for below in (path / "x.pth", path / "below" / "x.pth"):
        with pytest.raises(NotADirectoryError), whole_file(below):
            pass
