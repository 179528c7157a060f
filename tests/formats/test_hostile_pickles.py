"""Promise 1: nothing that a file names is imported, called or opened."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import torch
from interpreter import run_python
from raw_zip import Archive, Raw, checkpoint, pickled, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary_module_xyz"
CODE = (
    b"import canary_module_xyz\nclass A(Module):\n  __parameters__ = [__import__('canary_module_xyz').x, ]\n"
)


class Evil:
    """Pickles as a call."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def payloads(canary: str) -> dict[str, bytes]:
    """Pickles that would create the file `canary`, or import a module that does."""
    shell = f"touch {canary}".encode()
    code = f"open({canary!r}, 'w')"
    touch = b"X" + struct.pack("<I", len(code)) + code.encode()
    module = CANARY.encode()
    return {
        "os.system": b"cos\nsystem\n(U" + bytes([len(shell)]) + shell + b"tR.",
        "posix.system by INST": b"(U" + bytes([len(shell)]) + shell + b"iposix\nsystem\n.",
        "OBJ": b"(cos\nsystem\nU" + bytes([len(shell)]) + shell + b"o.",
        "eval": b"c__builtin__\neval\n(" + touch + b"tR.",
        "exec": b"cbuiltins\nexec\n(" + touch + b"tR.",
        "exec by STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93(" + touch + b"tR.",
        "exec by NEWOBJ": b"\x80\x02cbuiltins\nexec\n(" + touch + b"t\x81.",
        "exec by NEWOBJ_EX": b"\x80\x04cbuiltins\nexec\n(" + touch + b"t}\x92.",
        "open": b"cbuiltins\nopen\n(U" + bytes([len(canary)]) + canary.encode() + b"U\x01wtR.",
        "subprocess": pickle.dumps(Evil(subprocess.check_call, (["touch", canary],)), 2),
        "import alone": b"c" + module + b"\nx\n.",
        "import by INST": b"(i" + module + b"\nx\n.",
        "import by STACK_GLOBAL": b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x01x\x93.",
        "importlib": b"cimportlib\nimport_module\n(U" + bytes([len(module)]) + module + b"tR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\npath\nU\x02ostR(U\x06systemtR.",
        "a tensor rebuilt by exec": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nexec\nctorch\nTensor\n("
        + touch
        + b"t}tR.",
        "copyreg": b"\x80\x02ccopyreg\n__newobj__\n(cbuiltins\nexec\n" + touch + b"tR.",
        "reconstructor": b"\x80\x02ccopyreg\n_reconstructor\n(cbuiltins\nexec\ncbuiltins\nobject\n"
        + touch
        + b"tR.",
        "extension": b"\x80\x02\x82\x01.",
        "state that runs": b"\x80\x02c" + module + b"\nx\n)\x81}X\x01\0\0\0aK\x01sb.",
        "a class as key": b"}c" + module + b"\nx\nK\x01s.",
        "torch.load itself": b"ctorch.serialization\nload\n(U"
        + bytes([len(canary)])
        + canary.encode()
        + b"tR.",
        "numpy": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR.",
        "runpy": b"crunpy\n_run_code\n(" + touch + b"}tR.",
        "ctypes": b"cctypes\nCDLL\n(U\x05evil.tR.",
        "a storage of bytes": b"ctorch.storage\n_load_from_bytes\n(C\x04evilltR.",
    }


AUDITED = """
import json, os, sys
sys.path.insert(0, {folder!r})  # where the canary module is
paths = json.loads({paths!r})
from pytest_ckptcompat import open_checkpoint, CheckpointError
import pytest_ckptcompat.checkpoint.checkpoint, pytest_ckptcompat.checkpoint.wrappers
from pytest_ckptcompat.core.hooks import installed
from pytest_ckptcompat.formats.registry import built_in
built_in(), installed()
allowed = {{os.fspath(p) for p in paths}} | {{p + "/.metadata" for p in paths}} | {{p + "/__0_0.distcp" for p in paths}} | {{p + "/data.pkl" for p in paths}}
seen = []
def hook(event, args):
    if event == "open" and args[0] in allowed and not (args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    if event in ("os.scandir", "os.listdir") and args[0] in paths:
        return
    if event.split(".")[0] in ("open", "import", "exec", "compile", "os", "subprocess", "socket", "ctypes", "pickle",
                               "marshal", "shutil", "code", "cpython", "urllib"):
        seen.append((event, str(args)[:80]))
sys.addaudithook(hook)
for path in paths:
    try:
        print(list(open_checkpoint(path)))
    except CheckpointError as error:
        print("refused:", error)
print(json.dumps(seen))
print({canary!r} in sys.modules)
"""


def variants(folder: Path, name: str, payload: bytes) -> Iterator[Path]:
    """The same pickle in every container that holds one."""
    body = payload if payload.startswith(b"\x80") else b"\x80\x02" + payload
    for where, data in {
        "alone": checkpoint(body).to_bytes(),
        "beside a state dict": checkpoint(_beside(body)).to_bytes(),
        "in the legacy layout": _legacy(body),
        "as a plain pickle": body,
        "in the byte order": checkpoint().with_member("byteorder", data=body[:16]).to_bytes(),
        "as a plain pickle of arrays": body[:2] + b"X\x05\0\0\0numpy0" + body[2:],
        "in TorchScript": checkpoint(body)
        .plus(Raw(b"net/constants.pkl", body), Raw(b"net/code/a.py", CODE))
        .to_bytes(),
        "in a zip of checkpoints": Archive([Raw(b"policy.pth", checkpoint(body).to_bytes())]).to_bytes(),
        "in an unused member": checkpoint().plus(Raw(b"net/evil.pkl", body)).to_bytes(),
    }.items():
        path = folder / f"{name} {where}.pth".replace("/", "-")
        path.write_bytes(data)
        yield path
    distributed = folder / f"{name} distributed"
    distributed.mkdir()
    (distributed / ".metadata").write_bytes(body)
    yield distributed
    unpacked = folder / f"{name} unpacked"
    unpacked.mkdir()
    (unpacked / "data.pkl").write_bytes(body)
    (unpacked / "version").write_bytes(b"3\n")
    yield unpacked


def _beside(body: bytes) -> bytes:
    """A dict of a state dict and the payload; the payload's own opcodes, between those of the dict."""
    start, _, _ = pickled({"state_dict": {"w": tensor()}}).rpartition(b"s.")
    inner = body.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".")
    return start + b"sX\x04\0\0\0evil" + inner + b"s."


