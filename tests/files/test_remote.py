from __future__ import annotations

import io
import json
import os
import random
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from equality import assert_same, assert_same_state
from http_server import Served, serve
from safetensors.torch import save_file
from tensor_zoo import layouts

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.files import attempts, progress, remote, web
from pytest_ckptcompat.files.file import Reads
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


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails for a moment is tried again at once."""
    monkeypatch.setattr(attempts, "WAITS", (0.01, 0.01, 0.01, 0.01))


# -- over HTTP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "net.safetensors"])
def test_every_format_over_http(server: Served, name: str) -> None:
    state = layouts() if name != "net.safetensors" else STATE
    if name == "net.safetensors":
        save_file(state, server.folder / name)
    else:
        torch.save(state, server.folder / name, _use_new_zipfile_serialization=name == "zip.pth")
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
    result = pytester.runpytest(*(f"--ckpt={server.url}/{name}" for name in LARGE))
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([f"*{name} does not fit *narrow: 100 mismatched*" for name in LARGE])
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
        (503, r"the server fails; try again later \(HTTP 503, tried 5 times\)"),
        (418, r"the server refuses the request \(HTTP 418\)"),
        (520, r"the server fails; try again later \(HTTP 520, tried 5 times\)"),
        (204, "the server answers HTTP 204 instead of the file"),
        ("compressed", "sends it compressed, so parts of it can't be read: download it first"),
        ("circle", "the server redirects in a circle"),
        ("cut", r"the connection broke off; try again \(tried 5 times\)"),
        (
            "short",
            "sends another part .*: download it first|1000 bytes follow its last tensor: it is damaged",
        ),
        ("shifted", "sends another part of the file than the one requested: download it first"),
        ("everything", "sends another part of the file than the one requested: download it first"),
        ("silent", r"does not answer \(waited 0\.3 s\): try again, or download it first \(tried 5 times\)"),
        ("mute", r"does not answer \(waited 0\.3 s\): try again, or download it first \(tried 5 times\)"),
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


@pytest.mark.parametrize("how", ["chunked", "shouting", "vague"])
def test_a_server_that_says_it_otherwise(server: Served, how: str) -> None:
    torch.save(STATE, server.folder / "otherwise.pth")
    with serve(server.folder, fault=how) as other:
        assert_same_state(open_checkpoint(f"{other.url}/otherwise.pth"), STATE)


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


@pytest.mark.parametrize("fault", [503, 429, "reset", "cut", "silent"])
@pytest.mark.parametrize("request_number", [0, 1, 2, 3])
def test_what_fails_for_a_moment_is_tried_again(
    server: Served, fault: str | int, request_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever request it is; the waits grow."""
    monkeypatch.setattr(web, "SILENCE", 0.2)
    waits: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", waits.append)
    monkeypatch.setattr(attempts, "WAITS", (1, 2, 4))
    state = {str(n): torch.full((300, 100), n) for n in range(3)}
    torch.save(state, server.folder / "flaky.pth")
    with serve(server.folder, fault=fault, fails=0) as flaky:
        answered = 0

        def failing_once(answer: Any, *arguments: Any) -> Any:
            nonlocal answered
            flaky.fails = 2 if answered == request_number else 0
            answered += 1
            return answer(*arguments)

        fetch = web.WebRanges.fetch
        monkeypatch.setattr(web.WebRanges, "fetch", lambda *given: failing_once(fetch, *given))
        assert_same_state(open_checkpoint(f"{flaky.url}/flaky.pth"), state)
    assert answered > request_number
    assert waits == [1, 2][: len(waits)]
    assert waits


