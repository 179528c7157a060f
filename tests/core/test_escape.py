"""Promise 9: no byte of a file reaches a terminal or log as it is."""

from __future__ import annotations

import json
import pickle
import re
import struct
from typing import TYPE_CHECKING

import pytest
import torch
from raw_zip import Raw, Ref, checkpoint, pickled, tensor
from safetensors.torch import save_file

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.core.escape import listed

if TYPE_CHECKING:
    from pathlib import Path

NASTY = {
    "an escape sequence": "\x1b[31mred",
    "a carriage return": "fine\rnot",
    "a new line": "a\n::error::b",
    "a command of GitHub": "::error::pwned",
    "a command of Azure": "##vso[task.complete]",
    "a bidirectional mark": "abc\u202egnp.exe",
    "a joiner": "a\u200db",
    "a bell": "\x07\x08",
    "a C1 control": "\x9b31m",
    "a lone surrogate": "\udc80",
    "a megabyte": "k" * 1_000_000,
    "a megabyte of escapes": "\x1b" * 300_000,
}
_PLAIN = re.compile(r"[ -~\u00a1-\u024f×→…]*")


def assert_harmless(text: str, secret: str) -> None:
    """One short line of characters that only show."""
    assert len(text) < 2000
    assert _PLAIN.fullmatch(text), text
    assert not text.lstrip().startswith("::")  # a command only where a line begins with it
    assert "##vso[" not in text
    assert secret not in text or secret == NASTY["a command of GitHub"]


def files(folder: Path, nasty: str) -> dict[str, Path]:
    """Files that carry the text wherever a message might repeat it."""
    encoded = nasty.encode("utf-8", "surrogatepass")
    short = encoded[:4000]
    quoted = json.dumps(nasty).encode()
    row = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

    def safetensors(header: bytes) -> bytes:
        return struct.pack("<Q", len(header)) + header + bytes(4)

    content = {
        "a key": checkpoint({nasty: tensor()}).to_bytes(),
        "two state dicts": checkpoint({nasty: {"a": tensor()}, nasty + "2": {"b": tensor()}}).to_bytes(),
        "no state dict": checkpoint({nasty: 1}).to_bytes(),
        "a storage without a member": checkpoint({"w": tensor(Ref(key=nasty))}).to_bytes(),
        "a storage of two sizes": checkpoint(
            [tensor(Ref(key=nasty)), tensor(Ref(key=nasty, numel=7))]
        ).to_bytes(),
        "a class": checkpoint(b"\x80\x02c" + short.replace(b"\n", b" ") + b"\nx\n.").to_bytes(),
        "a class as storage": checkpoint(
            pickled({"w": tensor()}).replace(
                b"torch\nFloatStorage", short[:200].replace(b"\n", b" ") + b"\nX"
            )
        ).to_bytes(),
        "a member": checkpoint().plus(Raw(short)).to_bytes(),
        "a root": checkpoint(root=nasty[:500] if "\udc80" not in nasty else "r")
        .without("version")
        .to_bytes(),
        "a compressed member": checkpoint().plus(Raw(b"net/" + short, method=12)).to_bytes(),
        "a byte order": checkpoint().with_member("byteorder", data=short[:16]).to_bytes(),
        "safetensors, a key twice": safetensors(
            b"{" + quoted + b":" + row + b"," + quoted + b":" + row + b"}"
        ),
        "safetensors, a dtype": safetensors(
            b'{"a":{"dtype":' + quoted + b',"shape":[],"data_offsets":[0,4]}}'
        ),
        "safetensors, a field twice": safetensors(b'{"a":{' + quoted + b":1," + quoted + b":1}}"),
        "an index": b'{"weight_map":{"a":' + quoted + b"}}",
        "an index, a key twice": b'{"weight_map":{' + quoted + b':"x",' + quoted + b':"x"}}',
        "an index, up": b'{"weight_map":{"a":' + json.dumps("../" + nasty).encode() + b"}}",
        "legacy, an odd list": b"".join(
            pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, {}, nasty)
        ),
        "raw": encoded,
        "raw after a magic number": b"PK\x03\x04" + encoded,
        "raw pickle": b"\x80\x02" + encoded,
    }
    paths = {}
    for what, data in content.items():
        paths[what] = folder / what.replace(" ", "-")
        paths[what].write_bytes(data)
    distributed = folder / "distributed"
    distributed.mkdir()
    (distributed / ".metadata").write_bytes(pickle.dumps({nasty: nasty}))
    paths["distributed"] = distributed
    return paths


@pytest.mark.parametrize("kind", NASTY)
def test_messages_are_harmless(tmp_path: Path, kind: str) -> None:
    nasty = NASTY[kind]
    refused = 0
    for what, path in files(tmp_path, nasty).items():
        for key in (None, "no.such", nasty):
            try:
                ckpt = open_checkpoint(path, key)
            except CheckpointError as error:
                refused += 1
                assert_harmless(str(error).replace(str(tmp_path), ""), nasty)
            else:
                assert_harmless(repr(ckpt) + ckpt.unsafe, nasty)
                assert what in ("a key", "two state dicts", "a class"), what
    assert refused > 50


@pytest.mark.parametrize("kind", [kind for kind in NASTY if "megabyte" not in kind])
def test_names_of_files_are_harmless(tmp_path: Path, kind: str) -> None:
    nasty = NASTY[kind]
    path = tmp_path / nasty
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    assert_harmless(str(error.value).replace(str(tmp_path), ""), nasty)
    torch.save({"w": torch.ones(1)}, path)
    ckpt = open_checkpoint(path)
    assert_harmless(ckpt.name + repr(ckpt), nasty)
    assert list(ckpt) == ["w"]


def test_keys_themselves_are_kept_as_they_are(tmp_path: Path) -> None:
    keys = [nasty for kind, nasty in NASTY.items() if "megabyte" not in kind and "surrogate" not in kind]
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "a.safetensors")
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / "a.pth")
    assert (
        set(open_checkpoint(tmp_path / "a.safetensors"))
        == set(open_checkpoint(tmp_path / "a.pth"))
        == set(keys)
    )


@pytest.mark.parametrize(
    ("texts", "shown"), [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more")]
)
def test_long_lists_are_cut(texts: list[str], shown: str) -> None:
    assert listed(texts, 2) == shown
