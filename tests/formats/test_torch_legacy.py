from __future__ import annotations

import io
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_like_torch, assert_same, assert_same_state
from tensor_zoo import layouts, of_dtype, typed_dtypes
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.formats import torch_legacy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


def save(obj: Any, path: Path, **how: Any) -> None:
    torch.save(obj, path, _use_new_zipfile_serialization=False, **how)


def test_a_state_dict_is_torchs(path: Path) -> None:
    save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(), path)
    ckpt = assert_like_torch(path)
    assert (ckpt.format, ckpt.unsafe) == ("torch-legacy", "")
    assert ckpt.metadata is not None


def test_every_dtype(path: Path) -> None:
    save({str(dtype): of_dtype(dtype, 3, 5) for dtype in typed_dtypes()}, path)
    assert_like_torch(path)


def test_every_layout(path: Path) -> None:
    save(layouts(), path)
    assert_like_torch(path)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(path: Path, protocol: int) -> None:
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    save(state, path, pickle_protocol=protocol)
    assert_same_state(open_checkpoint(path), state)


def test_a_whole_module(path: Path) -> None:
    """Its class is a persistent id here, with the source code beside it."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    save(module, path)
    wanted = module.state_dict()
    del wanted._metadata  # type: ignore[attr-defined]
    assert_same_state(open_checkpoint(path), wanted)


def test_a_header_longer_than_the_first_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its pickles end shows only while they are run; any cut through them must be seen as one."""
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    save(state, path)
    for first in (1, 2, 7, 100, 331, 1000):
        monkeypatch.setattr(torch_legacy, "_FIRST_READ", first)
        assert_same_state(open_checkpoint(path), state)


def test_tensor_bytes_are_not_read_for_the_header(path: Path) -> None:
    save({str(n): torch.ones(1_000_000) for n in range(4)}, path)
    assert open_checkpoint(path).bytes_read < 300_000


def test_more_may_follow(path: Path) -> None:
    """Several objects may be saved to one file; torch.load gives the first."""
    with path.open("wb") as file:
        for state in ({"a": torch.ones(2)}, {"b": torch.zeros(3)}):
            torch.save(state, file, _use_new_zipfile_serialization=False)
    assert_like_torch(path)


def test_every_truncation_is_an_error(path: Path) -> None:
    save({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int16)}, path)
    data = path.read_bytes()
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"truncated|neither PyTorch|a plain Python pickle"):
            open_checkpoint(path)


class _Old(pickle._Pickler):
    """Writes what torch 0.1 to 0.3 wrote: tensors that lie over views of a storage."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.reference if isinstance(obj, _View) else None


class _View:
    def __init__(self, *reference: Any) -> None:
        self.reference = reference


class _Tensor:
    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.args


def write_views(path: Path, values: torch.Tensor, view: Any) -> None:
    """A legacy file with one storage, and a tensor over a view of it."""
    storage = _View("storage", torch.FloatStorage, "7", "cpu", values.numel(), view)
    stream = io.BytesIO()
    for obj in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(obj, stream, protocol=2)
    _Old(stream, protocol=2).dump({"part": _Tensor(storage, 1, (2, 2), (2, 1))})
    pickle.dump(["7"], stream, protocol=2)
    stream.write(struct.pack("<q", values.numel()) + values.numpy().tobytes())
    path.write_bytes(stream.getvalue())


def test_views_of_a_storage(path: Path) -> None:
    values = torch.arange(20.0)
    write_views(path, values, ("8", 10, 6))
    assert_same(open_checkpoint(path).tensor("part"), values[11:15].view(2, 2))
    assert_like_torch(path)


@pytest.mark.parametrize("view", [("8", 10, 4), ("8", 18, 6), ("8", -1, 6), ("8", 0, 21), ("8", 2), 5])
def test_views_beyond_their_storage_are_refused(path: Path, view: Any) -> None:
    write_views(path, torch.arange(20.0), view)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(path)


def test_a_storage_of_another_size_than_its_tensors_say_is_refused(path: Path) -> None:
    save({"a": torch.arange(3.0)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-20] + struct.pack("<q", 4) + data[-12:])
    with pytest.raises(CheckpointError, match="does not have the size"):
        open_checkpoint(path)


@pytest.mark.parametrize("keys", [[], ["0"], ["7", "7"], ["7", "9"], "7", [7]])
def test_a_wrong_list_of_storages_is_refused(path: Path, keys: Any) -> None:
    values = torch.arange(20.0)
    write_views(path, values, None)
    data = path.read_bytes()
    assert data.count(pickle.dumps(["7"], protocol=2)) == 1
    path.write_bytes(data.replace(pickle.dumps(["7"], protocol=2), pickle.dumps(keys, protocol=2)))
    with pytest.raises(CheckpointError, match="list of storages"):
        open_checkpoint(path)


def test_dtypes_that_torch_cannot_load_in_this_layout_are_refused(path: Path) -> None:
    save({"a": torch.zeros(2, dtype=torch.uint16)}, path)
    with pytest.raises(AttributeError):
        torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"torch\.load can't read"):
        open_checkpoint(path)
