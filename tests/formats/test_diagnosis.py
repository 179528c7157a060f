"""Promise 3: one clear error for every fault, which says what the file really is and what to do."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pytest_ckptcompat import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def tar(*names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as out:
        for name in names:
            out.addfile(tarfile.TarInfo(name), io.BytesIO())
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""

    def varint(n: int) -> bytes:
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx() -> bytes:
    graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu")) + field(2, b"main_graph")
    return field(1, 8) + field(2, b"pytorch") + field(3, b"2.6.0") + field(7, graph) + field(8, field(2, 17))


def saved_model() -> bytes:
    about = field(1, field(4, b"serve") + field(5, b"2.15.0"))
    return field(1, 1) + field(2, about + field(2, field(1, field(1, b"kernel") + field(2, b"VarHandleOp"))))


CONTENT = {
    "nothing": (b"", r"is empty \(0 bytes\)"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
    "a web page in capitals": (b"<HTML><BODY>404</BODY></HTML>", "is a web page"),
    "an XML error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document that says AccessDenied"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n",
        "is a Git LFS pointer, not the file itself: run 'git lfs pull'",
    ),
    "gzip": (gzip.compress(b"x" * 100), "is gzip-compressed: unpack it"),
    "bzip2": (b"BZh91AY&SY", "is bzip2-compressed"),
    "xz": (b"\xfd7zXZ\x00\x00\x04", "is xz-compressed"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "is zstd-compressed"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive"),
    "tar": (tar("weights/net.pth"), "is a tar archive: unpack it"),
    "the tar layout of torch 0.3": (tar("sys_info", "pickle", "tensors", "storages"), "torch before 0.4, which is not read"),
    "JSON": (b'{"architectures": ["Net"]}', "is JSON text, not a checkpoint or a lock file: name the file that"),
    "a JSON list": (b"[1, 2]", "is JSON text"),
    "damaged JSON": (b'{"a": ', "is JSON text, not a checkpoint"),
    "a file in conflict": (
        b"import torch\n<<<<<<< HEAD\na\n=======\nb\n>>>>>>> main\n",
        "is a text file that has conflict markers of git at line 2: resolve them",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "ONNX": (onnx(), "is an ONNX model: open the PyTorch checkpoint"),
    "a SavedModel": (saved_model(), "is a TensorFlow SavedModel: .*from_tf"),
    "a TensorFlow checkpoint": (bytes(40) + (0xDB4775248B80FB57).to_bytes(8, "little"), "index of a TensorFlow"),
    "TensorFlow Lite": (struct.pack("<I", 28) + b"TFL3" + bytes(60), "is a TensorFlow Lite model: it is made for"),
    "a Keras archive": (zipped(**{"metadata.json": b"{}", "model.weights.h5": b"x"}), "is a Keras archive"),
    "Flax": (b"\x81\xa6params\x82\xa5Dense\x81\xa6kernel\xc7" + bytes(40), "is a Flax checkpoint .*from_flax"),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="x" version="11">\n<layers>', "is an OpenVINO model"),
    "another XML document": (b'<?xml version="1.0"?><a/>', "is an XML document, not a checkpoint"),
    "Caffe": (b"\x0a\x03net\xa2\x06\x05\x0a\x03abc", "is a Caffe model"),
    "a protocol buffer": (field(1, 5) + field(2, field(1, b"x")) + field(300, b"abc"), "is a protocol buffer, as ONNX"),
    "an npz archive": (zipped(**{"w.npy": b"x"}), "is a NumPy archive .*from_numpy"),
    "an exported program": (zipped(**{"a/data/weights/weight_0": b"x"}), "a program of torch.export .*state_dict"),
    "an older exported program": (zipped(**{"serialized_exported_program.json": b"x"}), "a program of torch.export"),
    "ExecuTorch": (bytes(4) + b"ET12" + bytes(60), "is an ExecuTorch program"),
    "TensorRT": (b"ptrt" + bytes(60), "is a TensorRT engine"),
    "MXNet": (b"\x12\x01\0\0\0\0\0\0" + bytes(60), "is an MXNet parameter file"),
    "GGML": (b"tjgg\x03\0\0\0" + bytes(60), "is a GGML file"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file"),
    "NumPy": (array(), r"is a NumPy array \(.npy\)"),
    "another zip archive": (zipped(a=b"x"), "is a zip archive, but not one of torch.save"),
    "a plain pickle": (pickle.dumps({"w": [1.0]}), "is a plain Python pickle, which torch.load does not read"),
    "a plain pickle of tensors": (pickle.dumps({"w": torch.ones(1), "a": np.ones(1)}), "which torch.load does not read: its tensors are PyTorch's own"),
    "a plain pickle of arrays that are texts": (pickle.dumps({"w": np.ones(1)}, protocol=2), "convert its NumPy arrays, .*from_numpy"),
    "an old plain pickle": (pickle.dumps({"w": [1.0]}, protocol=0), "is a plain Python pickle"),
    "text": (b"epoch 3\nloss 0.25\n" * 20, "is a text file, not a checkpoint"),
    "an answer": (b"Entry not found", 'is a text of 15 bytes, not a checkpoint: "Entry not found". Fetch the file again'),
    "a short answer": (b"Not Found", 'not a checkpoint: "Not Found"'),
    "an answer in another script": ("Datei nicht gefunden: größe".encode(), "Datei nicht gefunden: größe"),
    "an answer in colours": (b"\x1b[31mdenied\x1b[0m", r'not a checkpoint: "\\x1b\[31mdenied\\x1b\[0m"'),
    "an answer that ends with zeros": (b"Not found\0\0", 'not a checkpoint: "Not found"'),
    "an answer of UTF-16": ("Rate limit".encode("utf-16"), 'not a checkpoint: "Rate limit"'),
    "an answer of Latin-1": ("größer".encode("latin-1"), 'not a checkpoint: "größer"'),
    "an answer of JSON": (b'{"error": "Repository not found"}', r'is JSON text.* \(it is {"error": "Repository not found"}\)'),
    "one letter": (b"x", 'a text of 1 bytes, not a checkpoint: "x"'),
    "a blank": (b" \n", "is blank, not a checkpoint"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(9), "is lz4-compressed"),
    "a program": (b"\x7fELF" + bytes(60), "is a program or a library"),
    "a program of torch.package": (zipped(**{"p/.data/0.storage": b"x"}), "a program of torch.package.*PackageImporter"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(30), "is an image"),
    "zeros": (bytes(5000), "is all zeros where its header should be"),
    "noise": (bytes(range(255, 100, -1)), "is in no known format"),
    "one byte": (b"\xff", "is in no known format"),
    "half a magic number": (b"PK\x03", "is in no known format"),
    "the magic number alone": (b"PK\x03\x04", "zip archive is truncated"),
    "a safetensors header without its values": (
        struct.pack("<Q", 1000) + b'{"a":',
        "is truncated: its header should have 1000 bytes",
    ),
    "a safetensors header of a petabyte": (struct.pack("<Q", 1 << 50) + b'{"a":', "is in no known format"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENT)
def test_content_is_known_for_what_it_is(tmp_path: Path, what: str) -> None:
    data, message = CONTENT[what]
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


LOCK = b'{\n  "ckptcompat_lock": 1,\n  "tensors": {\n    "w": ["float32", [1]]\n  }\n}\n'
AGAIN = "write it again with 'ckptcompat lock'"
CONFLICT = (
    b"<<<<<<< HEAD\n%b=======\n%b>>>>>>> a branch with a name that is longer than the beginning that tells\n"
)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{bad", f"is a damaged lock file: it does not begin as lock files do; {AGAIN}"),
        (b'{"a": 1}', f"is a damaged lock file: it does not begin as lock files do; {AGAIN}"),
        (LOCK[:-4], rf": a damaged lock file: Expecting .* line 5 .*; {AGAIN}"),
        (LOCK.replace(b'"float32"', b"1"), rf": a damaged lock file: w is \[1, \[1\]\]; {AGAIN}"),
        (
            CONFLICT % (LOCK, LOCK),
            f"a damaged lock file: it has conflict markers of git at line 1: resolve them, or {AGAIN}",
        ),
        (
            LOCK.replace(b'    "w', CONFLICT % (b'    "a', b'    "w')),
            f"a damaged lock file: it has conflict markers of git at line 4: resolve them, or {AGAIN}",
        ),
    ],
)
def test_a_damaged_lock_file_is_called_one(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "net.ckpt.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(path)
    assert str(error.value).count("a damaged lock file") == 1
    assert str(error.value).isprintable()


def test_a_name_chooses_the_words_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(b'{"a": 1}')
    with pytest.raises(CheckpointError, match="is JSON text, but not the index of a sharded checkpoint"):
        open_checkpoint(path)
    path.write_bytes(b"{bad")
    with pytest.raises(CheckpointError, match=r"the index is damaged: Expecting property name .* column 2 "):
        open_checkpoint(path)
    path.write_bytes(LOCK)
    assert open_checkpoint(path).format == "lock"
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "net.ckpt.json").write_text('{"weight_map": {"w": "net.pth"}}')
    assert open_checkpoint(tmp_path / "net.ckpt.json").format == "sharded torch-zip"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        open_checkpoint(tmp_path / "none.pth")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not exist: a part of the path is a file"):
        open_checkpoint(tmp_path / "file" / "net.pth")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("nte_v2.pth", "net_v2.pth"),
        ("net_v2.pt", "net_v2.pth"),
        ("net_v1.pth", "net_v2.pth"),
        ("Resnet.safetensors", "resnet.pth"),
        ("weihgts", "weights"),
        ("nothing_like_it.pth", ""),
        ("train.pth", ""),  # the script is not a checkpoint
    ],
)
def test_of_a_path_that_does_not_exist_the_likest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    for name in ("net_v2.pth", "resnet.pth", "resnet.txt", "train.py"):
        (tmp_path / name).touch()
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in ("", f"{tmp_path}/"):
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(f"{folder}{typed}")
        hint = f": did you mean {folder}{meant}?" if meant else ""
        assert str(error.value) == f"{folder}{typed} does not exist{hint}"


def test_a_name_that_is_hinted_at_is_safe_to_print(tmp_path: Path) -> None:
    (tmp_path / "network\x1b[m\n.pth").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "network\x1b[m\n.pth").touch()
    for path, told in ((tmp_path / "network.pth", "did you mean"), (tmp_path / "sub", "is empty")):
        with pytest.raises(CheckpointError, match=told) as error:
            open_checkpoint(path)
        assert str(error.value).isprintable()


def test_a_folder_of_very_many_files_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_ckptcompat.files import folders as paths

    monkeypatch.setattr(paths, "_MOST_COMPARED", 3)
    for number in range(9):
        (tmp_path / f"other{number}.pth").touch()
    asked = list[str]()
    monkeypatch.setattr(paths, "nearest", lambda name, keys, n: asked.extend(keys) or [])
    with pytest.raises(CheckpointError, match=r"net\.pth does not exist$"):
        open_checkpoint(tmp_path / "net.pth")
    assert len(asked) == 3


def test_paths_that_are_none() -> None:
    for path in ("net\0.pth", "n" * 5000, "", "\udcff.pth"):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is a folder that holds no checkpoint: it is empty\. Name a file"
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"is a folder that holds no checkpoint: it has config\.json\."):
        open_checkpoint(tmp_path)
    (tmp_path / "net.pth").touch()
    with pytest.raises(CheckpointError, match=r"/net\.pth: it is empty \(0 bytes\)"):
        open_checkpoint(f"{tmp_path}/")
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(
        CheckpointError, match=r"holds 2 checkpoints: net\.pth, other\.safetensors\. Name one of them"
    ):
        open_checkpoint(tmp_path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    (tmp_path / "net.pth").chmod(0)
    if os.geteuid() == 0:  # who may read everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="no permission"):
        open_checkpoint(tmp_path / "net.pth")


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="leads back to itself"):
        open_checkpoint(tmp_path / "a")


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "none")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "a")


def test_a_link_to_a_checkpoint_is_followed(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "latest").symlink_to("net.pth")
    ckpt = open_checkpoint(tmp_path / "latest")
    assert (list(ckpt), ckpt.name) == (["w"], "latest")


@pytest.mark.parametrize("through_link", [False, True])
def test_a_pipe_is_never_waited_for(tmp_path: Path, through_link: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(CheckpointError, match=r"is a pipe \(FIFO\)"):
        open_checkpoint(tmp_path / ("link" if through_link else "pipe"))


def test_a_device_is_not_opened() -> None:
    with pytest.raises(CheckpointError, match="is a device"):
        open_checkpoint("/dev/zero")


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        with pytest.raises(CheckpointError, match="is a socket"):
            open_checkpoint("s")


def test_a_pipe_put_in_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_ckptcompat.files import files

    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "kind_of", lambda path: "file")
    with pytest.raises(CheckpointError, match="not a regular file any more"):
        files.Files().open(str(tmp_path / "pipe"))


def test_read_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"can't read .*net\.pth: Input/output error"):
        open_checkpoint(tmp_path / "net.pth")


def test_the_files_are_closed(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04")
    before = _open_files()
    for _ in range(5):
        ckpt = open_checkpoint(tmp_path / "net.pth")
        ckpt.state_dict()
        ckpt.stored()["w"].sum()
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "bad.pth")
    assert _open_files() == before


def _open_files() -> int:
    with os.scandir("/proc/self/fd") as found:
        return len(list(found))
