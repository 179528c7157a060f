from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from equality import assert_same, assert_same_state
from http_server import Served, serve
from safetensors.torch import save_file
from tensor_zoo import layouts

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.files import progress, remote, web
from pytest_ckptcompat.files.files import Files

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


@pytest.fixture(scope="module")
def large(server: Served) -> dict[str, torch.Tensor]:
    """A checkpoint of 2 GB in two formats; their values are holes."""
    state = {f"{n}.weight": torch.empty(2560, 2048, device="meta") for n in range(100)}
    with torch.serialization.skip_data():
        torch.save({key: torch.empty_like(tensor, device="cpu") for key, tensor in state.items()},
                   server.folder / "large.pth")  # fmt: skip
    nbytes = 2560 * 2048 * 4
    header = {
        key: {"dtype": "F32", "shape": [2560, 2048], "data_offsets": [n * nbytes, (n + 1) * nbytes]}
        for n, key in enumerate(state)
    }
    text = json.dumps(header).encode()
    with (server.folder / "large.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + 100 * nbytes)
    for name in LARGE:
        status = (server.folder / name).stat()
        assert status.st_size > 2_000_000_000
        if status.st_blocks * 512 > 100_000_000:
            pytest.skip("this file system keeps holes as bytes")
    return state


LARGE = ("large.pth", "large.safetensors")


@pytest.mark.parametrize("name", LARGE)
def test_of_2_gb_less_than_1_mb_is_read(server: Served, large: dict[str, torch.Tensor], name: str) -> None:
    server.sent, before = 0, len(server.requests)
    ckpt = open_checkpoint(f"{server.url}/{name}")
    assert {key: tensor.shape for key, tensor in ckpt.meta().items()} == {
        key: tensor.shape for key, tensor in large.items()
    }
    assert server.sent == ckpt.bytes_read < 200_000
    assert len(server.requests) - before < 12
    tensor = ckpt.tensor("50.weight")
    assert server.sent == ckpt.bytes_read < 2048 * 2560 * 4 + 400_000
    assert tensor.shape == (2560, 2048)


def test_the_gate_on_shapes_reads_headers_alone(
    server: Served, large: dict[str, torch.Tensor], pytester: pytest.Pytester
) -> None:
    """A whole run of pytest, on 4 GB; the server counts."""
    pytester.makepyfile("""
        import pytest
        from torch import nn

        def net(width=2560):
            return nn.Sequential(*(nn.Linear(2048, width, bias=False) for _ in range(100)))

        def narrow():
            return net(2000)

        @pytest.mark.ckpt_compat(model=net)
        def test_shapes(ckpt_report):
            assert ckpt_report.matched == 100

        @pytest.mark.ckpt_compat(model=narrow, device="none")
        def test_other_shapes():
            pass
    """)
    server.sent = 0
    result = pytester.runpytest_subprocess(*(f"--ckpt={server.url}/{name}" for name in LARGE))
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([f"{name} does not fit *narrow: 100 mismatched*" for name in LARGE])
    assert 0 < server.sent < 300_000


# -- bad servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LARGE)
def test_a_server_without_ranges_is_told_not_suffered(
    server: Served, large: dict[str, torch.Tensor], name: str
) -> None:
    with serve(server.folder, ranges=False) as deaf:
        with pytest.raises(CheckpointError, match="does not send parts of a file") as error:
            open_checkpoint(f"{deaf.url}/{name}")
        assert name in str(error.value)
        assert "download it first" in str(error.value)
        assert deaf.sent < 20_000_000  # what was on its way when we hung up


def test_a_small_file_comes_whole_from_a_server_without_ranges(server: Served) -> None:
    save_file(STATE, server.folder / "small.safetensors")
    with serve(server.folder, ranges=False) as deaf:
        assert_same_state(open_checkpoint(f"{deaf.url}/small.safetensors"), STATE)


def test_a_server_that_tells_no_size(server: Served, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pth")
    with (
        serve(tmp_path, ranges=False, size_told=False) as vague,
        pytest.raises(CheckpointError, match="does not say how large it is"),
    ):
        open_checkpoint(f"{vague.url}/net.pth")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, r"wants you to log in \(HTTP 401\)"),
        (403, r"refuses it; are you logged in, has the link expired\? \(HTTP 403\)"),
        (404, r"does not exist: the server has no such file; is the address right\? \(HTTP 404\)"),
        (503, r"the server fails; try again later \(HTTP 503\)"),
        ("circle", "the server redirects in a circle"),
        ("cut", "the connection broke off; try again"),
        (
            "short",
            "sends another part .*: download it first|1000 bytes follow its last tensor: it is damaged",
        ),
        ("shifted", "sends another part of the file than it was asked for: download it first"),
        ("everything", "sends another part of the file than it was asked for: download it first"),
        ("silent", r"does not answer \(waited 0\.3 s\): try again, or download it first"),
        ("mute", r"does not answer \(waited 0\.3 s\): try again, or download it first"),
    ],
)
@pytest.mark.parametrize("name", LARGE)
def test_a_bad_server(
    server: Served,
    large: dict[str, torch.Tensor],
    name: str,
    fault: str | int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One error that says what is wrong and what to do, soon, and nothing is downloaded."""
    monkeypatch.setattr(web, "SILENCE", 0.3)
    with serve(server.folder, fault=fault) as bad:
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=rf"^{bad.url}/{name}.*({said})$"):
            open_checkpoint(f"{bad.url}/{name}")
        assert time.monotonic() - start < 5
        assert bad.sent < 20_000_000


def test_it_gets_bad_while_values_are_fetched(server: Served) -> None:
    torch.save(layouts(), server.folder / "layouts.pth")
    with serve(server.folder) as fading:
        ckpt = open_checkpoint(f"{fading.url}/layouts.pth")
        key = next(iter(ckpt))
        fading.fault = 503
        with pytest.raises(
            CheckpointError, match=r"layouts\.pth can't be read: the server fails; try again later"
        ):
            ckpt.tensor(key)


def test_a_redirect_is_followed(server: Served) -> None:
    torch.save(STATE, server.folder / "moved.pth")
    with serve(server.folder, fault="elsewhere") as moving:
        assert_same_state(open_checkpoint(f"{moving.url}/moved.pth"), STATE)


def test_nobody_is_there() -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(CheckpointError, match=r"can't be reached .* and are you online"):
            open_checkpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/net.pth")


def test_what_the_user_set_in_fsspec_wins(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        fsspec.config.conf, "http", {"client_kwargs": {"headers": {"Authorization": "Bearer x"}}}
    )
    torch.save(STATE, server.folder / "private.pth")
    with serve(server.folder, password="Bearer x") as private:
        assert_same_state(open_checkpoint(f"{private.url}/private.pth"), STATE)


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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("htps://x/net.pth", r"the protocol htps:// is not known: did you mean https://\?"),
        (
            "nosuch://x/net.pth",
            "the protocol nosuch:// is not known: install the package that brings it to fsspec",
        ),
        ("simplecache::htps://x/net.pth", r"the protocol htps:// is not known: did you mean https://\?"),
    ],
)
def test_an_unknown_protocol(url: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{url}: {said}$"):
        open_checkpoint(url)


@pytest.mark.parametrize(
    ("module", "url"),
    [("s3fs", "s3://x/net.pth"), ("aiohttp", "https://x/net.pth"), ("fsspec.core", "memory://x/net.pth")],
)
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, module: str, url: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(
        CheckpointError, match=rf"^{url}: reading it needs .* not installed: pip install {package}$"
    ):
        open_checkpoint(url)


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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown at once and each time, outside continuous integration."""
    monkeypatch.setattr(progress, "_AFTER", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.delenv("CI", raising=False)


def _fetch_twice(memory: Any, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What is written to standard error while 2 MB of values, and their header, are fetched."""
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(250_000), "b": torch.ones(250_000)}, saved)
    memory.pipe("/bucket/net.pth", saved.getvalue())
    monkeypatch.setattr("sys.stderr", stream)
    ckpt = open_checkpoint("memory://bucket/net.pth")
    assert stream.getvalue() == ""
    for key in ckpt:
        ckpt.tensor(key)
    return stream.getvalue()


@pytest.mark.usefixtures("impatient")
def test_progress_of_values_is_shown_on_a_terminal(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's, not each tensor's; and the line is gone when nothing is fetched."""
    shown = _fetch_twice(memory, monkeypatch, Terminal())
    assert shown.split("\r") == [
        "",
        "memory://bucket/net.pth: 1.0 MB of 2.0 MB\x1b[K",
        "\x1b[K",
        "memory://bucket/net.pth: 2.0 MB of 2.0 MB\x1b[K",
        "\x1b[K",
    ]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("where", ["captured", "ci"])
def test_progress_is_shown_to_people_alone(memory: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "ci":
        monkeypatch.setenv("CI", "true")
    assert _fetch_twice(memory, monkeypatch, io.StringIO() if where == "captured" else Terminal()) == ""


def test_progress_waits_before_it_is_shown(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(progress, "_AFTER", 60)
    assert _fetch_twice(memory, monkeypatch, Terminal()) == ""


def test_a_file_that_could_not_be_opened_can_be_forgotten() -> None:
    """Python closes what it forgets, however far it came."""
    file = remote.RemoteFile.__new__(remote.RemoteFile)
    with pytest.raises(CheckpointError):
        file.__init__("memory://nothing/here.pth", {})  # type: ignore[misc]
    file.close()
    assert file.closed
