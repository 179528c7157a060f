from __future__ import annotations

import io
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from equality import assert_same, assert_same_state
from http_server import Served, serve
from safetensors.torch import save_file
from tensor_zoo import layouts
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.reading import remote
from pytest_ckptcompat.reading.files import Files
from pytest_ckptcompat.reading.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")

STATE = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int16)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("aiohttp")
    with serve(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, as a stand-in for a bucket."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


# -- over HTTP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "net.safetensors"])
def test_every_format_over_http(server: Served, name: str) -> None:
    state = layouts() if name != "net.safetensors" else STATE
    match name:
        case "zip.pth":
            torch.save(state, server.folder / name)
        case "legacy.pth":
            torch.save(state, server.folder / name, _use_new_zipfile_serialization=False)
        case _:
            save_file(state, server.folder / name)
    ckpt = open_checkpoint(f"{server.url}/{name}")
    assert ckpt.name == name
    assert_same_state(ckpt, {key: state[key] for key in ckpt})


def test_a_sharded_checkpoint_over_http(server: Served) -> None:
    folder = server.folder / "sharded"
    folder.mkdir()
    for name, key in (("1.safetensors", "a"), ("2.safetensors", "b")):
        save_file({key: STATE[key]}, folder / name)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ckpt = open_checkpoint(f"{server.url}/sharded/model.safetensors.index.json")
    assert_same_state(ckpt, STATE)


def test_of_2_gb_less_than_1_mb_is_read(server: Served) -> None:
    """The file is sparse: torch.save writes its header, and its values are holes."""
    path = server.folder / "big.pth"
    with torch.serialization.skip_data():
        torch.save({f"layers.{n}.weight": torch.empty(2048, 2560) for n in range(100)}, path)
    assert path.stat().st_size > 2_000_000_000
    server.sent, before = 0, len(server.requests)
    ckpt = open_checkpoint(f"{server.url}/big.pth")
    assert len(ckpt) == 100
    ckpt.meta()
    assert server.sent == ckpt.bytes_read < 200_000
    assert len(server.requests) - before < 12
    tensor = ckpt.tensor("layers.50.weight")
    assert server.sent == ckpt.bytes_read < 2048 * 2560 * 4 + 400_000
    assert tensor.shape == (2048, 2560)
    path.unlink()


def test_the_gate_on_shapes_reads_the_header_alone(server: Served) -> None:
    from pytest_ckptcompat import check

    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    torch.save(net.state_dict(), server.folder / "net.pth")
    server.sent = 0
    report = check(lambda: nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512)), f"{server.url}/net.pth")
    assert report.ok, str(report)
    assert server.sent < 150_000


def test_a_server_without_ranges_is_told_not_suffered(server: Served, tmp_path: Path) -> None:
    with torch.serialization.skip_data():
        torch.save({"a": torch.empty(100_000_000)}, tmp_path / "net.pth")
    with serve(tmp_path, ranges=False) as deaf:
        with pytest.raises(CheckpointError, match="does not send parts of a file"):
            open_checkpoint(f"{deaf.url}/net.pth")
        assert deaf.sent < 40_000_000  # what was on its way when we hung up