def _legacy(body: bytes) -> bytes:
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + body + pickle.dumps([], 2)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, list[str]]:
    """What was printed for every hostile file, the canary file, and the files' names."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "touched"
    (folder / f"{CANARY}.py").write_text(f"open({str(canary)!r}, 'w')\nx = print\n")
    paths = [str(p) for name, body in payloads(str(canary)).items() for p in variants(folder, name, body)]
    out = run_python(AUDITED.format(folder=str(folder), paths=json.dumps(paths), canary=CANARY))
    return out.splitlines(), canary, paths


def test_nothing_ran(audited: tuple[list[str], Path, list[str]]) -> None:
    *_, seen, imported = audited[0]
    assert json.loads(seen) == []
    assert imported == "False"
    assert not audited[1].exists()


def test_every_file_was_looked_at(audited: tuple[list[str], Path, list[str]]) -> None:
    printed, _, paths = audited
    told = dict(zip(paths, printed, strict=False))
    assert len(printed) == len(paths) + 2
    for path, line in told.items():
        if (
            "beside a state dict" in path and "extension" not in path and "bytes" not in path
        ) or "unused member" in path:
            assert line == "['w']", path
        else:
            assert line.startswith("refused:"), path


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """Python's own unpickler is caught by them, so the test above tests something."""
    canary = tmp_path / "touched"
    pickle.loads(payloads(str(canary))["os.system"])
    assert canary.exists()


def test_files_say_that_they_are_unsafe(tmp_path: Path) -> None:
    from pytest_ckptcompat import open_checkpoint

    for name, body in payloads("x").items():
        if name in ("extension", "a storage of bytes"):
            continue
        path = tmp_path / "net.pth"
        path.write_bytes(checkpoint(_beside(body)).to_bytes())
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        assert "torch.load(weights_only=True) refuses it" in open_checkpoint(path).unsafe, name