def test_a_server_says_how_long_to_wait(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(attempts.time, "sleep", waits.append)
    torch.save(STATE, server.folder / "busy.pth")
    with serve(server.folder, fault=503, fails=2, retry_after="7") as busy:
        open_checkpoint(f"{busy.url}/busy.pth")
    assert waits == [7, 7]


@pytest.mark.parametrize("fault", [401, 403, 404, "circle", "shifted"])
def test_what_will_not_change_is_asked_for_once(server: Served, fault: str | int) -> None:
    torch.save(STATE, server.folder / "refused.pth")
    with serve(server.folder, fault=fault) as refusing:
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(f"{refusing.url}/refused.pth")
        assert "tried" not in str(error.value)
        assert len(set(refusing.requests)) == 1
        assert len(refusing.requests) == 1 or fault == "circle"


def test_after_giving_up_nobody_waits_again(server: Served) -> None:
    torch.save({str(n): torch.full((20_000,), n) for n in range(4)}, server.folder / "gone.pth")
    with serve(server.folder) as going:
        ckpt = open_checkpoint(f"{going.url}/gone.pth")
        going.fault = 503
        for tries in (5, 1, 1):
            before = len(going.requests)
            with pytest.raises(CheckpointError, match="HTTP 503"):
                ckpt.tensor("1")
            assert len(going.requests) - before == tries
        going.fault = ""
        assert_same(ckpt.tensor("1"), torch.full((20_000,), 1))


# -- few requests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(server: Served) -> dict[str, torch.Tensor]:
    """200 small tensors, in every format."""
    state = {f"layers.{n}.weight": torch.full((50, 20), float(n)) for n in range(200)}
    torch.save({"model": state, "optimizer": torch.zeros(300_000)}, server.folder / "many.pth")
    torch.save(state, server.folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, server.folder / "many.safetensors")
    names = {key: f"{n % 3}.safetensors" for n, key in enumerate(state)}
    (server.folder / "shards").mkdir()
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, server.folder / "shards" / name)
    (server.folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    dcp.save({"model": state}, checkpoint_id=server.folder / "dcp")
    return state


@pytest.mark.parametrize(
    ("name", "most"),
    [("many.pth", 8), ("old.pth", 8), ("many.safetensors", 5), ("shards/model.safetensors.index.json", 12), ("dcp/", 10)],
)  # fmt: skip
@pytest.mark.parametrize("way", ["state_dict", "copied", "backwards", "one by one", "in any order"])
def test_many_small_tensors_come_with_few_requests(
    server: Served, many: dict[str, torch.Tensor], name: str, most: int, way: str
) -> None:
    before = len(server.requests)
    ckpt = open_checkpoint(f"{server.url}/{name}")
    if way == "state_dict":
        found = ckpt.state_dict()
    elif way in ("one by one", "in any order"):
        keys = list(ckpt) if way == "one by one" else random.Random(0).sample(list(ckpt), len(ckpt))
        found = {key: ckpt.tensor(key) for key in keys}
        most = 20
    else:
        deferred = ckpt.stored()
        order = list(deferred) if way == "copied" else list(reversed(deferred))
        found = {key: torch.empty_like(many[key]).copy_(deferred[key]) for key in order}
    assert found.keys() == many.keys()
    for key in many:
        assert_same(found[key], many[key])
    assert len(server.requests) - before <= most
    assert not any(request.startswith("HEAD") for request in server.requests)


def test_of_what_is_not_wanted_little_is_fetched(server: Served, many: dict[str, torch.Tensor]) -> None:
    ckpt = open_checkpoint(f"{server.url}/many.pth")
    before = server.sent
    ckpt.tensor("layers.100.weight")
    assert server.sent - before < 70_000
    ckpt.tensor("layers.50.weight")
    assert server.sent - before < 140_000
    before = server.sent
    ckpt.state_dict()
    assert server.sent - before < 200 * (4000 + 200) + 70_000  # and nothing of the optimizer's


# -- on the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_of_the_environment_is_used(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        asked: list[bytes] = []

        def answer() -> None:
            caller, _ = proxy.accept()
            with caller:
                asked.append(caller.recv(1000).partition(b"\r")[0])
                caller.sendall(b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=r"the proxy .* wants you to log in \(HTTP 407\)"):
            open_checkpoint(f"{scheme}://nowhere.invalid/net.pth")
        thread.join(5)
    assert asked == [b"CONNECT nowhere.invalid:443 HTTP/1.1" if scheme == "https" else
                     b"GET http://nowhere.invalid/net.pth HTTP/1.1"]  # fmt: skip


def test_the_token_goes_to_the_shards_too(server: Served, many: dict[str, torch.Tensor]) -> None:
    with serve(server.folder, token="sig=s3cret/+") as private:
        url = f"{private.url}/shards/model.safetensors.index.json?sig=s3cret/+"
        assert_same_state(open_checkpoint(url), many)
        with pytest.raises(CheckpointError, match="HTTP 403"):
            open_checkpoint(url.partition("?")[0])


def test_a_link_that_is_good_for_the_index_alone(server: Served, many: dict[str, torch.Tensor]) -> None:
    """As those of object stores are, which sign one file."""
    with serve(server.folder, token="sig=s3cret", token_for="index.json") as private:
        url = f"{private.url}/shards/model.safetensors.index.json?sig=s3cret"
        with pytest.raises(CheckpointError, match="HTTP 403") as error:
            open_checkpoint(url)
    assert "was it signed for one file alone?" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_redirect_is_followed(server: Served) -> None:
    torch.save(STATE, server.folder / "moved.pth")
    with serve(server.folder, fault="elsewhere") as moving:
        assert_same_state(open_checkpoint(f"{moving.url}/moved.pth"), STATE)


def test_a_redirect_that_leaves_the_web(server: Served) -> None:
    torch.save(STATE, server.folder / "away.pth")
    with (
        serve(server.folder, fault="elsewhere", other="ftp://user:s3cret@host") as moving,
        pytest.raises(
            CheckpointError, match=r"away\.pth can't be read: the server redirects to an address that is not"
        ),
    ):
        open_checkpoint(f"{moving.url}/away.pth")


def test_another_server_gets_neither_password_nor_token(
    server: Served, many: dict[str, torch.Tensor]
) -> None:
    """The index and its shards are asked for where the user said; where that redirects to is another's matter."""
    with (
        serve(server.folder) as other,
        serve(server.folder, fault="elsewhere", other=other.url, token="sig=s3cret") as own,
    ):
        url = own.url.replace("://", "://user:pass@") + "/shards/model.safetensors.index.json?sig=s3cret"
        assert_same_state(open_checkpoint(url), many)
    assert own.authorized
    assert len(own.authorized) == len(own.requests)
    assert other.authorized == []
    assert not [request for request in other.requests if "s3cret" in request]


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
    with pytest.raises(CheckpointError, match="is a folder that holds no checkpoint"):
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
    files = Files()
    with files.open("memory://bucket/data") as file:
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
        read = files.bytes_read
        file.read_at(2045, 5)
        assert files.bytes_read == read
        assert len(file._blocks) <= 3  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_of_values_is_shown_on_a_terminal(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's, not each tensor's and not the header's; and the line is gone when nothing is fetched."""
    monkeypatch.setattr(progress, "_AFTER", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.delenv("CI", raising=False)
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(250_000), "b": torch.ones(250_000)}, saved)
    memory.pipe("/bucket/net.pth", saved.getvalue())
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    ckpt = open_checkpoint("memory://bucket/net.pth")
    assert stream.getvalue() == ""
    for key in ckpt:
        ckpt.tensor(key)
    assert stream.getvalue().split("\r") == [
        "",
        "memory://bucket/net.pth: 1.0 MB of 2.0 MB\x1b[K",
        "\x1b[K",
        "memory://bucket/net.pth: 2.0 MB of 2.0 MB\x1b[K",
        "\x1b[K",
    ]


def test_a_file_that_could_not_be_opened_can_be_forgotten() -> None:
    """Python closes what it forgets, however far it came."""
    file = remote.RemoteFile.__new__(remote.RemoteFile)
    with pytest.raises(CheckpointError):
        file.__init__("memory://nothing/here.pth", Reads())  # type: ignore[misc]
    file.close()
    assert file.closed


@pytest.mark.parametrize(
    ("raised", "said", "tries"),
    [
        (socket.gaierror(-2, "no name"), r"can't be reached \(.*no name.*\): are you online", 5),
        (ConnectionResetError("reset"), r"can't be reached \(reset\): are you online", 5),
        (PermissionError("no"), "no permission to read it; are you logged in", 1),
        (ValueError("see https://u:S3CR3T@h/x?t=S3CR3T"), "can't be read: ValueError: see https://h/x", 1),
    ],
)
def test_what_other_clients_raise(
    memory: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str, tries: int
) -> None:
    """Those of hubs and buckets wrap what the network said in errors of their own."""
    asked = []

    def failing(*_: Any) -> None:
        asked.append(1)
        if isinstance(raised, OSError) and not isinstance(raised, PermissionError):
            try:
                raise raised
            except OSError as error:
                raise RuntimeError("of the client's own kind") from error
        raise raised

    monkeypatch.setattr(type(memory), "info", failing)
    with pytest.raises(CheckpointError, match=rf"^memory://bucket/net\.pth:? {said}"):
        open_checkpoint("memory://bucket/net.pth")
    assert len(asked) == tries
