from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from equality import assert_same_state
from http_server import serve
from safetensors.torch import save_file

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.files.remote_folder import is_glob, matches

if TYPE_CHECKING:
    from pathlib import Path

fsspec = pytest.importorskip("fsspec")

STATE = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int16)}


@pytest.mark.parametrize(
    ("url", "yes"),
    [
        ("s3://b/*.pth", True),
        ("s3://b/run[12]/net.pth", True),
        ("https://h/run-*/net.pth?sig=1", True),
        ("s3://b/net.pth", False),
        ("https://[::1]:80/net.pth", False),
        ("https://h/net.pth?sig=*", False),
    ],
)
def test_what_is_a_glob(url: str, yes: bool) -> None:
    assert is_glob(url) is yes


def test_a_glob_in_a_bucket(memory: Any) -> None:
    for name in ("v2/net.pth", "v10/net.pth", "v10/other", "net.pth"):
        memory.pipe(f"/bucket/{name}", b"x")
    assert matches("memory://bucket/v*/net.pth") == [
        "memory://bucket/v2/net.pth",
        "memory://bucket/v10/net.pth",
    ]
    assert matches("memory://bucket/**/net.pth") == [
        "memory://bucket/net.pth", "memory://bucket/v2/net.pth", "memory://bucket/v10/net.pth",
    ]  # fmt: skip
    assert matches("memory://bucket/*.bin") == []
    assert matches("memory://elsewhere/*.bin") == []


def test_a_glob_on_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    for name in ("net2.pth", "net10.pth", "net 3?.pth", "other"):
        (tmp_path / name).touch()
    with serve(tmp_path, pages=True, token="sig=1") as served:
        assert matches(f"{served.url}/net*.pth?sig=1") == [
            f"{served.url}/{name}?sig=1" for name in ("net2.pth", "net10.pth", "net%203%3F.pth")
        ]
    with serve(tmp_path) as served:
        assert matches(f"{served.url}/net*.pth") == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pages", [True, False])
@pytest.mark.parametrize("what", ["dcp", "sharded"])
def test_a_folder_on_a_web_server(tmp_path: Path, pages: bool, what: str) -> None:
    """By the page that is shown for it, which leaves out .metadata; without one, by the usual names."""
    pytest.importorskip("aiohttp")
    if what == "dcp":
        dcp.save({"model": STATE}, checkpoint_id=tmp_path / "a b")
    else:
        (tmp_path / "a b").mkdir()
        save_file(STATE, tmp_path / "a b" / "1.safetensors")
        index = json.dumps({"weight_map": dict.fromkeys(STATE, "1.safetensors")})
        name = "odd.index.json" if pages else "model.safetensors.index.json"
        (tmp_path / "a b" / name).write_text(index)
    with serve(tmp_path, pages=pages, token="sig=1") as served:
        assert_same_state(open_checkpoint(f"{served.url}/a%20b/?sig=1"), STATE)


def test_a_folder_on_a_web_server_without_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "run").mkdir()
    with serve(tmp_path) as served:
        with pytest.raises(
            CheckpointError, match=r"/run/ is a folder that its server does not list.*name the file"
        ):
            open_checkpoint(f"{served.url}/run/")
        with pytest.raises(CheckpointError, match=r"/run: it is a folder: end its address with a slash"):
            open_checkpoint(f"{served.url}/run")


@pytest.mark.parametrize("status", [500, 503])
def test_a_folder_on_a_server_that_fails(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("pytest_ckptcompat.files.attempts.WAITS", (0.01,))
    with serve(tmp_path, fault=status) as served, pytest.raises(CheckpointError, match=f"HTTP {status}"):
        open_checkpoint(f"{served.url}/run/")