def test_a_server_that_tells_no_size(server: Served, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pth")
    with (
        serve(tmp_path, ranges=False, size_told=False) as vague,
        pytest.raises(CheckpointError, match="does not say how large it is"),
    ):
        open_checkpoint(f"{vague.url}/net.pth")


def test_what_is_not_there(server: Served) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist, or can't be reached"):
        open_checkpoint(f"{server.url}/none.pth")
    with pytest.raises(CheckpointError, match="can't be reached"):
        open_checkpoint("http://127.0.0.1:9/net.pth")


def test_faults_are_known_over_http_too(server: Served) -> None:
    (server.folder / "login.pth").write_text("<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match=r"login\.pth is a web page"):
        open_checkpoint(f"{server.url}/login.pth")


def test_a_file_that_changes_is_reported(server: Served) -> None:
    path = server.folder / "changing.pth"
    torch.save(STATE, path)
    ckpt = open_checkpoint(f"{server.url}/changing.pth")
    os.utime(path, ns=(0, 1))
    with pytest.raises(CheckpointError, match=r"changing\.pth changed during this run"):
        ckpt.tensor("a")


def test_passwords_and_signatures_are_not_shown(server: Served) -> None:
    torch.save(STATE, server.folder / "signed.pth")
    ckpt = open_checkpoint(f"{server.url}/signed.pth?signature=s3cret")
    assert ckpt.name == "signed.pth"
    assert_same(ckpt.tensor("a"), STATE["a"])
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(server.url.replace("://", "://user:s3cret@") + "/none.pth?signature=s3cret")
    assert "s3cret" not in str(error.value)
    assert "/none.pth" in str(error.value)


# -- other file systems ------------------------------------------------------------------------------------


def test_a_bucket(memory: Any) -> None:
    stream = io.BytesIO()
    torch.save(STATE, stream)
    memory.pipe("/bucket/net.pth", stream.getvalue())
    assert_same_state(open_checkpoint("memory://bucket/net.pth"), STATE)
    memory.pipe("/bucket/net.pth", stream.getvalue() + b"more")
    with pytest.raises(CheckpointError, match="bytes follow the end"):
        open_checkpoint("memory://bucket/net.pth")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_distributed_checkpoint_in_a_bucket(memory: Any, tmp_path: Path, slash: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": STATE, "epoch": 3}, checkpoint_id=tmp_path / "x")
    memory.put(str(tmp_path / "x"), "/bucket/x", recursive=True)
    ckpt = open_checkpoint(f"memory://bucket/x{slash}")
    assert (ckpt.format, ckpt.name) == ("dcp", "x")
    assert_same_state(ckpt, STATE)


def test_a_sharded_folder_in_a_bucket(memory: Any, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "1.safetensors")
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "1.safetensors")}))
    memory.put(str(tmp_path), "/bucket/y", recursive=True)
    assert_same_state(open_checkpoint("memory://bucket/y/"), STATE)


def test_a_folder_without_a_checkpoint(memory: Any) -> None:
    memory.pipe("/bucket/z/readme", b"x")
    with pytest.raises(CheckpointError, match="is a folder that holds no sharded"):
        open_checkpoint("memory://bucket/z")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint("memory://bucket/none.pth")


def test_an_unknown_protocol() -> None:
    with pytest.raises(
        CheckpointError, match=r"nosuch://x/net\.pth can't be read: ValueError: Protocol not known"
    ):
        open_checkpoint("nosuch://x/net.pth")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "_found", missing)
    with pytest.raises(CheckpointError, match="reading it needs a package: Install s3fs"):
        open_checkpoint("s3://bucket/net.pth")


def test_a_local_url_is_a_local_file(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pth")
    assert_same_state(open_checkpoint(f"file://{tmp_path}/net.pth"), STATE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is a pipe"):
        open_checkpoint(f"file://{tmp_path}/pipe")


def test_small_reads_share_blocks_and_few_are_kept(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 100)
    monkeypatch.setattr(remote, "_BLOCKS", 3)
    data = bytes(n % 251 for n in range(2050))
    memory.pipe("/bucket/data", data)
    with Files().open("memory://bucket/data") as file:
        for offset, size in (
            (0, 10),
            (5, 90),
            (95, 10),
            (2040, 10),
            (0, 100),
            (50, 1900),
            (2049, 1),
            (2050, 0),
        ):
            assert file.read_at(offset, size) == data[offset : offset + size]
        with pytest.raises(CheckpointError, match="ends at byte 2050, before byte 2060"):
            file.read_at(2000, 60)
        read = file.bytes_read
        file.read_at(2045, 5)
        assert file.bytes_read == read
        assert len(file._blocks) <= 3  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_people_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_ckptcompat.reading import progress

    monkeypatch.setattr(progress, "_AFTER", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with Progress("net.pth", 3_000_000) as bar:
            bar.advance(1_000_000)
            bar.advance(2_000_000)
        assert ("net.pth: " in stream.getvalue()) == shown
        assert stream.getvalue().endswith("\r\x1b[K") == shown
