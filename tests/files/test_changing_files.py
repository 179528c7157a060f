"""Promise 10: a file that changes during the run is reported, not half-read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_same
from raw_zip import checkpoint
from safetensors.torch import save_file

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.files.files import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATE = {"a": torch.arange(1000.0), "b": torch.ones(3)}


def legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": legacy,
    "safetensors": save_file,
}


def later(path: Path) -> None:
    """File systems keep time in steps: a change within one of them can't be determined."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    os.utime(path.with_suffix(".new"), ns=(0, path.stat().st_mtime_ns))
    path.with_suffix(".new").rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-200, os.SEEK_END)
        file.write(b"other")
    later(path)


def remove(path: Path) -> None:
    path.unlink()


def make_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [replace, truncate, append, overwrite, remove, make_a_pipe]


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    WRITERS[request.param](STATE, path)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_between_header_and_values(path: Path, change: Callable[[Path], None]) -> None:
    ckpt = open_checkpoint(path)
    stored = ckpt.stored()
    assert_same(ckpt.tensor("b"), STATE["b"])
    change(path)
    for read in (
        lambda: ckpt.tensor("b"),
        ckpt.state_dict,
        lambda: torch.empty(3).copy_(stored["b"]),
        lambda: stored["b"].sum(),
    ):
        with pytest.raises(
            CheckpointError, match=r"net\.pth (changed during this run|does not exist|is a pipe)"
        ):
            read()
    ckpt.meta()


@pytest.mark.parametrize("change", [truncate, append, overwrite])
@pytest.mark.parametrize("moment", ["header", "values"])
def test_while_it_is_read(
    path: Path, change: Callable[[Path], None], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = open_checkpoint(path)
    ordinary = LocalFile.read_at if moment == "header" else LocalFile.readinto_at
    calls = []

    def read(self: LocalFile, *args: Any) -> Any:
        result = ordinary(self, *args)  # type: ignore[operator]
        if not calls:
            calls.append(change(path))
        return result

    monkeypatch.setattr(LocalFile, ordinary.__name__, read)
    with pytest.raises(CheckpointError, match=r"changed during this run|truncated"):
        open_checkpoint(path) if moment == "header" else ckpt.tensor("a")
    assert calls


def test_what_leaves_the_file_alone_is_no_change(path: Path) -> None:
    ckpt = open_checkpoint(path)
    path.chmod(0o600)
    os.link(path, path.with_suffix(".backup"))
    assert_same(ckpt.tensor("a"), STATE["a"])


def test_a_header_that_promises_more_than_the_file_has(tmp_path: Path) -> None:
    """A value that is cut after its header was read gives an error, never zeros or a bus error."""
    path = tmp_path / "net.pth"
    path.write_bytes(checkpoint().to_bytes())
    ckpt = open_checkpoint(path)
    fd = os.open(path, os.O_RDWR)
    status = os.fstat(fd)
    os.ftruncate(fd, 100)
    os.ftruncate(fd, status.st_size)
    os.close(fd)
    later(path)
    with pytest.raises(CheckpointError, match="changed"):
        ckpt.state_dict()


def test_memory_is_never_mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("mapped"))
    monkeypatch.setattr(torch.UntypedStorage, "from_file", lambda *_, **__: pytest.fail("mapped"))
    open_checkpoint(path).state_dict()


def test_a_shard_that_changes_is_named(tmp_path: Path) -> None:
    import json

    save_file(STATE, tmp_path / "1.safetensors")
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "1.safetensors")}))
    ckpt = open_checkpoint(tmp_path)
    append(tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"1\.safetensors changed during this run"):
        ckpt.tensor("a")
