"""Promise 2: whatever a header holds, reading it stays under 5 seconds and 512 MB."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from bombs import JSONS, PICKLES, in_legacy, in_safetensors, in_zip, members
from interpreter import run_python
from raw_zip import Raw, Ref, checkpoint, pickled, tensor

from pytest_ckptcompat import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

SECONDS, MEGABYTES = 5, 512

OPEN = """
from pace import within
from pytest_ckptcompat import CheckpointError, open_checkpoint
with within({seconds}):
    try:
        told = repr(open_checkpoint({path!r}))
    except CheckpointError as error:
        told = str(error)
print(told)
print("torch" in __import__("sys").modules)
"""

FINE = {"many shapes", "shapes of one hash"}
"""Bombs that are valid: a great many tensors, below every cap."""


def opened(path: Path) -> str:
    """What opening a file says, if it stays within bounds."""
    code = OPEN.format(path=str(path), seconds=SECONDS)
    told, torch = run_python(code, memory=MEGABYTES << 20, seconds=4 * SECONDS).splitlines()
    assert torch == "False"
    assert len(told) < 1000
    assert "MemoryError" not in told
    return told


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bomb"


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(path: Path, name: str) -> None:
    path.write_bytes(in_zip(name))
    assert opened(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["doubled dicts", "integers", "a far memo", "nested marks"])
def test_pickles_in_the_legacy_layout(path: Path, name: str) -> None:
    path.write_bytes(in_legacy(name))
    assert opened(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["doubled dicts", "floats"])
def test_pickles_of_distributed_checkpoints(path: Path, name: str) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(PICKLES[name]() + b".")
    assert opened(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["many dicts", "doubled dicts", "nested lists"])
def test_plain_pickles_of_arrays(path: Path, name: str) -> None:
    path.write_bytes(b"\x80\x02X\5\0\0\0numpy0" + PICKLES[name]()[2:] + b".")
    assert opened(path).startswith(str(path))


def test_the_code_of_torchscript(path: Path) -> None:
    code = [Raw(b"net/code/%d.py" % n, b"class A(Module):\n" + b"  a : int\n" * 500) for n in range(8000)]
    archive = checkpoint().plus(Raw(b"net/constants.pkl", b"x"), *code)
    path.write_bytes(archive.to_bytes())
    assert opened(path).startswith(f"{path}: ")


@pytest.mark.parametrize("name", JSONS)
def test_headers_of_safetensors(path: Path, name: str) -> None:
    path.write_bytes(in_safetensors(name))
    told = opened(path)
    assert told.startswith("<Checkpoint bomb" if name in FINE else f"{path}: ")


@pytest.mark.parametrize("name", ["open brackets", "a wide string", "members below the limit"])
@pytest.mark.parametrize("kind", ["an index", "a lock"])
def test_json_of_our_own(path: Path, name: str, kind: str) -> None:
    start = b'{"weight_map":{},"q":' if kind == "an index" else b'{"ckptcompat_lock":1,"q":'
    path.write_bytes(start + JSONS[name]())
    assert opened(path).startswith(f"{path}: ")


def test_weight_maps(path: Path) -> None:
    rows = b",".join(b'"%d":"x%d"' % (n, n % 20_000) for n in range(400_000))
    path.write_bytes(b'{"weight_map":{' + rows + b"}}")
    assert "limit exceeded: the index names too many tensors" in opened(path)


def test_members_of_a_zip_archive(path: Path) -> None:
    path.write_bytes(replace(checkpoint(), count=250_004).to_bytes())
    assert "limit exceeded: the zip archive says it has 250004 members" in opened(path)
    path.write_bytes(members(249_990))
    assert opened(path) == "<Checkpoint bomb: torch-zip, 1 tensors>"


# -- bytes that are never touched --------------------------------------------------------------------------


@pytest.fixture
def terabyte(path: Path) -> Path:
    """A zip checkpoint of one tensor with a terabyte of values, of which the file system keeps nothing."""
    try:
        _write_terabyte(path)
    except OSError as error:
        pytest.skip(f"this file system has no files of a terabyte: {error}")
    assert path.stat().st_size > 1 << 40
    return path


def _write_terabyte(path: Path) -> None:
    numel = 1 << 38
    big = pickled({"w": tensor(Ref(numel=numel), size=(1 << 19, 1 << 19), stride=(1 << 19, 1))})
    small = [Raw(b"net/data.pkl", big), Raw(b"net/version", b"3\n")]
    with path.open("wb") as file:
        directory = b""
        for member in small:
            directory += member.central(file.tell())
            file.write(member.local())
        start, nbytes = file.tell(), 4 * numel
        storage = Raw(b"net/data/0", size=0xFFFFFFFF, extra=struct.pack("<2H2Q", 1, 16, nbytes, nbytes))
        directory += storage.central(start)
        file.write(storage.local())
        file.seek(nbytes, os.SEEK_CUR)
        end = file.tell()
        file.write(directory)
        where = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, 3, 3, len(directory), end))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, where, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))


def test_a_sparse_terabyte_is_shown_as_fast_as_a_small_file(terabyte: Path) -> None:
    """By the whole command, its start included."""
    out = run_python(
        "from pace import within\n"
        "with within(1):\n"
        "    from pytest_ckptcompat.cli import main\n"
        f"    code = main(['show', {str(terabyte)!r}])\n"
        "print(code)",
        memory=MEGABYTES << 20,
        seconds=4,
    )
    shown = out.splitlines()
    assert shown[0] == "bomb: torch-zip, 1 tensors, 1.1 TB"
    assert shown[-2].split() == ["w", "(524288,", "524288)", "f32", "1.1", "TB"]
    assert shown[-1] == "0"


def test_of_a_sparse_terabyte_the_header_alone_is_read(terabyte: Path) -> None:
    assert 0 < open_checkpoint(terabyte).bytes_read < 2000
